//! Members with fewer rights, on real sockets.

use actix_presence::{Decision, PresenceConfig, Rights};
use serde_json::json;
use tokio_tungstenite::{connect_async, tungstenite::Error};

use crate::sockets::{Client, serve};

#[actix::test]
async fn who_may_not_publish_is_told_so_and_who_may_not_see_members_gets_counts() {
    let presence = PresenceConfig::new("sqlite::memory:")
        .authorize_async(|join| async move {
            let user = join.user.as_ref().map_or("", |user| user.as_str());
            if user == "ivy" {
                return Decision::Undecided;
            }
            Decision::Grant(match user {
                "eve" => Rights::NONE,
                "reader" => Rights { publish: false, ..Rights::ALL },
                "audience" => Rights { publish: false, members: false, ..Rights::ALL },
                _ => Rights::ALL,
            })
        })
        .start()
        .unwrap();
    let (address, server) = serve(&presence);
    let url = |path: &str| format!("{address}{path}");
    let message = json!({"type": "message", "payload": "hi"});

    for (user, status) in [("eve", 403), ("ivy", 503)] {
        match connect_async(url(&format!("/ws/lobby?user={user}"))).await {
            Err(Error::Http(refused)) => assert_eq!(refused.status(), status),
            other => panic!("{other:?}"),
        }
    }
    let mut reader = Client::open(&url("/ws/lobby?user=reader")).await;
    assert_eq!(reader.next().await.unwrap()["type"], "presence");
    reader.say(message.clone()).await;
    assert_eq!(reader.next().await.unwrap()["payload"]["code"], "not_allowed");
    reader.say(json!({"type": "update", "info": {"status": "away"}})).await;
    let list = reader.until(|frame| frame["type"] == "presence").await.pop().unwrap();
    assert_eq!(list["payload"]["members"][0]["info"]["status"], "away");

    let mut audience = Client::open(&url("/ws/lobby?user=audience&presence=diff")).await;
    let count = audience.next().await.unwrap();
    assert_eq!((&count["type"], &count["payload"]["users"]), (&json!("presence_count"), &json!(2)));

    let phoenix = "/socket/websocket?vsn=2.0.0&user=";
    for (user, reason) in [("eve", "unauthorized"), ("ivy", "authorization failed")] {
        let mut refused = Client::open(&url(&format!("{phoenix}{user}"))).await;
        refused.say(json!(["1", "1", "lobby", "phx_join", {}])).await;
        let reply = refused.until(|frame| frame[3] == "phx_reply").await.pop().unwrap();
        assert_eq!(reply[4], json!({"response": {"reason": reason}, "status": "error"}));
    }

    let mut client = Client::open(&url(&format!("{phoenix}audience"))).await;
    client.say(json!(["1", "1", "lobby", "phx_join", {}])).await;
    let reply = client.until(|frame| frame[3] == "phx_reply").await.pop().unwrap();
    assert_eq!(reply[4]["status"], "ok");
    assert_eq!(client.next().await.unwrap(), json!(["1", null, "lobby", "presence_state", {}]));
    let count = client.next().await.unwrap();
    assert_eq!(count[3], "presence_count");
    let keys: Vec<_> = count[4].as_object().unwrap().keys().collect();
    assert_eq!(keys, ["lurkers", "users", "version"]);
    client.say(json!(["1", "2", "lobby", "shout", {}])).await;
    let reply = client.until(|frame| frame[1] == "2").await.pop().unwrap();
    assert_eq!(reply[0], "1");
    assert_eq!(reply[4], json!({"response": {"reason": "unauthorized"}, "status": "error"}));

    let mut ada = Client::open(&url("/ws/lobby?user=ada")).await;
    ada.say(message).await;
    for socket in [&mut reader, &mut audience] {
        let heard = socket.until(|frame| frame["type"] == "message").await.pop().unwrap();
        assert_eq!(heard["payload"], "hi");
    }
    assert_eq!(
        client.until(|frame| frame[3] == "message").await.pop().unwrap()[4]["payload"],
        "hi"
    );
    presence.shutdown(std::time::Duration::from_secs(5)).await.unwrap();
    server.stop(false).await;
}
