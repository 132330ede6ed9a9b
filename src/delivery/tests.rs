//! The routes are those of the rooms' members, and nothing stays behind.

use std::collections::BTreeSet;

use actix::prelude::*;
use proptest::prelude::*;

use super::*;
use crate::{
    messages::{DEFAULT_BACKLOG_LIMIT, Dialect, Feed, ForwardMessage, Forwarded, Joined},
    model::{Info, Moment, Rooms},
    testing::{Heard, Probe, Seen},
};

/// What is done, by which of the connections, in which of the rooms.
type Step = (u8, u8, u8);

const DIALECTS: [Dialect; 4] =
    [Dialect::Raw, Dialect::Json(Feed::Diff), Dialect::Json(Feed::None), Dialect::Phoenix];

fn name(room: u8) -> RoomName {
    RoomName::new(format!("room {room}")).unwrap()
}

fn id(connection: u8) -> ConnectionId {
    ConnectionId::from_u128(connection.into())
}

fn said(session: &mut Seen<Heard>) -> Vec<RoomName> {
    let heard = std::iter::from_fn(|| session.now());
    let rooms = heard.filter_map(|heard| match heard {
        Heard::Frame(ForwardMessage { room, kind: Forwarded::Message, .. }) => Some(room),
        _ => None,
    });
    rooms.collect()
}

async fn run(steps: Vec<Step>) {
    let now = Moment { monotonic: 0, wall: 0 };
    let mut rooms = Rooms::default();
    let mut delivery = Delivery::new(usize::MAX);
    let (addresses, mut sessions): (Vec<_>, Vec<_>) = (0..4).map(|_| Probe::<Heard>::new()).unzip();
    let mut inside: BTreeSet<(u8, u8)> = BTreeSet::new();
    let mut expected = vec![Vec::new(); sessions.len()];
    for (what, who, room) in steps {
        let (connection, address) = (id(who), &addresses[usize::from(who)]);
        match what {
            0..4 => {
                let joined = rooms.join(&name(room), connection, None, Info::EMPTY, now).unwrap();
                if let Some(diff) = joined {
                    delivery.changed(&diff, rooms.room(&diff.room), 0);
                }
                let (forward, dialect) = (address.clone().recipient(), DIALECTS[usize::from(what)]);
                let outlet = Outlet {
                    forward,
                    disconnect: None,
                    dialect,
                    backlog_limit: DEFAULT_BACKLOG_LIMIT,
                    socket: None,
                };
                let state = rooms.snapshot(&name(room));
                let joined = Joined { snapshot: state.clone(), changed: true };
                // Nobody asks for the answer.
                let answer = Answer { reply: tokio::sync::oneshot::channel().0, joined };
                delivery.enter(&state, Arrival { connection, outlet, courier: None, answer }, 0);
                inside.insert((room, who));
            }
            4 | 5 => {
                if let Some(diff) = rooms.leave(&name(room), connection, Cause::Left) {
                    delivery.changed(&diff, rooms.room(&diff.room), 0);
                }
                inside.remove(&(room, who));
            }
            6 => {
                rooms.leave_all(connection, Cause::Disconnected);
                delivery.forget(connection);
                inside.retain(|(_, one)| *one != who);
            }
            _ => {
                let content = Content::Text("hello".into());
                let message = Publication { content, from: None, joined: None, except: None };
                let taking = delivery.publish(&rooms.snapshot(&name(room)), message, 0);
                assert!(delivery.take_refused().is_none());
                let hear: Vec<_> = inside.iter().filter(|(one, _)| *one == room).collect();
                assert_eq!(taking.count(std::time::Duration::ZERO).await, hear.len());
                hear.iter().for_each(|(_, who)| expected[usize::from(*who)].push(name(room)));
            }
        }
        // Several steps in one turn, now and then.
        if room > 0 {
            delivery.end_turn(&rooms, 0);
        }
    }
    for (address, (session, expected)) in addresses.iter().zip(sessions.iter_mut().zip(expected)) {
        // The mailbox is a queue.
        let (room, kind) = (name(9), Forwarded::Closed);
        address.send(ForwardMessage::new(room, kind, "")).await.unwrap();
        assert_eq!(said(session), expected);
    }
    for who in 0..4 {
        delivery.disconnect(id(who), Cause::Kicked);
    }
    assert!(delivery.stays.is_empty() && delivery.routes.is_empty() && delivery.due.is_empty());
    assert!(delivery.couriers.is_idle());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn messages_go_to_who_is_inside_and_nothing_is_left_of_who_has_gone(
        steps in proptest::collection::vec((0..9_u8, 0..4_u8, 0..3_u8), 0..60),
    ) {
        System::new().block_on(run(steps));
    }
}
