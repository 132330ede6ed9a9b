//! A Phoenix socket one of whose joins waits for the app's hook, on real sockets.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use actix_presence::{CloseRoom, Decision, Kick, PresenceConfig, PresenceHandle, RoomName, UserId};
use actix_web::dev::ServerHandle;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::sockets::{Client, serve};

/// A server whose hook holds the rooms `slow:*` up.
struct World {
    presence: PresenceHandle,
    server: ServerHandle,
    url: String,
    /// Lets one join of a slow room through for each permit.
    gate: Arc<Semaphore>,
    /// How many joins of slow rooms the hook was asked for.
    asked: Arc<AtomicUsize>,
}

impl World {
    fn start() -> Self {
        let gate = Arc::new(Semaphore::new(0));
        let asked = Arc::<AtomicUsize>::default();
        let hook = (Arc::clone(&gate), Arc::clone(&asked));
        let presence = PresenceConfig::new("sqlite::memory:")
            .authorize_timeout(Duration::from_secs(3600))
            .authorize_async(move |join| {
                let (gate, asked) = hook.clone();
                async move {
                    if join.room.as_str().starts_with("slow:") {
                        asked.fetch_add(1, SeqCst);
                        gate.acquire().await.unwrap().forget();
                    }
                    Decision::Allow
                }
            })
            .start()
            .unwrap();
        let (url, server) = serve(&presence);
        Self { presence, server, url, gate, asked }
    }

    async fn open(&self, path: &str) -> Client {
        Client::open(&format!("{}{path}", self.url)).await
    }

    async fn phoenix(&self, user: &str) -> Client {
        self.open(&format!("/socket/websocket?vsn=2.0.0&user={user}")).await
    }

    async fn users(&self, room: &str) -> Vec<String> {
        let snapshot = self.presence.snapshot(&name(room)).await.unwrap();
        snapshot.iter().flat_map(|room| room.users()).map(|user| user.id.to_string()).collect()
    }

    /// Waits until the hook was asked for so many slow joins.
    async fn asked(&self, times: usize) {
        while self.asked.load(SeqCst) < times {
            tokio::task::yield_now().await;
        }
    }

    async fn stop(self) {
        self.presence.shutdown(Duration::from_secs(5)).await.unwrap();
        self.server.stop(false).await;
    }
}

/// Joins, and waits for the state.
async fn join(client: &mut Client, reference: &str, room: &str) {
    client.say(json!([reference, reference, room, "phx_join", {}])).await;
    let frames = client.until(|frame| frame[3] == "presence_state").await;
    assert_eq!(frames[0], ok(reference, reference, room));
}

fn name(room: &str) -> RoomName {
    RoomName::new(room).unwrap()
}

fn ok(join_ref: &str, reference: &str, topic: &str) -> Value {
    json!([join_ref, reference, topic, "phx_reply", {"response": {}, "status": "ok"}])
}

fn refused(join_ref: &str, reference: &str, topic: &str, reason: &str) -> Value {
    let payload = json!({"response": {"reason": reason}, "status": "error"});
    json!([join_ref, reference, topic, "phx_reply", payload])
}

fn closed(join_ref: &str, topic: &str) -> Value {
    json!([join_ref, join_ref, topic, "phx_close", {}])
}

#[actix::test]
async fn other_channels_go_on_while_a_join_waits_and_what_is_sent_on_its_topic_waits_with_it() {
    let world = World::start();
    let mut ada = world.phoenix("ada").await;
    ada.say(json!(["1", "1", "slow:a", "phx_join", {}])).await;
    ada.say(json!(["1", "2", "slow:a", "eager", {"n": 2}])).await;
    ada.say(json!(["1", "3", "slow:a", "eager", {"n": 3}])).await;
    world.asked(1).await;
    join(&mut ada, "4", "lobby").await;
    ada.say(json!(["4", "5", "lobby", "shout", {}])).await;
    // What a newcomer says is sent once the others know of it.
    let frames = ada.until(|frame| frame[3] == "shout").await;
    assert_eq!(frames, [ok("4", "5", "lobby"), json!([null, null, "lobby", "shout", {}])]);
    assert_eq!(ada.heard().await, [Value::Null; 0]);
    assert!(world.users("slow:a").await.is_empty());

    world.gate.add_permits(1);
    let frames = ada.until(|frame| frame[3] == "eager" && frame[4]["n"] == 3).await;
    // The reply comes before all else of the topic, and the pushes in their order.
    assert_eq!(frames[0], ok("1", "1", "slow:a"));
    assert_eq!(frames[1][3], "presence_state");
    let pushes: Vec<_> = frames.iter().filter(|frame| frame[3] == "eager").collect();
    assert_eq!(pushes.iter().map(|frame| &frame[4]["n"]).collect::<Vec<_>>(), [2, 3]);
    let replies: Vec<_> = frames.iter().filter(|frame| frame[3] == "phx_reply").collect();
    assert_eq!(replies[1..], [&ok("1", "2", "slow:a"), &ok("1", "3", "slow:a")]);
    assert_eq!(world.users("slow:a").await, ["ada"]);
    world.stop().await;
}

