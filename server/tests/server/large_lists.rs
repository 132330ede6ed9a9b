//! Rooms whose member list is larger than `--max-list-size`.

use serde_json::{Value, json};

use crate::harness::{Dialect, Listener, Server, Ws, until};

const LIMIT: usize = 2000;
/// The largest list that is whole again after it was too large.
const WELL_BELOW: usize = LIMIT / 10 * 9;
/// With so many members, and the others of a [`Room`], the list is well below the limit; with one more
/// below it, and with two more above it.
const FEW: usize = 7;

/// A room with members that do not listen.
struct Room {
    server: Server,
    /// How many bytes of info make a member 200 bytes of the list.
    info: usize,
    members: Vec<Ws>,
    _base: Ws,
}

impl Room {
    /// A room with lists of this dialect in which there are a witness and somebody with an info.
    async fn new(dialect: Dialect) -> (Self, Listener) {
        let server = Server::start(&["--max-list-size", &LIMIT.to_string()]);
        let witness = Listener::enter(&server, dialect, "room", "witness").await;
        let (info, base) = if dialect == Dialect::Phoenix { (112, 40) } else { (157, 60) };
        let _base = member(&server, "base", base).await;
        (Self { server, info, members: Vec::new(), _base }, witness)
    }

    /// Has so many members come or go.
    async fn resize(&mut self, len: usize) {
        while self.members.len() > len {
            self.members.pop().unwrap().close(Some(1000)).await;
        }
        for n in self.members.len()..len {
            self.members.push(member(&self.server, &format!("m{n}"), self.info).await);
        }
    }

    /// Changes something, but not how much there is. Answers the version after it.
    async fn change(&mut self) -> u64 {
        let (before, width) = (self.version().await, self.info);
        let info = json!({"x": format!("{before:0width$}")});
        self.members[0].json(json!({"type": "update", "info": info})).await;
        until("the change", async || {
            let version = self.version().await;
            (version > before).then_some(version)
        })
        .await
    }

    async fn newcomer(&self, dialect: Dialect) -> Listener {
        Listener::open(&self.server, dialect, "room", "newcomer").await
    }

    async fn version(&self) -> u64 {
        self.server.json("/api/rooms/room").await["version"].as_u64().unwrap()
    }
}

/// A member that does not listen, with an info of so many bytes.
async fn member(server: &Server, user: &str, info: usize) -> Ws {
    let info = "x".repeat(info);
    let path = format!("/ws/room?presence=none&user={user}&info=%7B%22x%22:%22{info}%22%7D");
    server.ws(&path).await
}

/// Waits until a listener knows of so many users, and answers the frame that says so.
async fn sees(listener: &mut Listener, users: usize) -> Value {
    listener.until(|room| room.users == users as u64).await;
    listener.last().clone()
}

/// The frame of the JSON dialects in the place of a list that is too large.
fn truncated(users: usize, version: u64) -> Value {
    let payload = json!({
        "channel_name": "room", "users": users, "lurkers": 0, "version": version, "truncated": true,
    });
    json!({"type": "presence_count", "payload": payload})
}

/// The same of Phoenix.
fn phoenix_truncated(users: usize, version: u64) -> Value {
    let payload = json!({"users": users, "lurkers": 0, "version": version, "truncated": true});
    json!([null, null, "room", "presence_count", payload])
}

#[tokio::test]
async fn a_full_listener_gets_counts_while_the_list_is_too_large() {
    let (mut room, mut witness) = Room::new(Dialect::Full).await;
    // Below the limit it is whole, as long as it was never above it.
    for (len, kind) in [(FEW, "presence"), (FEW + 1, "presence"), (FEW + 2, "presence_count")] {
        room.resize(len).await;
        let frame = sees(&mut witness, len + 2).await;
        assert_eq!(frame["type"], kind);
        assert!(frame.to_string().len() <= LIMIT);
    }
    assert_eq!(*witness.last(), truncated(FEW + 4, room.version().await));

    let mut newcomer = room.newcomer(Dialect::Full).await;
    assert_eq!(newcomer.next().await, truncated(FEW + 5, room.version().await));
    assert_eq!(sees(&mut witness, FEW + 5).await, *newcomer.last());
    let version = room.change().await;
    for listener in [&mut witness, &mut newcomer] {
        assert_eq!(listener.next().await, truncated(FEW + 5, version));
    }

    for (len, kind) in [(FEW + 1, "presence_count"), (FEW, "presence"), (FEW + 1, "presence")] {
        room.resize(len).await;
        let frame = sees(&mut witness, len + 3).await;
        assert_eq!(frame["type"], kind, "{len} members");
        assert_eq!(sees(&mut newcomer, len + 3).await, frame);
        if len == FEW {
            assert!(frame.to_string().len() <= WELL_BELOW);
        }
    }
}

