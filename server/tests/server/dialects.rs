//! What a client hears about who is there, in each dialect.

use serde_json::{Value, json};

use crate::harness::{Server, leave_of, members};

#[tokio::test]
async fn the_full_dialect_is_the_default_and_tells_the_list_on_joining_and_after_changes() {
    let server = Server::start(&[]);
    for path in ["/ws/one?user=ada", "/ws/two?user=ada&presence=full"] {
        let mut ada = server.ws(path).await;
        let first = ada.next().await;
        let room = path[4..7].to_owned();
        assert_eq!(
            first,
            json!({"type": "presence", "payload": {
                "channel_name": room,
                "members": [{"id": "ada", "info": {}, "connections": 1}],
                "lurkers": 0,
                "version": first["payload"]["version"],
            }})
        );
        let bob = server.ws(&format!("/ws/{room}?user=bob&info=%7B%22a%22%3A1%7D")).await;
        let both = ada.sees(&["ada", "bob"], 0).await;
        let entry = json!({"id": "bob", "info": {"a": 1}, "connections": 1});
        assert_eq!(both["payload"]["members"][1], entry);
        assert_eq!(both["payload"]["version"], version(&first) + 1);
        let _lurker = server.ws(&format!("/ws/{room}")).await;
        ada.sees(&["ada", "bob"], 1).await;
        let _tab = server.ws(&format!("/ws/{room}?user=ada")).await;
        let tabs = ada.until(|frame| frame["payload"]["members"][0]["connections"] == 2).await;
        assert_eq!(tabs["payload"]["lurkers"], 1);
        bob.close(Some(1000)).await;
        ada.sees(&["ada"], 1).await;
    }
}

#[tokio::test]
async fn the_diff_dialect_is_a_state_and_then_diffs_without_a_gap() {
    let server = Server::start(&[]);
    let mut witness = server.ws("/ws/lobby?user=witness&presence=diff").await;
    let state = witness.next().await;
    assert_eq!(state["type"], "presence_state");
    assert_eq!(state["payload"]["channel_name"], "lobby");
    assert!(state["payload"]["epoch"].is_string() || state["payload"]["epoch"].is_number());
    let mut room = Folded::new(&state);
    assert_eq!(room.users(), ["witness"]);

    let mut ada = server.ws("/ws/lobby?user=ada").await;
    let again = server.ws("/ws/lobby?user=ada&info=%7B%22tab%22%3A2%7D").await;
    let lurker = server.ws("/ws/lobby").await;
    while room.lurkers != 1 || room.member("ada").is_none_or(|ada| ada["connections"] != 2) {
        room.apply(&witness.next().await);
    }
    assert_eq!(room.member("ada").unwrap()["info"], json!({"tab": 2}));

    ada.json(json!({"type": "update", "info": {"mood": "fine"}})).await;
    again.close(None).await;
    lurker.close(None).await;
    while room.lurkers != 0 || room.member("ada").is_none_or(|ada| ada["connections"] != 1) {
        room.apply(&witness.next().await);
    }
    assert_eq!(room.member("ada").unwrap()["info"], json!({"mood": "fine"}));

    ada.close(Some(1000)).await;
    let last = loop {
        let frame = witness.next().await;
        room.apply(&frame);
        if leave_of(&frame, "ada").is_some() {
            break frame;
        }
    };
    let gone = json!({"id": "ada", "info": {"mood": "fine"}, "cause": "left"});
    assert_eq!(leave_of(&last, "ada"), Some(&gone));
    let rest = server.json("/api/rooms/lobby").await;
    assert_eq!(rest["version"], room.version);
    assert_eq!(rest["epoch"], state["payload"]["epoch"]);
    assert_eq!(room.users(), ["witness"]);
}

#[tokio::test]
async fn the_count_dialect_tells_numbers_and_the_none_dialect_nothing() {
    let server = Server::start(&[]);
    let mut counting = server.ws("/ws/lobby?user=ada&presence=count").await;
    let first = counting.next().await;
    let payload = json!({
        "channel_name": "lobby", "users": 1, "lurkers": 0, "version": first["payload"]["version"],
    });
    assert_eq!(first, json!({"type": "presence_count", "payload": payload}));

    let mut silent = server.ws("/ws/lobby?presence=none").await;
    counting.until(|frame| frame["payload"]["lurkers"] == 1).await;
    let _bob = server.ws("/ws/lobby?user=bob").await;
    counting.until(|frame| frame["payload"]["users"] == 2).await;
    counting.message("hello").await;
    // The first that it hears at all.
    let message = silent.next().await;
    assert_eq!((&message["type"], &message["payload"]), (&json!("message"), &json!("hello")));
}

#[tokio::test]
async fn a_dialect_that_there_is_not_is_refused() {
    let server = Server::start(&[]);
    for query in ["presence=everything", "presence=", "presence=full&presence=diff"] {
        let refused = server.enter(&format!("/ws/lobby?{query}")).send().await;
        assert_eq!(refused.error().0, 400, "{query}");
    }
}

#[tokio::test]
async fn an_empty_room_that_fills_again_goes_on_with_its_versions() {
    let server = Server::start(&[]);
    let mut ada = server.ws("/ws/lobby?user=ada&presence=diff").await;
    let before = ada.next().await;
    ada.close(Some(1000)).await;
    crate::harness::until("the room is empty", async || {
        (server.get("/api/rooms/lobby").await.status == 404).then_some(())
    })
    .await;
    let mut ada = server.ws("/ws/lobby?user=ada&presence=diff").await;
    let after = ada.next().await;
    assert_eq!(after["payload"]["epoch"], before["payload"]["epoch"]);
    assert!(version(&after) > version(&before) + 1, "a leave and a join lie between");
}

fn version(frame: &Value) -> u64 {
    frame["payload"]["version"].as_u64().unwrap()
}

/// A room as a client folds it from its frames.
struct Folded {
    members: Vec<Value>,
    lurkers: u64,
    version: u64,
}

impl Folded {
    fn new(state: &Value) -> Self {
        let _ = members(state);
        let payload = &state["payload"];
        Self {
            members: payload["members"].as_array().unwrap().clone(),
            lurkers: payload["lurkers"].as_u64().unwrap(),
            version: version(state),
        }
    }

    fn apply(&mut self, frame: &Value) {
        assert_eq!(frame["type"], "presence_diff");
        let diff = &frame["payload"];
        assert_eq!(diff["since"], self.version);
        assert!(version(frame) > self.version);
        self.version = version(frame);
        self.lurkers = diff["lurkers"].as_u64().unwrap();
        for gone in
            diff["joins"].as_array().unwrap().iter().chain(diff["leaves"].as_array().unwrap())
        {
            self.members.retain(|member| member["id"] != gone["id"]);
        }
        self.members.extend(diff["joins"].as_array().unwrap().iter().cloned());
    }

    fn member(&self, id: &str) -> Option<&Value> {
        self.members.iter().find(|member| member["id"] == id)
    }

    fn users(&self) -> Vec<&str> {
        self.members.iter().map(|member| member["id"].as_str().unwrap()).collect()
    }
}