#[actix::test]
async fn a_client_that_leaves_withdraws_a_join_that_waits() {
    let world = World::start();
    let mut ada = world.phoenix("ada").await;
    // As the package does when its join has timed out: it leaves, and joins again.
    ada.say(json!(["1", "1", "slow:a", "phx_join", {}])).await;
    world.asked(1).await;
    ada.say(json!(["0", "2", "slow:a", "phx_leave", {}])).await;
    ada.say(json!(["1", "3", "slow:a", "push", {}])).await;
    assert_eq!(ada.heard().await, [Value::Null; 0], "a leave of an older join is none");
    ada.say(json!(["1", "4", "slow:a", "phx_leave", {}])).await;
    let frames = ada.until(|frame| frame[1] == "4").await;
    let unmatched = json!([null, "3", "slow:a", "phx_reply",
        {"response": {"reason": "unmatched topic"}, "status": "error"}]);
    let expected = [
        refused("1", "1", "slow:a", "withdrawn"),
        ok("0", "2", "slow:a"),
        unmatched,
        ok("1", "4", "slow:a"),
    ];
    assert_eq!(frames, expected);

    for reference in ["5", "6"] {
        ada.say(json!([reference, reference, "slow:a", "phx_join", {}])).await;
    }
    world.asked(2).await;
    // One for the answer that nobody waits for any more.
    world.gate.add_permits(3);
    let frames = ada.until(|frame| frame[3] == "phx_close").await;
    let replies: Vec<_> = frames.iter().filter(|frame| frame[3] != "presence_state").collect();
    let expected = [ok("5", "5", "slow:a"), ok("6", "6", "slow:a"), closed("5", "slow:a")];
    assert_eq!(replies, expected.iter().collect::<Vec<_>>());
    assert_eq!(world.users("slow:a").await, ["ada"]);
    world.stop().await;
}

#[actix::test]
async fn a_leave_that_withdraws_a_second_join_ends_the_channel_of_the_first() {
    let world = World::start();
    let mut ada = world.phoenix("ada").await;
    world.gate.add_permits(1);
    join(&mut ada, "1", "slow:a").await;
    ada.say(json!(["2", "2", "slow:a", "phx_join", {}])).await;
    world.asked(2).await;
    ada.say(json!(["2", "3", "slow:a", "phx_leave", {}])).await;
    let frames = ada.until(|frame| frame[1] == "3").await;
    let expected =
        [refused("2", "2", "slow:a", "withdrawn"), closed("1", "slow:a"), ok("2", "3", "slow:a")];
    assert_eq!(frames, expected);
    assert!(world.users("slow:a").await.is_empty());
    world.stop().await;
}

#[actix::test]
async fn what_the_room_sends_while_a_member_joins_again_comes_after_the_answer() {
    let world = World::start();
    world.gate.add_permits(2);
    let (mut ada, mut bob) = (world.phoenix("ada").await, world.open("/ws/slow:a?user=bob").await);
    join(&mut ada, "1", "slow:a").await;
    let before = world.asked.load(SeqCst);
    ada.say(json!(["2", "2", "slow:a", "phx_join", {}])).await;
    world.asked(before + 1).await;
    for number in 0..300 {
        bob.say(json!({"type": "message", "payload": number})).await;
        bob.until(|frame| frame["payload"] == number).await;
    }
    assert_eq!(ada.heard().await, [Value::Null; 0]);
    world.gate.add_permits(1);
    let frames = ada.until(|frame| frame[4]["payload"] == 299).await;
    assert_eq!(frames[..2], [ok("2", "2", "slow:a"), closed("1", "slow:a")]);
    let messages: Vec<_> = frames.iter().filter(|frame| frame[3] == "message").collect();
    assert!(
        messages
            .iter()
            .map(|frame| &frame[4]["payload"])
            .eq(&(0..300).map(Value::from).collect::<Vec<_>>())
    );
    world.stop().await;
}

