//! A bus that takes what nodes tell and passes nothing on, without a word.

use std::time::Duration;

use super::{
    cluster::{LEASE, World},
    scripts::{MOMENT, enter, lobby, story},
};
use crate::{
    messages::{BusState, GetStatus, Status},
    testing::store_contract::Verb,
};

/// A silence is judged with each renewal, and rooms are read with the next one that is due.
const TOLD: Duration = LEASE.saturating_mul(3);

/// The nodes that a node does not hear.
async fn unheard(world: &World, place: usize) -> Vec<String> {
    let node = world.nodes[place].as_ref().unwrap();
    let status = node.registry.send(GetStatus).await.unwrap();
    assert_eq!((status.bus, status.nodes), (BusState::Up, 3));
    names(&status)
}

fn names(status: &Status) -> Vec<String> {
    status.unheard.iter().map(|one| one.node.to_string()).collect()
}

#[test]
fn nodes_that_hear_nothing_of_each_other_agree_by_the_database_and_name_each_other() {
    story(|mut world| async move {
        assert_eq!(unheard(&world, 0).await, [""; 0]);
        world.nodes.iter().flatten().for_each(|node| node.bus.hold());
        tokio::time::sleep(TOLD).await;
        assert_eq!(unheard(&world, 0).await, ["n1", "n2"]);
        assert_eq!(unheard(&world, 2).await, ["n0", "n1"]);
        let mut all = [0, 1, 2].map(|client| enter(&mut world, client, client, &lobby()));
        all.sort_unstable();
        tokio::time::sleep(LEASE + MOMENT).await;
        for place in 0..3 {
            assert_eq!(world.seen(place, &lobby()).await, all, "on n{place}");
        }
        super::schedule::Step::Disconnect { client: 0, goodbye: true }.take(&mut world).await;
        tokio::time::sleep(LEASE + MOMENT).await;
        assert_eq!(world.seen(1, &lobby()).await.len(), 2);

        world.nodes.iter().flatten().for_each(|node| node.bus.release());
        tokio::time::sleep(MOMENT).await;
        assert_eq!(unheard(&world, 0).await, [""; 0]);
    });
}

#[test]
fn one_node_that_is_not_heard_is_named_by_those_who_do_not_hear_it() {
    story(|mut world| async move {
        world.nodes[0].as_ref().unwrap().bus.lose_next(usize::MAX);
        tokio::time::sleep(TOLD).await;
        assert_eq!(unheard(&world, 0).await, [""; 0]);
        assert_eq!(unheard(&world, 1).await, ["n0"]);
        let on_n0 = enter(&mut world, 0, 0, &lobby());
        tokio::time::sleep(LEASE + MOMENT).await;
        assert_eq!(world.seen(1, &lobby()).await, [on_n0]);
    });
}

#[test]
fn a_node_whose_own_bus_is_down_blames_nobody_and_reads_what_the_others_do() {
    story(|mut world| async move {
        let status = async |world: &World| {
            let node = world.nodes[0].as_ref().unwrap();
            node.registry.send(GetStatus).await.unwrap()
        };
        let here = enter(&mut world, 0, 0, &lobby());
        world.nodes[0].as_ref().unwrap().bus.cut();
        tokio::time::sleep(TOLD).await;
        let during = status(&world).await;
        assert!(matches!(during.bus, BusState::Down(_)), "{:?}", during.bus);
        assert_eq!(names(&during), [""; 0]);
        assert_eq!(unheard(&world, 1).await, ["n0"]);
        let mut all = [here, enter(&mut world, 2, 1, &lobby())];
        all.sort_unstable();
        tokio::time::sleep(LEASE + MOMENT).await;
        assert_eq!(world.seen(0, &lobby()).await, all);

        world.nodes[0].as_ref().unwrap().bus.heal();
        tokio::time::sleep(MOMENT).await;
        assert_eq!(unheard(&world, 0).await, [""; 0]);
        // Whose silence is their own is named as before.
        world.nodes[1].as_ref().unwrap().bus.lose_next(usize::MAX);
        tokio::time::sleep(TOLD).await;
        assert_eq!(unheard(&world, 0).await, ["n1"]);
    });
}

/// After that two beats are missing, and somebody has looked.
const TWO_BEATS: Duration = Duration::from_secs(9);

#[test]
fn a_dead_node_is_named_before_its_lease_is_over_and_forgotten_with_it() {
    story(|mut world| async move {
        world.kill(0).await;
        tokio::time::sleep(TWO_BEATS).await;
        for place in [1, 2] {
            assert_eq!(unheard(&world, place).await, ["n0"]);
        }
        tokio::time::sleep(LEASE).await;
        let status = world.nodes[1].as_ref().unwrap().registry.send(GetStatus).await.unwrap();
        assert_eq!((status.nodes, names(&status)), (2, Vec::new()));
    });
}

#[test]
fn nodes_that_have_lost_their_database_beat_and_name_nobody() {
    story(|world| async move {
        let links = || world.nodes.iter().flatten().flat_map(|node| &node.database);
        links().for_each(crate::testing::MemoryLink::cut);
        for _ in 0..8 {
            tokio::time::sleep(TWO_BEATS).await;
            for place in 0..3 {
                assert_eq!(unheard(&world, place).await, [""; 0]);
            }
        }
        // Who does not beat is named without the database, too.
        world.nodes[1].as_ref().unwrap().bus.lose_next(usize::MAX);
        tokio::time::sleep(TWO_BEATS).await;
        assert_eq!(unheard(&world, 0).await, ["n1"]);
    });
}

#[test]
fn a_row_that_the_database_refuses_is_not_written_again_with_each_reading() {
    story(|mut world| async move {
        let refused = enter(&mut world, 0, 0, &lobby());
        world.database.refuse(Verb::Insert, refused);
        tokio::time::sleep(MOMENT).await;
        assert_eq!(world.database.rows().len(), 0);
        // From now on rooms are read once a lease.
        world.nodes[1].as_ref().unwrap().bus.lose_next(usize::MAX);
        tokio::time::sleep(TOLD).await;
        let written = async |world: &World| {
            let node = world.nodes[0].as_ref().unwrap();
            node.registry.send(GetStatus).await.unwrap().counters.rows_written
        };
        let (before, reads) = (written(&world).await, world.database.reads());
        tokio::time::sleep(LEASE * 3).await;
        assert!(world.database.reads() > reads);
        assert_eq!(written(&world).await, before);
        assert_eq!(world.seen(0, &lobby()).await, [refused]);
    });
}