#[tokio::test]
async fn a_diff_listener_with_a_state_goes_on_and_a_newcomer_gets_counts_until_a_state_fits() {
    let (mut room, mut witness) = Room::new(Dialect::Diff).await;
    room.resize(FEW + 2).await;
    sees(&mut witness, FEW + 4).await;
    let mut newcomer = room.newcomer(Dialect::Diff).await;
    assert_eq!(newcomer.next().await, truncated(FEW + 5, room.version().await));
    sees(&mut witness, FEW + 5).await;
    for _ in 0..3 {
        let version = room.change().await;
        assert_eq!(newcomer.next().await, truncated(FEW + 5, version));
        witness.until(|room| room.version == Some(version)).await;
    }
    room.resize(FEW + 1).await;
    assert_eq!(sees(&mut newcomer, FEW + 4).await, truncated(FEW + 4, room.version().await));

    room.resize(FEW).await;
    let state = sees(&mut newcomer, FEW + 3).await;
    assert_eq!(state["type"], "presence_state");
    assert_eq!(state["payload"]["version"], room.version().await);
    // It goes on with diffs from that version (which the listener checks), also above the limit.
    room.resize(FEW + 3).await;
    assert_eq!(sees(&mut newcomer, FEW + 6).await["type"], "presence_diff");
    sees(&mut witness, FEW + 6).await;
    assert_eq!(newcomer.connections(), witness.connections());
    let diffs = witness.frames.iter().filter(|frame| frame["type"] == "presence_diff").count();
    assert_eq!(diffs, witness.frames.len() - 1, "who has a state never gets another one");
}

#[tokio::test]
async fn a_phoenix_client_without_a_state_gets_an_empty_one_and_counts_until_a_state_fits() {
    let (mut room, mut witness) = Room::new(Dialect::Phoenix).await;
    room.resize(FEW + 2).await;
    sees(&mut witness, FEW + 4).await;
    let mut newcomer = room.newcomer(Dialect::Phoenix).await;
    assert_eq!(newcomer.next().await, json!(["1", null, "room", "presence_state", {}]));
    assert_eq!(newcomer.next().await, phoenix_truncated(FEW + 5, room.version().await));
    sees(&mut witness, FEW + 5).await;
    for _ in 0..3 {
        let version = room.change().await;
        assert_eq!(newcomer.next().await, phoenix_truncated(FEW + 5, version));
        witness.until(|room| room.version == Some(version)).await;
    }
    room.resize(FEW + 1).await;
    let version = room.version().await;
    assert_eq!(sees(&mut newcomer, FEW + 4).await, phoenix_truncated(FEW + 4, version));

    room.resize(FEW).await;
    let state = sees(&mut newcomer, FEW + 3).await;
    assert_eq!(newcomer.kind(&state), "presence_state");
    let version = room.change().await;
    let diff = newcomer.next().await;
    assert_eq!(newcomer.span(&diff), Some((version - 1, version)));
    room.resize(FEW + 3).await;
    let last = sees(&mut newcomer, FEW + 6).await;
    assert_eq!(newcomer.kind(&last), "presence_diff");
    sees(&mut witness, FEW + 6).await;
    assert_eq!(newcomer.connections(), witness.connections());
    let is_diff = |frame: &Value| witness.kind(frame) == "presence_diff";
    assert!(witness.frames[1..].iter().all(is_diff), "who has a state never gets another one");
    // A channel that is joined again begins without one.
    newcomer.ws.json(json!(["2", "2", "room", "phx_join", {}])).await;
    let state = newcomer.ws.until(|frame| frame[3] == "presence_state").await;
    assert_eq!(state, json!(["2", null, "room", "presence_state", {}]));
    let count = newcomer.ws.next().await;
    assert_eq!(count, phoenix_truncated(FEW + 6, room.version().await));
}

#[tokio::test]
async fn a_diff_over_the_limit_is_not_sent_and_its_receiver_gets_the_next_state_that_fits() {
    for dialect in [Dialect::Diff, Dialect::Phoenix] {
        let (room, mut witness) = Room::new(dialect).await;
        sees(&mut witness, 2).await;
        let large = member(&room.server, "large", 3000).await;
        let (count, version) = (witness.next().await, room.version().await);
        let expected = match dialect {
            Dialect::Phoenix => phoenix_truncated(3, version),
            _ => truncated(3, version),
        };
        assert_eq!(count, expected, "{dialect:?}: a state is kept, and not emptied");
        large.close(Some(1000)).await;
        let state = sees(&mut witness, 2).await;
        assert_eq!(witness.kind(&state), "presence_state");
        let _small = member(&room.server, "small", 10).await;
        let diff = witness.next().await;
        let version = room.version().await;
        assert_eq!(witness.span(&diff), Some((version - 1, version)));
    }
}

