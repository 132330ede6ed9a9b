use std::fmt::Debug;

use chrono::DateTime;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;
use crate::model::{
    Activity, Cause, ConnectionId, Diff, Info, Left, Member, NodeName, Offline, PresenceState,
    RoomSummary, SeenPresence, Update, UserId,
};

/// The JSON of a value, from which the same value is read; other formats have the same. Without the names of fields
/// the same value is read, too.
#[track_caller]
fn json_of<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T) -> Value {
    let text = serde_json::to_string(value).unwrap();
    assert_eq!(&serde_json::from_str::<T>(&text).unwrap(), value, "{text}");
    let json = serde_json::to_value(value).unwrap();
    assert_eq!(&T::deserialize(&json).unwrap(), value, "{json}");
    let mut cbor = Vec::new();
    ciborium::into_writer(value, &mut cbor).unwrap();
    assert_eq!(ciborium::from_reader::<Value, _>(&*cbor).unwrap(), json);
    assert_eq!(&ciborium::from_reader::<T, _>(&*cbor).unwrap(), value, "{json}");
    let message_pack = rmp_serde::to_vec_named(value).unwrap();
    assert_eq!(rmp_serde::from_slice::<Value>(&message_pack).unwrap(), json);
    assert_eq!(&rmp_serde::from_slice::<T>(&message_pack).unwrap(), value, "{json}");
    let positional = rmp_serde::to_vec(value).unwrap();
    assert_eq!(&rmp_serde::from_slice::<T>(&positional).unwrap(), value, "{json}");
    json
}

fn info() -> Value {
    json!({ "n": 1.5, "big": u64::MAX, "least": i64::MIN, "é": [null, true, { "": "\u{0}\"" }] })
}

fn presence(id: u128, user: Option<&str>) -> Presence {
    Presence {
        connection: ConnectionId::from_u128(id),
        user: user.map(|user| UserId::new(user).unwrap()),
        info: Info::new(info()).unwrap(),
        joined_at: DateTime::from_timestamp_micros(1_767_225_600_000_001).unwrap(),
        updated_at: DateTime::from_timestamp_micros(1_767_225_601_000_000).unwrap(),
    }
}

fn left(id: u128, user: Option<&str>) -> Left {
    Left {
        presence: presence(id, user),
        connection: ConnectionId::from_u128(7),
        cause: Cause::NodeLost,
        last_seen: DateTime::from_timestamp(1_767_225_660, 0).unwrap(),
        activity: Activity::Frame,
        joined_version: 3,
    }
}

fn presence_json(id: u128, user: Option<&str>) -> Value {
    json!({
        "channel_name": format!("{id:032x}"),
        "user": user,
        "info": info(),
        "joined_at": "2026-01-01T00:00:00.000001Z",
        "updated_at": "2026-01-01T00:00:01.000000Z",
    })
}

fn room() -> RoomName {
    RoomName::new("lobby").unwrap()
}

#[test]
fn presences_are_encoded_as_in_the_api_and_read_again() {
    assert_eq!(json_of(&presence(1, None)), presence_json(1, None));
    assert_eq!(json_of(&presence(2, Some("ada"))), presence_json(2, Some("ada")));
    let new = Presence { updated_at: presence(1, None).joined_at, ..presence(1, None) };
    assert_eq!(json_of(&new).get("updated_at"), None);
    assert_eq!(json_of(&vec![new, presence(1, None)])[1], presence_json(1, None));
    let last_seen = DateTime::from_timestamp(1_767_225_660, 0).unwrap();
    let mut seen = SeenPresence {
        presence: presence(1, None),
        last_seen,
        activity: Activity::Heartbeat,
        joined_version: 7,
        state: PresenceState::Live,
        node: None,
    };
    let mut expected = presence_json(1, None);
    expected["last_seen"] = json!("2026-01-01T00:01:00.000000Z");
    expected["activity"] = json!("heartbeat");
    expected["joined_version"] = json!(7);
    expected["state"] = json!("live");
    expected["node"] = Value::Null;
    assert_eq!(json_of(&seen), expected);
    seen.state = PresenceState::Fading { until: last_seen };
    seen.node = Some(NodeName::new("b").unwrap());
    expected["state"] = json!("fading");
    expected["until"] = json!("2026-01-01T00:01:00.000000Z");
    expected["node"] = json!("b");
    assert_eq!(json_of(&seen), expected);
}

#[test]
fn rooms_and_members_are_encoded_as_in_the_api_and_read_again() {
    let occupancy = Occupancy { connections: 3, users: 1, anonymous: 2 };
    assert_eq!(json_of(&occupancy), json!({ "connections": 3, "users": 1, "anonymous": 2 }));
    let summary = RoomSummary { room: room(), occupancy, version: 5 };
    let expected = json!({
        "channel_name": "lobby", "connections": 3, "users": 1, "anonymous": 2, "version": 5,
    });
    assert_eq!(json_of(&summary), expected);
    let member = Member { id: UserId::new("ada").unwrap(), info: Info::EMPTY, connections: 2 };
    assert_eq!(json_of(&member), json!({ "id": "ada", "info": {}, "connections": 2 }));
    let member = Member { info: Info::new(info()).unwrap(), ..member };
    assert_eq!(json_of(&member), json!({ "id": "ada", "info": info(), "connections": 2 }));
}

