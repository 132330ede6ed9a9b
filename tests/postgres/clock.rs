//! The clock of a real PostgreSQL beside that of a node.

use std::time::Duration;

use actix_presence::{
    Clock, ConnectionId, Flush, GetStatus, Join, Moment, PresenceConfig, RoomName,
    store::{PostgresOptions, PostgresStore, SharedStore},
    testing::{
        Heard, Probe,
        store_contract::{StoreFixture, at},
    },
};
use chrono::{TimeDelta, Utc};

use crate::contract::{OnPostgres, url};

/// What a call on this machine takes, at the most.
const ACCURACY: TimeDelta = TimeDelta::seconds(2);

#[test]
fn the_database_says_what_time_it_is_whatever_the_node_believes() {
    let fixture = OnPostgres::new();
    let options = PostgresOptions::default();
    let mut store = PostgresStore::open_with(&url(&fixture.url), options).unwrap();
    let before = Utc::now();
    let time = store.time(at(0)).unwrap();
    assert!((before - ACCURACY..Utc::now() + ACCURACY).contains(&time), "{time}");
    assert!(store.time(at(0)).unwrap() > time, "it goes on");
}

/// A server may show times in its own zone, and so may a database.
#[test]
fn the_time_is_in_utc_whatever_zone_the_database_has() {
    let fixture = OnPostgres::new();
    let name = fixture.url.rsplit('/').next().unwrap().split('?').next().unwrap().to_owned();
    fixture.sql(&format!(r#"ALTER DATABASE "{name}" SET timezone = 'Asia/Tokyo'"#));
    let options = PostgresOptions::default();
    let mut store = PostgresStore::open_with(&url(&fixture.url), options).unwrap();
    let time = store.time(at(0)).unwrap();
    assert!((time - Utc::now()).abs() < ACCURACY, "{time}");
}

#[actix::test]
async fn a_node_whose_clock_is_ahead_or_behind_says_so_and_shares_the_times_of_the_database() {
    for minutes in [5, -5] {
        let mut fixture = OnPostgres::new();
        let wrong = TimeDelta::minutes(minutes);
        let system = Clock::system();
        let clock = Clock::from_fn(move || {
            let now = system.now();
            Moment::new(now.monotonic(), now.utc() + wrong)
        });
        let presence = PresenceConfig::new(&fixture.url).clock(clock).start().unwrap();
        let registry = presence.registry();
        let ahead = registry.send(GetStatus).await.unwrap().clock_ahead.expect("it is measured");
        assert!((ahead - wrong).abs() < ACCURACY, "{ahead}");
        let (session, _heard) = Probe::<Heard>::new();
        let lobby = RoomName::new("lobby").unwrap();
        let join = Join::new(lobby, ConnectionId::new(), session.recipient());
        registry.send(join).await.unwrap().unwrap();
        registry.send(Flush).await.unwrap().unwrap();
        let row = fixture.rows().remove(0).1.record;
        for time in [row.presence.joined_at, row.last_seen] {
            assert!((time - Utc::now()).abs() < ACCURACY, "{time}, {minutes} minutes");
        }
        presence.shutdown(Duration::from_secs(5)).await.unwrap();
    }
}
