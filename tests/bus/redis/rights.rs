//! Whom a bus hears, and what Redis has to allow it.

use actix_presence::bus::InvalidEnvelope;

use super::*;

#[actix::test]
async fn without_an_identity_it_says_why_it_cannot_connect_and_is_not_up() {
    let mut redis = Redis::start();
    let (listener, seen) = Probe::new();
    let mut bus = RedisBus::new(&redis.url()).unwrap();
    redis.stop();
    bus.listen(listener.recipient());
    let mut node = Node { bus, seen: RefCell::new(seen), said: 0 };
    assert_eq!(node.down().await, "refused");
    redis.start_again();
    // This question comes by a third connection.
    let connected = || redis.command("INFO clients").contains("connected_clients:3");
    until("it is connected", connected).await;
    assert_eq!(redis.command("PUBSUB CHANNELS"), "");
    assert_eq!(node.say(""), Err(NotSent));
    assert!(node.seen.borrow_mut().now().is_none());
    node.bus.identify(identity());
    node.up().await;
    node.subscribe(lobby()).await;
    node.works().await;
}

#[actix::test]
async fn an_envelope_that_was_seen_on_the_wire_verifies_in_its_own_channel_only() {
    let redis = Redis::start();
    let mut node = Node::hearing(&redis.url()).await;
    node.subscribe(Channel::Nodes).await;
    let bytes = node.envelope("hello").encode(&identity());
    redis.publish_bytes(&identity(), &lobby(), &bytes).await;
    assert_eq!(node.heard().await, 1);
    redis.publish_bytes(&identity(), &Channel::Nodes, &bytes).await;
    let told = node.next().await;
    assert!(matches!(told, BusEvent::Unreadable(InvalidEnvelope::Unverified)), "{told:?}");
}

#[actix::test]
async fn a_room_that_two_subscriptions_match_is_heard_once() {
    let redis = Redis::start();
    let mut node = Node::hearing(&redis.url()).await;
    node.subscribe(Channel::Rooms).await;
    (0..3).for_each(|_| assert!(node.say("").is_ok()));
    assert_eq!([node.heard().await, node.heard().await, node.heard().await], [1, 2, 3]);
    node.bus.unsubscribe(lobby());
    node.subscribe(Channel::Nodes).await;
    node.works().await;
}

#[actix::test]
async fn what_nodes_of_an_earlier_version_say_is_heard_by_nobody() {
    let redis = Redis::start();
    let mut node = Node::hearing(&redis.url()).await;
    node.subscribe(Channel::Nodes).await;
    let told = r#"{"v":1,"node":"n","incarnation":"0000000000000007","told":"stopping"}"#;
    assert_eq!(redis.bulk(&[b"PUBLISH", b"presence:nodes", told.as_bytes()]), "1");
    redis.bulk(&[b"PUBLISH", b"presence:room:lobby", told.as_bytes()]);
    node.works().await;
}

/// A user who may do all that a node does, and its URL.
fn user(redis: &Redis) -> String {
    redis.command(
        "ACL SETUSER node on >secret resetkeys allchannels -@all \
         +publish +subscribe +psubscribe +unsubscribe +punsubscribe +ping",
    );
    redis.url().replace("//", "//node:secret@")
}

#[actix::test]
async fn what_its_user_may_not_do_is_denied_until_it_may() {
    let redis = Redis::start();
    let url = user(&redis);
    for command in ["publish", "subscribe", "psubscribe", "ping"] {
        redis.command(&format!("ACL SETUSER node -{command}"));
        let mut node = Node::new(&url);
        assert_eq!(node.down().await, "denied", "{command}");
        redis.command(&format!("ACL SETUSER node +{command}"));
        node.up().await;
        node.subscribe(lobby()).await;
        node.works().await;
    }
    let value = "ab".repeat(16);
    for (channels, may) in [
        ("&other:*", false),
        // A pattern is allowed only as it is, so all rooms cannot be subscribed to.
        ("&presence:*", false),
        (&format!("&presence:{value}:room:*"), false),
        (&format!("&presence:{value}:nodes &presence:{value}:room:*"), true),
        (&format!("&presence:* &presence:{value}:room:*"), true),
    ] {
        redis.command(&format!("ACL SETUSER node resetchannels {channels}"));
        let mut node = Node::new(&url);
        if may {
            node.up().await;
            for channel in [lobby(), Channel::Nodes, Channel::Rooms] {
                node.subscribe(channel).await;
            }
            node.works().await;
        } else {
            assert_eq!(node.down().await, "denied", "{channels}");
        }
    }
}

#[actix::test]
async fn what_is_taken_from_its_user_while_it_is_connected_is_denied() {
    let redis = Redis::start();
    let url = user(&redis);
    let mut node = Node::hearing(&url).await;
    for (taken, given) in [
        ("resetchannels", "allchannels"),
        ("-publish", "+publish"),
        ("-ping", "+ping"),
        ("resetpass", ">secret"),
    ] {
        redis.command(&format!("ACL SETUSER node {taken}"));
        if taken == "resetpass" {
            // Redis keeps the connections that are there.
            redis.command("CLIENT KILL USER node");
        }
        // As a node does when it beats.
        let _ = node.say("");
        node.down_for("denied").await;
        redis.command(&format!("ACL SETUSER node {given}"));
        node.up().await;
        node.subscribe(lobby()).await;
        node.works().await;
    }
}

#[actix::test]
async fn no_database_is_selected() {
    let redis = Redis::start();
    // There are 16.
    let mut node = Node::with(RedisBus::new(&(user(&redis) + "/99")).unwrap().prefix("presence"));
    node.up().await;
    node.subscribe(lobby()).await;
    node.works().await;
}

#[actix::test]
async fn a_redis_that_has_too_many_clients_has_no_objection_to_the_password() {
    let redis = Redis::with(&["--requirepass", "secret"]);
    assert_eq!(redis.command_with("secret", "CONFIG SET maxclients 1"), "OK");
    let address = redis.url().replace("redis://", "");
    let holder = std::net::TcpStream::connect(&address).unwrap();
    let node = Node::new(&redis.url().replace("//", "//:secret@"));
    assert_ne!(node.down().await, "denied");
    drop(holder);
    until("it takes one more", || {
        redis.try_command_with("secret", "CONFIG SET maxclients 100").is_ok_and(|said| said == "OK")
    })
    .await;
    node.up().await;
}

#[actix::test]
async fn the_reason_is_the_present_one() {
    let mut redis = Redis::with(&["--requirepass", "secret"]);
    let node = Node::new(&redis.url());
    assert_eq!(node.down().await, "denied");
    redis.stop();
    node.down_for("refused").await;
    redis.start_again();
    node.down_for("denied").await;
    assert_eq!(redis.command_with("secret", "CONFIG SET requirepass "), "OK");
    node.up().await;
}