#[actix::test]
async fn a_client_that_does_not_wait_for_its_join_loses_nothing_however_much_it_says() {
    let world = World::start();
    let (mut ada, mut bob) = (world.phoenix("ada").await, world.phoenix("bob").await);
    for client in [&mut ada, &mut bob] {
        join(client, "0", "lobby").await;
    }
    ada.say(json!(["1", "1", "slow:a", "phx_join", {}])).await;
    world.asked(1).await;
    for number in 0..1000 {
        ada.say(json!(["1", number.to_string(), "slow:a", "eager", {"n": number}])).await;
    }
    // Those are not all read yet, and what others say comes all the same.
    for number in 0..300 {
        bob.say(json!(["0", null, "lobby", "shout", {"n": number}])).await;
    }
    ada.until(|frame| frame[3] == "shout" && frame[4]["n"] == 299).await;
    world.gate.add_permits(1);
    let mut echoes = Vec::new();
    while echoes.len() < 1000 {
        let frames = ada.until(|frame| frame[3] == "eager").await;
        echoes.extend(frames.last().map(|frame| frame[4]["n"].clone()));
    }
    assert!(echoes.iter().eq(&(0..1000).map(Value::from).collect::<Vec<_>>()));
    world.stop().await;
}

#[actix::test]
async fn a_leave_behind_much_that_waits_withdraws_the_join() {
    let world = World::start();
    let mut eve = world.phoenix("eve").await;
    eve.say(json!(["1", "1", "slow:a", "phx_join", {}])).await;
    world.asked(1).await;
    eve.say(json!(["1", "2", "slow:a", "push", {"x": "x".repeat(65_000)}])).await;
    eve.say(json!(["1", "3", "slow:a", "phx_leave", {}])).await;
    let frames = eve.until(|frame| frame[1] == "3").await;
    assert_eq!(frames[0], refused("1", "1", "slow:a", "withdrawn"));
    assert_eq!(frames.last(), Some(&ok("1", "3", "slow:a")));
    world.gate.add_permits(1);
    assert!(world.users("slow:a").await.is_empty());
    world.stop().await;
}

#[actix::test]
async fn at_most_16_joins_of_a_client_wait_in_the_registry_and_further_ones_in_its_socket() {
    let world = World::start();
    let mut eve = world.phoenix("eve").await;
    join(&mut eve, "0", "lobby").await;
    for number in 1..=40 {
        let (reference, room) = (number.to_string(), format!("slow:{number}"));
        eve.say(json!([reference, reference, room, "phx_join", {}])).await;
    }
    world.asked(16).await;
    // Her other channel goes on.
    eve.say(json!(["0", "shout", "lobby", "shout", {}])).await;
    eve.until(|frame| frame[1] == "shout").await;
    eve.heard().await;
    world.presence.status().await.unwrap();
    assert_eq!(world.asked.load(SeqCst), 16);
    // Each answer lets one more ask; one of a room that does not wait has its turn, too.
    eve.say(json!(["fast", "fast", "garden", "phx_join", {}])).await;
    for joined in 1..=40 {
        world.gate.add_permits(1);
        let frames = eve
            .until(|frame| {
                frame[3] == "phx_reply" && frame[2].as_str().unwrap().starts_with("slow")
            })
            .await;
        assert_eq!(frames.last().unwrap()[4]["status"], "ok");
        world.asked((16 + joined).min(40)).await;
    }
    assert_eq!(world.asked.load(SeqCst), 40);
    let eve_in = world.presence.where_is(&UserId::new("eve").unwrap()).await.unwrap();
    assert_eq!(eve_in.len(), 42);
    world.stop().await;
}

