use serde_json::json;

use super::*;
use crate::model::{ConnectionId, MAX_DEPTH, Moment, Rooms};

fn value(frame: &ByteString) -> Value {
    serde_json::from_str(frame).unwrap()
}

#[test]
fn a_diff_between_snapshots_lists_new_changed_and_removed_entries_only() {
    let room = RoomName::new("r").unwrap();
    let [ada, bob, cyd, dan] = ["ada", "bob", "cyd", "dan"].map(|id| UserId::new(id).unwrap());
    let id = ConnectionId::from_u128;
    let now = Moment { monotonic: 0, wall: 0 };
    let mut rooms = Rooms::default();
    let join = |rooms: &mut Rooms, connection, user: &UserId| {
        rooms.join(&room, id(connection), Some(user.clone()), Info::EMPTY, now).unwrap();
    };
    join(&mut rooms, 1, &ada);
    join(&mut rooms, 2, &bob);
    join(&mut rooms, 3, &cyd);
    let before = rooms.snapshot(&room);

    join(&mut rooms, 4, &ada); // a second connection: a changed entry
    rooms.leave(&room, id(2), Cause::Expired); // an entry less
    rooms.leave(&room, id(3), Cause::Left); // left and rejoined: nothing
    join(&mut rooms, 5, &cyd);
    join(&mut rooms, 6, &dan); // joined and left: nothing
    rooms.leave(&room, id(6), Cause::Left);
    let after = rooms.snapshot(&room);

    let changed = [&ada, &bob, &cyd, &dan].map(|user| (user, Cause::Expired));
    assert_eq!(
        value(&presence_diff(&before, &after, changed)),
        json!({"type": "presence_diff", "payload": {
            "channel_name": "r", "since": 3, "version": 9, "lurkers": 0,
            "joins": [{"id": "ada", "info": {}, "connections": 2}],
            "leaves": [{"id": "bob", "info": {}, "cause": "expired"}],
        }})
    );
}

#[test]
fn a_payload_may_be_long_but_not_deep() {
    let message = |payload: String| read(&format!(r#"{{"type":"message","payload":{payload}}}"#));
    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    assert!(message(nested(MAX_DEPTH)).is_ok());
    assert_eq!(message(nested(MAX_DEPTH + 1)).unwrap_err(), BadFrame::Unfit(UnfitJson::TooDeep));
    assert_eq!(message(nested(30_000)).unwrap_err(), BadFrame::Unfit(UnfitJson::TooDeep));
    assert!(message(format!("[{}1]", "[1],".repeat(10_000))).is_ok());
    assert!(message(format!("\"{}\"", "[".repeat(10_000))).is_ok(), "only a text");
    let update = |info: String| read(&format!(r#"{{"type":"update","info":{info}}}"#));
    let nested = |depth: usize| r#"{"a":"#.repeat(depth) + "1" + &"}".repeat(depth);
    assert!(matches!(update(nested(MAX_DEPTH)), Ok(ClientFrame::Update(_))));
    for depth in [MAX_DEPTH + 1, 127, 128, 10_000] {
        assert_eq!(
            update(nested(depth)).unwrap_err(),
            BadFrame::Unfit(UnfitJson::TooDeep),
            "{depth}"
        );
    }
}

#[test]
fn an_invalid_frame_is_refused_with_its_code() {
    let bad = |text| read(text).unwrap_err().code();
    assert_eq!(bad("{"), "not_json");
    assert_eq!(bad(""), "not_json");
    assert_eq!(bad("[]"), "bad_frame");
    assert_eq!(bad(r#"["message",{"x":1},null]"#), "bad_frame");
    assert_eq!(bad(" \"heartbeat\""), "bad_frame");
    assert_eq!(bad("{}"), "bad_frame");
    assert_eq!(bad(r#"{"type":7}"#), "bad_frame");
    assert_eq!(bad(r#"{"type":"presence","payload":{}}"#), "unknown_type");
    assert_eq!(bad(r#"{"type":"message"}"#), "bad_frame");
    for info in ["[]", "null", "1", "\"{}\""] {
        let update = read(&format!(r#"{{"type":"update","info":{info}}}"#));
        assert_eq!(update.unwrap_err(), BadFrame::NoInfo, "{info}");
    }
    assert_eq!(read(r#"{"type":"update"}"#).unwrap_err(), BadFrame::NoInfo);
    assert!(matches!(read("\"heartbeat\""), Ok(ClientFrame::Heartbeat)));
    assert!(matches!(
        read(r#"{"type":"message","payload":null}"#),
        Ok(ClientFrame::Message { to_others: false, .. })
    ));
}

#[test]
fn a_message_is_to_all_or_to_the_others_and_to_nobody_else() {
    let message = |to: &str| read(&format!(r#"{{"type":"message","payload":1,"to":{to}}}"#));
    let others = message("\"others\"");
    assert!(matches!(others, Ok(ClientFrame::Message { to_others: true, .. })), "{others:?}");
    for to in ["\"all\"", "null", "[\"others\"]", "7"] {
        assert_eq!(message(to).unwrap_err(), BadFrame::UnknownReceivers, "{to}");
    }
    // Nowhere else does it mean anything.
    assert!(read(r#"{"type":"update","info":{},"to":7}"#).is_ok());
}

#[test]
fn infos_in_lists_are_written_unread() {
    let text = r#"{"b":1.50e1,  "a":"\u00e9"}"#;
    let (room, now) = (RoomName::new("r").unwrap(), Moment { monotonic: 0, wall: 0 });
    let ada = UserId::new("ada").unwrap();
    let mut rooms = Rooms::default();
    let (connection, info) = (ConnectionId::from_u128(1), Info::unread(text));
    let empty = rooms.snapshot(&room);
    rooms.join(&room, connection, Some(ada.clone()), info, now).unwrap();
    let full = rooms.snapshot(&room);
    let diff = |before, after| presence_diff(before, after, [(&ada, Cause::Left)]);
    for frame in [
        full.to_json(),
        presence_within(1000, &full).unwrap(),
        presence_state_within(1000, &full).unwrap(),
        diff(&empty, &full),
        diff(&full, &empty),
    ] {
        assert!(frame.contains(&format!(r#"{{"id":"ada","info":{text},"#)), "{frame}");
    }
}
