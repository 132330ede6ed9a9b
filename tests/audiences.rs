//! Who hears what: messages to several rooms, to a user, to one connection.

mod common;

use actix_presence::{testing::Heard, *};
use common::{Harness, Session, room, secs, user};

/// The messages that a session has got since it was asked last: room, text and sender.
async fn messages(session: &mut Session) -> Vec<(String, String, Option<Sender>)> {
    let heard = session.heard().await.into_iter();
    let messages = heard.filter_map(|one| match one {
        Heard::Frame(frame) if frame.kind == Forwarded::Message => {
            Some((frame.room.to_string(), frame.payload.to_string(), frame.from))
        }
        _ => None,
    });
    messages.collect()
}

async fn texts(session: &mut Session) -> Vec<String> {
    messages(session).await.into_iter().map(|(_, text, _)| text).collect()
}

async fn publish(t: &Harness, publish: Publish) -> Result<usize, PublishError> {
    t.registry.send(publish).await.unwrap()
}

#[actix::test]
async fn who_is_in_several_of_the_rooms_gets_a_message_once() {
    let t = Harness::new().await;
    let mut both = t.enter("a", Some("ada")).await;
    t.join(&both, "b", Some("ada")).await.unwrap();
    let mut one = t.enter("b", Some("bob")).await;
    let mut none = t.enter("c", None).await;
    let rooms = ["a", "b", "a", "empty"].map(room);
    assert_eq!(publish(&t, Publish::new(rooms, "hello")).await, Ok(2));
    for session in [&mut both, &mut one] {
        assert_eq!(texts(session).await, ["hello"]);
    }
    assert!(texts(&mut none).await.is_empty());

    let but_one = Publish::new(["b", "a"].map(room), "but one").except(both.id);
    assert_eq!(publish(&t, but_one).await, Ok(1));
    assert!(texts(&mut both).await.is_empty());
    assert_eq!(texts(&mut one).await, ["but one"]);
    assert_eq!(publish(&t, Publish::new(Vec::new(), "to nobody")).await, Ok(0));
}

#[actix::test]
async fn the_sender_is_named_to_every_kind_of_session_and_has_to_be_where_it_speaks() {
    let t = Harness::new().await;
    let ada = t.enter("a", Some("ada")).await;
    t.join(&ada, "b", Some("ada")).await.unwrap();
    let mut bob = t.enter("b", Some("bob")).await;
    let stranger = t.session();
    let from = Some(Sender { user: Some(user("ada")), connection: ada.id });
    for to in [
        Audience::from(room("b")),
        Audience::from(["a", "b"].map(room)),
        Audience::from(user("bob")),
        Audience::from(bob.id),
    ] {
        let says = Publish::new(to.clone(), "hi");
        publish(&t, Publish::new(to.clone(), "hi").sent_by(ada.id)).await.unwrap();
        assert_eq!(messages(&mut bob).await, [("b".to_owned(), "hi".to_owned(), from.clone())]);
        assert_eq!(
            publish(&t, says.sent_by(stranger.id)).await,
            Err(PublishError::NotAMember),
            "{to:?}"
        );
        publish(&t, Publish::new(to, "from nobody")).await.unwrap();
        assert_eq!(messages(&mut bob).await[0].2, None);
    }
    let not_everywhere = Publish::new(["a", "b"].map(room), "hi").sent_by(bob.id);
    assert_eq!(publish(&t, not_everywhere).await, Err(PublishError::NotAMember));
    let elsewhere = Publish::new(user("ada"), "hi").sent_by(bob.id);
    assert_eq!(publish(&t, elsewhere).await, Ok(1), "in any room");
    // In each dialect.
    for dialect in [Dialect::Json(Feed::Diff), Dialect::Json(Feed::None), Dialect::Phoenix] {
        let join = bob.joining("b", Some("bob")).dialect(dialect);
        t.registry.send(join).await.unwrap().unwrap();
        messages(&mut bob).await;
        publish(&t, Publish::new(room("b"), "hi").sent_by(ada.id)).await.unwrap();
        assert_eq!(messages(&mut bob).await[0].2, from, "{dialect:?}");
    }
}

#[actix::test]
async fn every_connection_of_a_user_hears_once_in_the_room_that_it_has_been_in_for_longest() {
    let grace = |config: PresenceConfig| config.grace(secs(10));
    let t = Harness::with("sqlite::memory:", grace).await;
    let mut tab = t.enter("z", Some("ada")).await;
    t.join(&tab, "a", Some("ada")).await.unwrap();
    let mut phone = t.session();
    // First as somebody else.
    t.join(&phone, "q", None).await.unwrap();
    t.join(&phone, "b", Some("ada")).await.unwrap();
    let mut bob = t.enter("a", Some("bob")).await;
    let key = SessionKey::new("tab").unwrap();
    let away = t.session();
    let join = away.joining("a", Some("ada")).session(key);
    t.registry.send(join).await.unwrap().unwrap();
    t.registry.send(LeaveAll::because(away.id, Cause::Disconnected)).await.unwrap();

    assert_eq!(publish(&t, Publish::new(user("ada"), "hello")).await, Ok(2));
    let place = |heard: Vec<(String, String, _)>| heard[0].0.clone();
    assert_eq!(place(messages(&mut tab).await), "z");
    assert_eq!(place(messages(&mut phone).await), "b");
    assert!(messages(&mut bob).await.is_empty());

    t.leave(&tab, "z").await;
    let but_phone = Publish::new(user("ada"), "again").except(phone.id);
    assert_eq!(publish(&t, but_phone).await, Ok(1));
    assert_eq!(place(messages(&mut tab).await), "a");
    assert!(messages(&mut phone).await.is_empty());
    assert_eq!(publish(&t, Publish::new(user("eve"), "hello")).await, Ok(0));
}

#[actix::test]
async fn one_connection_is_reached_by_its_own_id_and_by_the_one_that_is_shown() {
    let grace = |config: PresenceConfig| config.grace(secs(10));
    let t = Harness::with("sqlite::memory:", grace).await;
    let old = t.session();
    let mut new = t.session();
    for session in [&old, &new] {
        let key = SessionKey::new("tab").unwrap();
        let join = session.joining("a", Some("ada")).session(key);
        t.registry.send(join).await.unwrap().unwrap();
    }
    for id in [old.id, new.id] {
        assert_eq!(publish(&t, Publish::new(id, "hello")).await, Ok(1));
        assert_eq!(texts(&mut new).await, ["hello"]);
        let nobody = Publish::new(id, "hello").except(id);
        assert_eq!(publish(&t, nobody).await, Ok(0));
    }
    t.registry.send(LeaveAll::because(new.id, Cause::Disconnected)).await.unwrap();
    assert_eq!(publish(&t, Publish::new(old.id, "away")).await, Ok(0));
    assert_eq!(publish(&t, Publish::new(ConnectionId::new(), "nobody")).await, Ok(0));
    // A socket in no room.
    let nowhere = t.session();
    assert_eq!(publish(&t, Publish::new(nowhere.id, "nowhere")).await, Ok(0));
}
