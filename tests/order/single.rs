//! One sentence of the order each.

use actix_presence::*;
use futures_util::FutureExt;

use crate::common::{Harness, room};

#[actix::test]
async fn the_joins_of_a_full_turn_are_all_answered_at_its_end() {
    const TURN: usize = 64;
    let t = Harness::new().await;
    let sessions: Vec<_> = (0..TURN).map(|_| t.session()).collect();
    let joins = sessions.iter().map(|session| t.registry.send(session.joining("lobby", None)));
    let joins: Vec<_> = joins.collect();
    for _ in 0..2 {
        // Questions begin no turn, and the second is answered after the one of the joins.
        t.registry.send(GetOccupancy { room: room("lobby") }).await.unwrap();
    }
    for (number, join) in joins.into_iter().enumerate() {
        assert!(join.now_or_never().is_some(), "join {number}");
    }
}