#[tokio::test]
async fn a_state_that_fits_comes_at_once_in_the_place_of_a_diff_over_the_limit() {
    let (room, mut witness) = Room::new(Dialect::Phoenix).await;
    let mut other = Listener::enter(&room.server, Dialect::Diff, "room", "other").await;
    let mut large = member(&room.server, "large", 1200).await;
    witness.until(|room| room.knows("large")).await;
    other.until(|room| room.knows("large")).await;
    // The diff of a Phoenix client has what was there before, too.
    let info = json!({"x": "y".repeat(1200)});
    large.json(json!({"type": "update", "info": info})).await;
    let state = witness.next().await;
    assert_eq!(witness.kind(&state), "presence_state");
    assert_eq!(state[4]["large"]["metas"][0]["x"], info["x"]);
    assert_eq!(other.next().await["type"], "presence_diff");
}

#[tokio::test]
async fn counts_that_were_asked_for_are_not_called_truncated() {
    let (mut room, mut witness) = Room::new(Dialect::Full).await;
    room.resize(FEW + 2).await;
    assert_eq!(sees(&mut witness, FEW + 4).await["type"], "presence_count");
    let mut counting = room.newcomer(Dialect::Count).await;
    counting.next().await;
    room.change().await;
    counting.next().await;
    for frame in &counting.frames {
        let version = &frame["payload"]["version"];
        let payload =
            json!({"channel_name": "room", "users": FEW + 5, "lurkers": 0, "version": version});
        assert_eq!(*frame, json!({"type": "presence_count", "payload": payload}));
    }
}

#[tokio::test]
async fn a_newcomer_has_the_state_at_once_when_the_room_has_become_small_unnoticed() {
    for dialect in [Dialect::Diff, Dialect::Phoenix] {
        let (mut room, mut witness) = Room::new(dialect).await;
        room.resize(FEW + 2).await;
        sees(&mut witness, FEW + 4).await;
        // The list is too large for somebody who does not stay.
        let mut passer = Listener::open(&room.server, dialect, "room", "passer").await;
        passer.until(|room| room.users == FEW as u64 + 5).await;
        passer.ws.close(Some(1000)).await;
        room.resize(1).await;
        sees(&mut witness, 3).await;
        let newcomer = Listener::enter(&room.server, dialect, "room", "newcomer").await;
        assert_eq!(newcomer.connections().len(), 4, "{:?}", newcomer.last());
    }
}

#[tokio::test]
async fn a_room_over_http_has_no_users_while_they_are_too_many_bytes() {
    let (mut room, mut witness) = Room::new(Dialect::Full).await;
    room.resize(FEW).await;
    let _lurker = room.server.ws("/ws/room?presence=none").await;
    let whole = room.server.json("/api/rooms/room").await;
    assert_eq!(whole["users"].as_array().unwrap().len(), FEW + 2);
    assert_eq!(whole.get("truncated"), None);

    room.resize(FEW + 5).await;
    sees(&mut witness, FEW + 7).await;
    let answer = room.server.get("/api/rooms/room").await;
    let body = answer.json();
    let expected = json!({
        "channel_name": "room",
        "epoch": whole["epoch"],
        "version": whole["version"].as_u64().unwrap() + 5,
        "connections": FEW + 8,
        "anonymous": 1,
        "users": [],
        "truncated": true,
    });
    assert_eq!(body, expected);
    let tag = format!("\"{}-{}\"", body["epoch"].as_str().unwrap(), body["version"]);
    assert_eq!(answer.header("etag"), Some(tag.as_str()));
    let ask = async |tag: &str| {
        room.server.ask("GET", "/api/rooms/room").header("If-None-Match", tag).send().await.status
    };
    assert_eq!(ask(&tag).await, 304);
    assert_eq!(ask("\"another\"").await, 200);
}

#[tokio::test]
async fn lists_that_are_too_large_are_counted_and_logged_once_a_minute() {
    const WARNING: &str = "a member list is too large";
    let server = Server::start(&["--max-list-size", "100"]);
    let counted = async || {
        let metrics = server.get("/metrics").await.body;
        let line =
            metrics.lines().find_map(|line| line.strip_prefix("presence_lists_truncated_total "));
        line.expect("it is there from the beginning").parse::<u64>().unwrap()
    };
    assert_eq!(counted().await, 0);
    let mut listeners = Vec::new();
    for room in ["one", "two", "three"] {
        let mut listener = Listener::open(&server, Dialect::Full, room, "ada").await;
        let payload = &listener.next().await["payload"];
        assert_eq!(payload["truncated"], true);
        listeners.push(listener);
    }
    until("three are counted", async || (counted().await == 3).then_some(())).await;
    server.logs(WARNING);
    assert_eq!(server.log().matches(WARNING).count(), 1, "{}", server.log());
}
