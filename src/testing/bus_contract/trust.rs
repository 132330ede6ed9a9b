//! The rules about whom an end of a bus hears.

use super::{BusFixture, TestNode, channel, identity};
use crate::{
    bus::{
        BusEvent, BusMessage, Channel, ClusterIdentity, Envelope, InvalidEnvelope, NotSent,
        RoomMessage,
    },
    messages::Content,
    model::RoomName,
};

/// Who does not have the key can publish nothing that is received, and can move nothing to another channel.
pub async fn what_is_forged_or_moved_to_another_channel_is_unreadable(fixture: &impl BusFixture) {
    let mut a = TestNode::hearing(fixture, "a", &["lobby", "garden"]).await;
    let mut b = TestNode::new(fixture, "b").await;
    let (room, content) = (channel_name("lobby"), Content::Text("hello".into()));
    let said = RoomMessage { room, content, from: None, except: None };
    let said = b.envelope(BusMessage::Published(said));
    let guessed = ClusterIdentity::new([8; 32], [7; 16]);
    let real = said.encode(&identity());
    for (place, bytes) in [
        (channel("lobby"), said.encode(&guessed)),
        (channel("garden"), real.clone()),
        (channel("lobby"), real[1..].to_vec()),
        (channel("lobby"), [real.as_slice(), b" "].concat()),
    ] {
        fixture.publish_bytes(&identity(), &place, &bytes).await;
        let told = a.next().await;
        assert!(matches!(told, BusEvent::Unreadable(InvalidEnvelope::Unverified)), "{told:?}");
    }
    fixture.publish_bytes(&identity(), &channel("lobby"), &real).await;
    assert!(matches!(a.next().await, BusEvent::Received(Envelope { number: 1, .. })));
    let number = b.say("garden").await;
    assert_eq!(a.heard("garden").await.1, number);
}

/// A bus without an identity takes nothing, and is up as soon as it has one.
pub async fn without_an_identity_there_is_no_bus(fixture: &impl BusFixture) {
    let mut b = TestNode::new(fixture, "b").await;
    let mut a = TestNode::nobody(fixture, "a");
    a.bus.subscribe(channel("lobby"));
    assert_eq!(a.try_say("lobby"), Err(NotSent));
    b.say("lobby").await;
    assert!(a.seen.now().is_none());
    a.bus.identify(identity());
    a.up().await;
    a.subscribe(channel("lobby")).await;
    let number = b.say("lobby").await;
    assert_eq!(a.heard("lobby").await.1, number);
}

/// Nodes of two databases are two systems on one bus.
pub async fn those_of_another_identity_do_not_hear(fixture: &impl BusFixture) {
    let stranger = ClusterIdentity::new([8; 32], [8; 16]);
    let mut a = TestNode::hearing(fixture, "a", &["lobby"]).await;
    let mut b = TestNode::of(fixture, "b", stranger.clone()).await;
    let mut c = TestNode::of(fixture, "c", stranger).await;
    for node in [&mut a, &mut b] {
        node.subscribe(Channel::Nodes).await;
        node.subscribe(Channel::Rooms).await;
    }
    c.say("lobby").await;
    c.tell(BusMessage::Missed).await;
    assert_eq!(b.heard("lobby").await, ("c".to_owned(), 1));
    assert!(matches!(b.next().await, BusEvent::Received(Envelope { number: 2, .. })));
    let mut d = TestNode::new(fixture, "d").await;
    d.say("lobby").await;
    assert_eq!(a.heard("lobby").await, ("d".to_owned(), 1));
    assert!(b.seen.now().is_none());
}

/// With another identity a bus goes down and comes up, and hears those that have it.
pub async fn another_identity_is_another_bus(fixture: &impl BusFixture) {
    let other = ClusterIdentity::new([8; 32], [8; 16]);
    let mut a = TestNode::hearing(fixture, "a", &["lobby"]).await;
    let mut b = TestNode::new(fixture, "b").await;
    a.bus.identify(identity());
    let number = b.say("lobby").await;
    assert_eq!(a.heard("lobby").await.1, number, "the same one again");

    a.bus.identify(other.clone());
    let told = a.next().await;
    assert!(matches!(told, BusEvent::Down("identity")), "{told:?}");
    a.up().await;
    a.subscribe(channel("lobby")).await;
    b.say("lobby").await;
    let mut c = TestNode::of(fixture, "c", other).await;
    c.say("lobby").await;
    assert_eq!(a.heard("lobby").await, ("c".to_owned(), 1));
}

fn channel_name(room: &str) -> RoomName {
    RoomName::new(room).expect("a name")
}