#[test]
fn a_snapshot_that_is_read_counts_and_applies_diffs_like_the_original() {
    let mut snapshot = Snapshot::empty(room(), Epoch::new(), 4);
    assert_eq!(json_of(&snapshot)["presences"], json!([]));
    for member in [presence(1, None), presence(2, Some("ada")), presence(3, Some("ada"))] {
        snapshot.fold_in(&member);
    }
    let expected = json!({
        "channel_name": "lobby",
        "epoch": snapshot.epoch(),
        "version": 4,
        "presences": [
            presence_json(1, None), presence_json(2, Some("ada")), presence_json(3, Some("ada")),
        ],
    });
    assert_eq!(json_of(&snapshot), expected);
    let mut copy = Snapshot::deserialize(&expected).unwrap();
    let mut diff = Diff::new(room(), 5);
    diff.joins.push(presence(4, Some("bob")));
    snapshot.apply(&diff);
    copy.apply(&diff);
    assert_eq!(copy, snapshot);
    assert_eq!(copy.occupancy(), Occupancy { connections: 4, users: 2, anonymous: 1 });
}

#[test]
fn a_snapshot_that_shows_no_members_keeps_its_counts_and_counts_what_comes_and_goes() {
    let mut full = Snapshot::empty(room(), Epoch::new(), 4);
    for member in [presence(1, None), presence(2, Some("ada")), presence(3, Some("ada"))] {
        full.fold_in(&member);
    }
    let mut counts = full.without_members();
    let counted =
        |connections, users, anonymous| json!(Occupancy { connections, users, anonymous });
    let json = json_of(&counts);
    assert_eq!((&json["presences"], &json["occupancy"]), (&json!([]), &counted(3, 1, 1)));
    let mut copy = Snapshot::deserialize(&json).unwrap();
    // Another connection of somebody counted, somebody new who was anonymous, and one connection less.
    let mut diff = Diff::new(room(), 5);
    diff.joins = vec![presence(4, Some("ada")), presence(5, None)];
    diff.leaves = vec![left(2, Some("ada"))];
    diff.updates = vec![Update { before: presence(1, None), after: presence(1, Some("bob")) }];
    diff.online = vec![UserId::new("bob").unwrap()];
    for snapshot in [&mut full, &mut counts, &mut copy] {
        snapshot.apply(&diff);
        assert_eq!(json!(snapshot.occupancy()), counted(4, 2, 1));
    }
    assert_eq!(copy, counts);
    assert_eq!(counts.presences().count(), 0);
    assert_eq!(json_of(&full).get("occupancy"), None);
    // All go, and somebody comes.
    let mut diff = Diff::new(room(), 6);
    diff.leaves =
        vec![left(1, Some("bob")), left(3, Some("ada")), left(4, Some("ada")), left(5, None)];
    diff.offline = ["ada", "bob"]
        .map(|user| Offline { user: UserId::new(user).unwrap(), cause: Cause::Left })
        .into();
    counts.apply(&diff);
    assert!(counts.is_empty());
    assert_eq!(json_of(&counts)["occupancy"], counted(0, 0, 0));
    let mut diff = Diff::new(room(), 7);
    diff.joins = vec![presence(6, Some("cyd"))];
    diff.online = vec![UserId::new("cyd").unwrap()];
    counts.apply(&diff);
    assert_eq!(counts.presences().count(), 0);
    assert_eq!(json_of(&counts)["occupancy"], counted(1, 1, 0));
}

#[test]
fn a_snapshot_with_counts_that_cannot_be_is_refused() {
    let counting = |presences: Value, connections: usize, users: usize, anonymous: usize| {
        Snapshot::deserialize(&json!({
            "channel_name": "lobby",
            "epoch": Epoch::new(),
            "version": 4,
            "presences": presences,
            "occupancy": Occupancy { connections, users, anonymous },
        }))
    };
    let most = usize::MAX;
    for (connections, users, anonymous) in
        [(0, 0, 0), (3, 1, 1), (3, 3, 0), (3, 0, 3), (most, 0, most), (most, most, 0)]
    {
        let mut snapshot = counting(json!([]), connections, users, anonymous).unwrap();
        // However many there are: diffs may come from elsewhere, too.
        let mut diff = Diff::new(room(), 5);
        diff.joins = vec![presence(1, None), presence(2, Some("ada"))];
        diff.online = vec![UserId::new("ada").unwrap()];
        snapshot.apply(&diff);
        assert_eq!(snapshot.anonymous_count(), anonymous.saturating_add(1));
        let mut diff = Diff::new(room(), 6);
        diff.leaves = (0..5).map(|id| left(id, None)).collect();
        snapshot.apply(&diff);
        assert_eq!(snapshot.anonymous_count(), anonymous.saturating_add(1).saturating_sub(5));
    }
    let refused = |counted: Result<Snapshot, serde_json::Error>| {
        let error = counted.unwrap_err().to_string();
        assert_eq!(error, "counts that cannot be, or that stand beside presences");
    };
    for (connections, users, anonymous) in
        [(1, 1, 1), (2, 0, 1), (2, 3, 0), (0, 0, 1), (3, 1, 3), (most, most, most), (0, 1, most)]
    {
        refused(counting(json!([]), connections, users, anonymous));
    }
    refused(counting(json!([presence_json(1, None)]), 1, 0, 1));
}