#[actix::test]
async fn a_leave_withdraws_a_join_that_waits_in_the_socket_too() {
    let world = World::start();
    let mut eve = world.phoenix("eve").await;
    for number in 1..=17 {
        let (reference, room) = (number.to_string(), format!("slow:{number}"));
        eve.say(json!([reference, reference, room, "phx_join", {}])).await;
    }
    eve.say(json!(["17", "leave 17", "slow:17", "phx_leave", {}])).await;
    let frames = eve.until(|frame| frame[1] == "leave 17").await;
    assert_eq!(
        frames,
        [refused("17", "17", "slow:17", "withdrawn"), ok("17", "leave 17", "slow:17")]
    );
    // And one behind a join of the same topic.
    eve.say(json!(["1b", "1b", "slow:1", "phx_join", {}])).await;
    eve.say(json!(["1b", "leave 1b", "slow:1", "phx_leave", {}])).await;
    world.asked(16).await;
    eve.heard().await;
    world.gate.add_permits(16);
    let frames = eve.until(|frame| frame[1] == "leave 1b").await;
    let of_topic = frames.iter().filter(|frame| frame[2] == "slow:1");
    let of_topic: Vec<_> = of_topic.filter(|frame| frame[3] != "presence_state").collect();
    let expected = [
        ok("1", "1", "slow:1"),
        refused("1b", "1b", "slow:1", "withdrawn"),
        closed("1", "slow:1"),
        ok("1b", "leave 1b", "slow:1"),
    ];
    assert_eq!(of_topic, expected.iter().collect::<Vec<_>>());
    assert_eq!(world.asked.load(SeqCst), 16);
    assert!(world.users("slow:1").await.is_empty());
    world.stop().await;
}

#[actix::test]
async fn a_socket_that_closes_while_its_input_is_held_reads_the_close_frame_of_its_client() {
    let world = World::start();
    let mut eve = world.phoenix("eve").await;
    join(&mut eve, "0", "lobby").await;
    eve.say(json!(["1", "1", "slow:a", "phx_join", {}])).await;
    world.asked(1).await;
    for number in 0..20 {
        let push = json!(["1", number.to_string(), "slow:a", "push", {"x": "x".repeat(6000)}]);
        eve.say(push).await;
    }
    let kick = Kick::User(UserId::new("eve").unwrap());
    world.presence.registry().send(kick).await.unwrap();
    let close = loop {
        if let Err(close) = eve.next().await {
            break close.unwrap();
        }
    };
    assert_eq!(u16::from(close.code), 1000);
    // The client has answered; TCP ends in order.
    eve.ended().await;
    world.stop().await;
}

#[actix::test]
async fn a_join_that_waits_is_refused_when_its_room_closes_its_client_is_kicked_or_the_server_stops()
 {
    let world = World::start();
    let mut ada = world.phoenix("ada").await;
    ada.say(json!(["1", "1", "slow:a", "phx_join", {}])).await;
    world.asked(1).await;
    let close = CloseRoom { room: name("slow:a") };
    assert_eq!(world.presence.registry().send(close).await.unwrap().connections, 1);
    let frames = ada.until(|frame| frame[1] == "1").await;
    assert_eq!(frames, [refused("1", "1", "slow:a", "room_closed")]);

    join(&mut ada, "2", "lobby").await;
    ada.say(json!(["3", "3", "slow:a", "phx_join", {}])).await;
    world.asked(2).await;
    let kick = Kick::User(UserId::new("ada").unwrap());
    assert_eq!(world.presence.registry().send(kick).await.unwrap().connections, 1);
    let mut frames = Vec::new();
    let close = loop {
        match ada.next().await {
            Ok(frame) => frames.push(frame),
            Err(close) => break close.unwrap(),
        }
    };
    frames.sort_by_key(|frame| frame[0].to_string());
    assert_eq!(frames, [closed("2", "lobby"), refused("3", "3", "slow:a", "kicked")]);
    assert_eq!(u16::from(close.code), 1000);

    let mut bob = world.phoenix("bob").await;
    bob.say(json!(["1", "1", "slow:a", "phx_join", {}])).await;
    world.asked(3).await;
    let stopping = actix::spawn(world.presence.clone().shutdown(Duration::from_secs(5)));
    let frames = bob.until(|frame| frame[1] == "1").await;
    assert_eq!(frames, [refused("1", "1", "slow:a", "shutting down")]);
    stopping.await.unwrap().unwrap();
    world.server.stop(false).await;
}
