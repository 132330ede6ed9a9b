//! Changes by other nodes, case by case.

use super::{
    Activity, Cause, ConnectionId, Diff, Info, Moment, NodeName, Presence, PresenceRecord, Remote,
    RemoteChange, RemoteOutcome, RoomName, Rooms, SessionKey, Snapshot, UserId, Yielded,
};

struct World {
    rooms: Rooms,
    folded: Snapshot,
    /// The same without members.
    counted: Snapshot,
    room: RoomName,
    me: NodeName,
}

fn at(secs: u64) -> Moment {
    let micros = secs * 1_000_000;
    Moment { monotonic: micros, wall: i64::try_from(micros).unwrap() }
}

fn id(number: u128) -> ConnectionId {
    ConnectionId::from_u128(number)
}

fn remote(number: u128, user: &str, node: &str, generation: u32) -> Remote {
    let (connection, user) = (id(number), UserId::new(user).ok());
    let joined_at = at(1).utc();
    let (info, updated_at) = (Info::EMPTY, joined_at);
    let presence = Presence { connection, user, info, joined_at, updated_at };
    let session = SessionKey::new("tab").ok();
    let node = NodeName::new(node).unwrap();
    let record = PresenceRecord { session, generation, ..PresenceRecord::new(presence) };
    Remote { node, record }
}

impl World {
    fn new() -> Self {
        let rooms = Rooms::default();
        let room = RoomName::new("lobby").unwrap();
        let me = NodeName::new("me").unwrap();
        let folded = rooms.snapshot(&room);
        Self { counted: folded.without_members(), folded, rooms, room, me }
    }

    /// Law 1 and 2: each change raises the version by one, and folds to the room, and to its counts.
    fn fold(&mut self, diff: Option<&Diff>) {
        if let Some(diff) = diff {
            assert_eq!(diff.version, self.folded.version() + 1);
            self.folded.apply(diff);
            self.counted.apply(diff);
        }
        let now = self.rooms.snapshot(&self.room);
        assert_eq!(self.folded, now);
        assert_eq!(self.counted, now.without_members());
    }

    fn apply(&mut self, changes: impl IntoIterator<Item = RemoteChange>) -> RemoteOutcome {
        let outcome = self.rooms.apply_remote(&self.room, changes, &self.me);
        self.fold(outcome.diff.as_ref());
        outcome
    }

    fn join(&mut self, number: u128, user: &str) {
        let user = UserId::new(user).ok();
        let diff = self.rooms.join(&self.room, id(number), user, Info::EMPTY, at(1)).unwrap();
        self.fold(diff.as_ref());
    }
}

fn gone(number: u128, node: &str) -> RemoteChange {
    let node = NodeName::new(node).unwrap();
    RemoteChange::Gone { node, connection: id(number), cause: Cause::Left }
}

#[test]
fn a_user_with_connections_on_two_nodes_is_online_and_offline_once() {
    let mut world = World::new();
    world.join(1, "ada");
    let joined = world.apply([RemoteChange::Present(remote(2, "ada", "b", 0))]).diff.unwrap();
    assert_eq!((joined.joins.len(), joined.online.len()), (1, 0));
    let left = world.rooms.leave(&world.room, id(1), Cause::Left);
    world.fold(left.as_ref());
    assert!(left.unwrap().offline.is_empty());
    let left = world.apply([gone(2, "b")]).diff.unwrap();
    assert_eq!(left.offline.len(), 1);
    assert!(!world.rooms.touch(id(2), Activity::Frame, at(2)), "its own node expires it");
}

#[test]
fn a_leave_counts_if_its_node_holds_the_presence() {
    let mut world = World::new();
    world.apply([RemoteChange::Present(remote(1, "ada", "b", 0))]);
    assert_eq!(world.apply([gone(1, "c"), gone(2, "b")]), RemoteOutcome::default());
    assert!(world.apply([gone(1, "b")]).diff.is_some());
    assert_eq!(world.apply([gone(1, "b")]), RemoteOutcome::default(), "twice");
}

#[test]
fn the_node_that_took_a_presence_last_holds_it_whatever_the_order_of_arrival() {
    let mut world = World::new();
    world.apply([RemoteChange::Present(remote(1, "ada", "b", 0))]);
    let adopted = world.rooms.adopt(&world.room, id(1), id(5), &world.me, at(2));
    assert_eq!(adopted, Ok(true));
    world.fold(None);
    assert_eq!(world.rooms.current_connection(&world.room, id(1)), Some(id(5)));
    assert_eq!(world.rooms.generation(&world.room, id(1)), Some(1));
    assert_eq!(
        world.apply([RemoteChange::Present(remote(1, "ada", "b", 0))]),
        RemoteOutcome::default()
    );
    assert_eq!(world.apply([gone(1, "b")]), RemoteOutcome::default());

    let outcome = world.apply([RemoteChange::Present(remote(1, "ada", "c", 2))]);
    let yielded = Yielded { presence: id(1), connection: id(5) };
    assert_eq!(outcome, RemoteOutcome { diff: None, yielded: vec![yielded] });
    assert_eq!(world.rooms.last_seen(id(5)), None);
    assert!(world.rooms.successors.is_empty() && world.rooms.generations.is_empty());
    assert!(!world.rooms.holds_any(&world.room));
    assert_eq!(
        world.apply([RemoteChange::Present(remote(1, "ada", "b", 1))]),
        RemoteOutcome::default()
    );
    assert_eq!(world.rooms.remote(&world.room, id(1)).unwrap().record.generation, 2);
}