#[test]
fn a_snapshot_with_a_connection_twice_is_refused() {
    let twice = json!({
        "channel_name": "lobby",
        "epoch": Epoch::new(),
        "version": 4,
        "presences": [presence_json(1, None), presence_json(1, Some("ada"))],
    });
    let error = Snapshot::deserialize(&twice).unwrap_err();
    assert_eq!(error.to_string(), "a connection is in the room twice");
}

#[test]
fn how_two_snapshots_differ_is_encoded_and_read_again() {
    let before = Snapshot::empty(room(), Epoch::new(), 4);
    let mut after = before.clone();
    after.fold_in(&presence(1, Some("ada")));
    let json = json_of(&after.since(&before));
    assert_eq!(json["joins"], json!([presence_json(1, Some("ada"))]));
    assert_eq!(json["online"], json!(["ada"]));
    assert_eq!(json_of(&before.since(&after))["leaves"], json["joins"]);
}

#[test]
fn an_info_is_an_object_wherever_it_is() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Flat {
        id: u32,
        #[serde(flatten)]
        info: Info,
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(tag = "kind", rename_all = "snake_case")]
    enum Tagged {
        Info(Info),
        Presence(Presence),
        Both { info: Info, presence: Presence },
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(untagged)]
    enum Any {
        Presence(Presence),
        Info(Info),
        Number(u32),
    }
    let with = |mut value: Value, key: &str, and: Value| {
        value[key] = and;
        value
    };
    let (an_info, ada) = (Info::new(info()).unwrap(), presence(1, Some("ada")));
    let ada_json = || presence_json(1, Some("ada"));
    assert_eq!(json_of(&an_info), info());
    assert_eq!(json_of(&Info::EMPTY), json!({}));
    assert_eq!(json_of(&Some(an_info.clone())), info());
    let flat = Flat { id: 7, info: an_info.clone() };
    assert_eq!(json_of(&flat), with(info(), "id", json!(7)));
    assert_eq!(json_of(&Flat { info: Info::EMPTY, ..flat }), json!({ "id": 7 }));
    let tagged = |kind: &str, value| with(value, "kind", json!(kind));
    assert_eq!(json_of(&Tagged::Info(an_info.clone())), tagged("info", info()));
    assert_eq!(json_of(&Tagged::Presence(ada.clone())), tagged("presence", ada_json()));
    let both = Tagged::Both { info: an_info.clone(), presence: ada.clone() };
    let both_json = json!({ "info": info(), "presence": ada_json() });
    assert_eq!(json_of(&both), tagged("both", both_json));
    assert_eq!(json_of(&Any::Presence(ada)), ada_json());
    assert_eq!(json_of(&Any::Info(an_info)), info());
}

#[test]
fn a_diff_is_encoded_whole_and_read_again() {
    let mut diff = Diff::new(room(), 5);
    let keys = json!({
        "channel_name": "lobby", "version": 5, "joins": [], "leaves": [], "updates": [],
        "online": [], "offline": [],
    });
    assert_eq!(json_of(&diff), keys);
    let ada = UserId::new("ada").unwrap();
    diff.joins.push(presence(1, None));
    diff.leaves.push(left(2, Some("ada")));
    diff.updates.push(Update { before: presence(4, None), after: presence(4, Some("ada")) });
    diff.online.push(ada.clone());
    diff.offline.push(Offline { user: ada, cause: Cause::NodeLost });
    let json = json_of(&diff);
    let mut left = presence_json(2, Some("ada"));
    left["connection"] = json!(ConnectionId::from_u128(7));
    left["cause"] = json!("node_lost");
    left["last_seen"] = json!("2026-01-01T00:01:00.000000Z");
    left["activity"] = json!("frame");
    left["joined_version"] = json!(3);
    assert_eq!(json["leaves"], json!([left]));
    let update =
        json!({ "before": presence_json(4, None), "after": presence_json(4, Some("ada")) });
    assert_eq!(json["updates"], json!([update]));
    assert_eq!(json["online"], json!(["ada"]));
    assert_eq!(json["offline"], json!([{ "user": "ada", "cause": "node_lost" }]));
}

#[test]
fn a_time_with_another_precision_or_zone_is_read_as_the_same_moment() {
    let mut json = presence_json(1, None);
    json["joined_at"] = json!("2026-01-01T01:00:00.000001999+01:00");
    assert_eq!(Presence::deserialize(&json).unwrap(), presence(1, None));
}
