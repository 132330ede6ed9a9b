use chrono::DateTime;
use serde_json::value::RawValue;

use super::*;
use crate::model::{Info, Presence, SessionKey};

fn envelope(message: BusMessage) -> Envelope {
    Envelope { node: NodeName::new("n").unwrap(), incarnation: Epoch::new(), number: 4, message }
}

fn identity() -> ClusterIdentity {
    ClusterIdentity::new([1; 32], [2; 16])
}

/// The envelope as a node reads it that is in its channel.
fn read(envelope: &Envelope) -> Envelope {
    let channel = envelope.channel().name();
    Envelope::decode(&envelope.encode(&identity()), &channel, &identity()).unwrap()
}

fn json(envelope: &Envelope) -> String {
    let bytes = envelope.encode(&identity());
    String::from_utf8(bytes[CODE_BYTES..].to_vec()).unwrap()
}

fn read_json(json: &str) -> Result<Envelope, InvalidEnvelope> {
    Envelope::parse(json.as_bytes())
}

#[test]
fn an_envelope_is_decoded_as_it_was_encoded() {
    let room = RoomName::new("lobby").unwrap();
    let connection = ConnectionId::new();
    let at = DateTime::from_timestamp_micros(1_700_000_000_123_456).unwrap();
    let record = PresenceRecord {
        presence: Presence {
            connection,
            user: UserId::new("ada").ok(),
            info: Info::new(serde_json::json!({"a": 1.5})).unwrap(),
            joined_at: at,
            updated_at: at + chrono::TimeDelta::seconds(1),
        },
        last_seen: at,
        session: SessionKey::new("tab").ok(),
        fixed: Info::new(serde_json::json!({"role": "admin"})).unwrap(),
        fading: Some(at),
        generation: 3,
        current_connection: Some(ConnectionId::new()),
    };
    let bare =
        Presence { connection, user: None, info: Info::EMPTY, joined_at: at, updated_at: at };
    let (here, bare) = (RowChange::Here(record), RowChange::Here(PresenceRecord::new(bare)));
    let gone = RowChange::Gone { connection, cause: Cause::SlowConsumer };
    let changes = vec![here, bare, gone];
    let changes = RoomChanges { room: room.clone(), number: 7, previous: 5, changes };
    let sent = envelope(BusMessage::Changes(changes.clone()));
    let read_back = read(&sent);
    let place = |of: &Envelope| (of.node.clone(), of.incarnation, of.number);
    assert_eq!(place(&read_back), place(&sent));
    assert_eq!(read_back.channel(), Channel::Room(room.clone()));
    assert!(matches!(read_back.message, BusMessage::Changes(read) if read == changes));

    let payload = RawValue::from_string(r#"{"z":1,"a":1.0}"#.to_owned()).unwrap();
    let content = Content::Event { event: "shout".into(), payload };
    let published = RoomMessage { room, content, from: None, except: Some(connection) };
    let read = read(&envelope(BusMessage::Published(published)));
    let BusMessage::Published(published) = read.message else { panic!("{read:?}") };
    let Content::Event { event, payload } = published.content else { panic!("{published:?}") };
    assert_eq!((&*event, payload.get()), ("shout", r#"{"z":1,"a":1.0}"#));
}

#[test]
fn an_update_of_a_user_is_decoded_as_it_was_encoded_and_goes_to_all_nodes() {
    let info = Info::new(serde_json::json!({"status": "away"})).unwrap();
    let user = UserId::new("ada").unwrap();
    let sent = envelope(BusMessage::UpdateUser(UpdateUser { user, info }));
    assert_eq!(sent.channel(), Channel::Nodes);
    let BusMessage::UpdateUser(update) = read(&sent).message else { panic!("another message") };
    assert_eq!((update.user.as_str(), update.info.as_json()), ("ada", r#"{"status":"away"}"#));
    // An earlier version allowed it.
    let deep = r#"{"a":"#.repeat(100) + "1" + &"}".repeat(100);
    let read = read_json(&json(&sent).replace(r#"{"status":"away"}"#, &deep)).unwrap();
    let BusMessage::UpdateUser(update) = read.message else { panic!("another message") };
    assert_eq!(update.info.as_json(), deep);
}

#[test]
fn changes_that_only_an_earlier_version_allowed_are_to_be_read_from_the_database() {
    let room = RoomName::new("lobby").unwrap();
    let gone = RowChange::Gone { connection: ConnectionId::new(), cause: Cause::Left };
    let changes = RoomChanges { room: room.clone(), number: 7, previous: 5, changes: vec![gone] };
    let sent = envelope(BusMessage::Changes(changes));
    let text = json(&sent);
    let here = |user: &str, depth: usize| {
        let info = r#"{"a":"#.repeat(depth) + "1" + &"}".repeat(depth);
        let here = format!(
            r#"{{"here":{{"connection":"{}","user":"{user}","info":{info},"joined_at":0,"last_seen":0}}}},"#,
            ConnectionId::new(),
        );
        let with = text.replace(r#"[{"gone""#, &format!(r#"[{here}{{"gone""#));
        let BusMessage::Changes(read) = read_json(&with).unwrap().message else { panic!("{with}") };
        (read.room, read.number, read.previous, read.changes.len())
    };
    assert_eq!(here("ada", 100), (room.clone(), 7, 5, 2), "deeper than is allowed today");
    assert_eq!(here("ada", 126), (room.clone(), 7, 7, 0));
    assert_eq!(here("toString", 1), (room, 7, 7, 0));
}

#[test]
fn what_is_not_of_this_format_is_refused() {
    let text = json(&envelope(BusMessage::Missed));
    let later = text.replace("\"v\":2", "\"v\":3");
    assert_eq!(read_json(&later).unwrap_err(), InvalidEnvelope::Format { format: 3 });
    for bad in ["", "{}", "[]", "{\"v\":2}", &text[1..], &text.replace("missed", "dance")] {
        let refused = read_json(bad);
        assert!(matches!(refused, Err(InvalidEnvelope::Malformed(_))), "{bad}");
    }
    assert!(read_json(&text.replace("\"n\"", "\"a b\"")).is_err());
}

#[test]
fn what_is_forged_changed_or_moved_to_another_channel_does_not_verify() {
    let content = Content::Text("hello".into());
    let room = RoomName::new("lobby").unwrap();
    let said = RoomMessage { room, content, from: None, except: None };
    let sent = envelope(BusMessage::Published(said));
    let bytes = sent.encode(&identity());
    let refused = |bytes: &[u8], channel: &str, identity: &ClusterIdentity| {
        let refused = Envelope::decode(bytes, channel, identity);
        assert!(matches!(refused, Err(InvalidEnvelope::Unverified)), "{refused:?}");
    };
    assert!(Envelope::decode(&bytes, "room:lobby", &identity()).is_ok());
    for place in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[place] ^= 1;
        refused(&changed, "room:lobby", &identity());
        refused(&bytes[..place], "room:lobby", &identity());
    }
    refused(&[bytes.as_slice(), b" "].concat(), "room:lobby", &identity());
    for channel in ["nodes", "room:garden", "room:lobb", "room:lobby1", ""] {
        refused(&bytes, channel, &identity());
    }
    refused(&bytes, "room:lobby", &ClusterIdentity::new([3; 32], [2; 16]));
    // As the version before had it, and with the code of another envelope.
    refused(&bytes[CODE_BYTES..], "room:lobby", &identity());
    let other = envelope(BusMessage::Kick(Kick::User(UserId::new("ada").unwrap())));
    let other = other.encode(&identity());
    refused(&[&bytes[..CODE_BYTES], &other[CODE_BYTES..]].concat(), "nodes", &identity());
}

#[test]
fn the_bytes_are_those_of_the_format() {
    let mut sent = envelope(BusMessage::Missed);
    sent.incarnation = "0000000000000007".parse().unwrap();
    let connection = ConnectionId::from_u128(10);
    let room = RoomName::new("lobby").unwrap();
    let at = DateTime::from_timestamp_micros(5).unwrap();
    let bare =
        Presence { connection, user: None, info: Info::EMPTY, joined_at: at, updated_at: at };
    let changes = vec![
        RowChange::Here(PresenceRecord::new(bare)),
        RowChange::Yielded { connection },
        RowChange::Gone { connection, cause: Cause::Left },
    ];
    let payload = RawValue::from_string("[1.0]".to_owned()).unwrap();
    let published = |content| {
        let (from, except) = (Some((UserId::new("ada").ok(), connection)), Some(connection));
        let room = RoomName::new("lobby").unwrap();
        BusMessage::Published(RoomMessage { room, content, from, except })
    };
    let from = r#""from":["ada","0000000000000000000000000000000a"],"except":"0000000000000000000000000000000a"}}"#;
    let content = |json: &str| format!(r#"{{"said":{{"room":"lobby","content":{json},{from}"#);
    let reaped = BusMessage::Reaped {
        node: sent.node.clone(),
        incarnation: sent.incarnation,
        leaving: true,
    };
    for (message, told) in [
        (
            BusMessage::Changes(RoomChanges {
                room: room.clone(),
                number: 7,
                previous: 5,
                changes,
            }),
            concat!(
                r#"{"changes":{"room":"lobby","number":7,"previous":5,"changes":["#,
                r#"{"here":{"connection":"0000000000000000000000000000000a","user":null,"#,
                r#""joined_at":5,"last_seen":5,"turn":0}},"#,
                r#"{"yielded":{"connection":"0000000000000000000000000000000a"}},"#,
                r#"{"gone":{"connection":"0000000000000000000000000000000a","cause":"left"}}]}}"#,
            )
            .to_owned(),
        ),
        (published(Content::Text("hi".into())), content(r#"{"text":"hi"}"#)),
        (published(Content::Json(payload.clone())), content(r#"{"json":[1.0]}"#)),
        (
            published(Content::Event { event: "shout".into(), payload }),
            content(r#"{"event":["shout",[1.0]]}"#),
        ),
        (
            BusMessage::Addressed(AddressedMessage {
                to: Audience::User(UserId::new("ada").unwrap()),
                content: Content::Text("hi".into()),
                from: None,
                except: None,
            }),
            concat!(
                r#"{"addressed":{"to":{"user":"ada"},"content":{"text":"hi"},"#,
                r#""from":null,"except":null}}"#,
            )
            .to_owned(),
        ),
        (
            BusMessage::Addressed(AddressedMessage {
                to: Audience::Rooms(vec![room.clone()]),
                content: Content::Text("hi".into()),
                from: Some((None, connection)),
                except: Some(connection),
            }),
            format!(
                r#"{{"addressed":{{"to":{{"rooms":["lobby"]}},"content":{{"text":"hi"}},{}"#,
                {
                    let connection = "0000000000000000000000000000000a";
                    format!(r#""from":[null,"{connection}"],"except":"{connection}"}}}}"#)
                }
            ),
        ),
        (
            BusMessage::KickFrom {
                room: room.clone(),
                whom: Kick::User(UserId::new("ada").unwrap()),
            },
            r#"{"kick_from":{"room":"lobby","whom":{"user":"ada"}}}"#.to_owned(),
        ),
        (BusMessage::Close { room: room.clone() }, r#"{"close":{"room":"lobby"}}"#.to_owned()),
        (
            BusMessage::Kick(Kick::Connection(connection)),
            r#"{"kick":{"connection":"0000000000000000000000000000000a"}}"#.to_owned(),
        ),
        (
            BusMessage::Kick(Kick::User(UserId::new("ada").unwrap())),
            r#"{"kick":{"user":"ada"}}"#.to_owned(),
        ),
        (
            BusMessage::Heartbeat { number: 3, rooms: vec![(room, 7)] },
            r#"{"beat":{"number":3,"rooms":[["lobby",7]]}}"#.to_owned(),
        ),
        (
            reaped,
            r#"{"buried":{"node":"n","incarnation":"0000000000000007","leaving":true}}"#.to_owned(),
        ),
        (BusMessage::Stopping, r#""stopping""#.to_owned()),
        (BusMessage::Missed, r#""missed""#.to_owned()),
    ] {
        sent.message = message;
        let expected = format!(
            r#"{{"v":2,"node":"n","incarnation":"0000000000000007","number":4,"told":{told}}}"#
        );
        assert_eq!(json(&sent), expected);
        assert_eq!(json(&read_json(&expected).unwrap()), expected);
    }
}