#[test]
fn a_presence_whose_leave_and_rejoin_were_missed_is_not_there_twice() {
    let mut world = World::new();
    world.apply([RemoteChange::Present(remote(1, "ada", "b", 0))]);
    let mut again = remote(1, "ada", "b", 0);
    again.record.presence.joined_at = at(9).utc();
    let diff = world.apply([RemoteChange::Present(again)]).diff.unwrap();
    assert_eq!((diff.leaves.len(), diff.joins.len()), (1, 1));
    assert_eq!((diff.online.len(), diff.offline.len()), (0, 0), "its user was there all the time");
    assert_eq!(world.rooms.occupancy(&world.room).connections, 1);
}

#[test]
fn all_that_a_node_holds_ends_in_one_change_for_each_room() {
    let mut world = World::new();
    world.join(9, "cy");
    let changes = [(1, "b"), (2, "b"), (3, "c")];
    world
        .apply(changes.map(|(number, node)| RemoteChange::Present(remote(number, "ada", node, 0))));
    let node = NodeName::new("b").unwrap();
    let lost = world.rooms.lose(&node, Cause::NodeLost);
    assert_eq!((lost.len(), lost[0].leaves.len()), (1, 2));
    world.fold(lost.first());
    assert!(world.rooms.lose(&node, Cause::NodeLost).is_empty());
}

#[test]
fn rows_replace_whatever_was_received_before() {
    let mut world = World::new();
    world.join(9, "cy");
    let before = [remote(1, "ada", "b", 5), remote(2, "bob", "b", 0)];
    world.apply(before.map(RemoteChange::Present));
    let read = vec![remote(1, "ada", "c", 0), remote(3, "dan", "c", 0)];
    let nodes = world.rooms.changes_to(&world.room, read, |_| Cause::NodeLost);
    for (_, changes) in nodes {
        let outcome = world.rooms.apply_rows(&world.room, changes, &world.me);
        world.fold(outcome.diff.as_ref());
    }
    let held = |number| world.rooms.remote(&world.room, id(number)).map(|r| r.node.to_string());
    assert_eq!([1, 2, 3].map(held), [Some("c".into()), None, Some("c".into())]);
}

#[test]
fn a_room_that_is_no_longer_followed_keeps_the_presences_of_this_node() {
    let mut world = World::new();
    world.join(9, "cy");
    world.apply([RemoteChange::Present(remote(1, "ada", "b", 0))]);
    world.rooms.unfollow(&world.room);
    assert_eq!(world.rooms.occupancy(&world.room).connections, 1);
    assert!(world.rooms.holds(&world.room, id(9)));
    let tab = SessionKey::new("tab").unwrap();
    let ada = UserId::new("ada").unwrap();
    assert_eq!(world.rooms.remote_client(&world.room, &tab, Some(&ada)), None);
}

fn infos(world: &World) -> Vec<(u128, i64)> {
    let presences = world.rooms.snapshot(&world.room).presences().collect::<Vec<_>>();
    let number = |id: ConnectionId| (1..9).find(|number| ConnectionId::from_u128(*number) == id);
    presences
        .iter()
        .map(|one| (number(one.connection).unwrap(), one.joined_at.timestamp_micros()))
        .collect()
}

/// The info of the last one stands for the user.
#[test]
fn who_joins_comes_after_all_that_are_known_of_the_user_and_of_equal_times_the_higher_id_is_the_later()
 {
    let mut world = World::new();
    let mut ahead = remote(5, "ada", "n", 0);
    ahead.record.presence.joined_at = at(300).utc();
    ahead.record.presence.updated_at = at(300).utc();
    let mut behind = remote(6, "ada", "m", 0);
    behind.record.presence.joined_at = at(300).utc();
    behind.record.presence.updated_at = at(300).utc();
    world.apply([RemoteChange::Present(behind), RemoteChange::Present(ahead)]);
    assert_eq!(infos(&world), [(5, 300_000_000), (6, 300_000_000)]);
    // The clock of the others is ahead of this one, which is at second 1.
    world.join(2, "ada");
    assert_eq!(infos(&world).last(), Some(&(2, 300_000_001)));
    // Others, and the anonymous, have nothing to come after.
    world.join(3, "bob");
    world.join(4, "");
    assert_eq!(infos(&world)[0], (4, 1_000_000));
    assert_eq!(infos(&world).last(), Some(&(3, 1_000_000)));
}
