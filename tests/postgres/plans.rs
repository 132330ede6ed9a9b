//! How PostgreSQL finds the rows: what it does, as it tells in its log.

use std::time::Duration;

use actix_presence::{
    Epoch, Kick, UserId,
    store::{Batch, PostgresStore, Seen, SharedStore, Store},
    testing::store_contract::{LEASE, at, id, node, room, row, seen, upserts},
};

use crate::{
    contract::{OnPostgres, options, url},
    server::Postgres,
};

/// 20,000 rooms with 2 presences each, of 1,000 nodes, a twentieth of them stale, half with a user.
const FILL: &str = "
    INSERT INTO nodes (id, started_at, lease_expires_at, incarnation)
        SELECT 'node-' || n, '2023-11-14', '2023-11-14 22:13:30', lpad(to_hex(n), 16, '0')
        FROM generate_series(1, 1000) AS n;
    INSERT INTO rooms (channel_name, created_at)
        SELECT 'room ' || n, '2023-11-14' FROM generate_series(1, 20000) AS n;
    INSERT INTO presences (room_id, channel_name, user_id, joined_at, last_seen, node_id)
        SELECT rooms.id, lpad(to_hex(rooms.id * 10 + n), 32, '0'),
            CASE n WHEN 2 THEN 'user ' || rooms.id % 5000 END, '2023-11-14',
            '2023-11-14 22:13:20'::timestamp - (CASE rooms.id % 20 WHEN 0 THEN 60 ELSE 0 END) * interval '1 s',
            'node-' || (rooms.id + n) % 1000 + 1
        FROM rooms CROSS JOIN generate_series(1, 2) AS n;
    ANALYZE";

#[test]
fn no_query_walks_the_tables() {
    let server = Postgres::start();
    let fixture = OnPostgres::on(&server);
    fixture.sql(FILL);
    let database = fixture.url.rsplit('/').next().unwrap();
    server.admin(&format!(
        "ALTER DATABASE {database} SET session_preload_libraries = 'auto_explain';
         ALTER DATABASE {database} SET auto_explain.log_min_duration = 0",
    ));
    let mut store = PostgresStore::open_with(&url(&fixture.url), options()).unwrap();
    let mut check = |what: &str, call: &mut dyn FnMut(&mut PostgresStore)| {
        let before = server.log().len();
        call(&mut store);
        let log = server.log().split_off(before);
        assert!(log.contains("Query Text"), "{what}: nothing was explained\n{log}");
        for table in ["presences", "rooms"] {
            let walks = log.contains(&format!("Seq Scan on {table}"));
            assert!(!walks, "{what} walks {table}\n{log}");
        }
    };
    let n = node("node-1");
    let some = || (1..20).map(|n| (room(&format!("room {}", n * 7)), id(n * 70 + 1)));
    check("start", &mut |store| drop(store.start(&n, at(0), LEASE).unwrap()));
    check("apply", &mut |store| {
        let rows = (1..20).map(|n| row(&format!("room {}", n * 7), n * 70 + 1, None));
        let more = (1..20).map(|n| row(&format!("new room {n}"), n, None));
        let _ = store.apply(&n, &upserts(rows.chain(more)), at(0)).unwrap();
        let seen = (1..20).map(|n| Seen { rooms: 9, ..seen(n * 70 + 1, 1) }).collect();
        let batch = Batch { deletes: some().collect(), seen, ..Batch::default() };
        let _ = store.apply(&n, &batch, at(0)).unwrap();
    });
    check("renew", &mut |store| {
        let _ = store.renew(&n, at(0), LEASE).unwrap();
    });
    check("read", &mut |store| {
        let rooms: Vec<_> = some().map(|(room, _)| room).collect();
        assert_eq!(store.read(&rooms, at(0)).unwrap().rows.len(), 2 * rooms.len());
    });
    check("find", &mut |store| {
        let _ = store.find(&room("room 7"), &[id(71), id(72)]).unwrap();
    });
    check("held", &mut |store| {
        let presences: Vec<_> = some().collect();
        assert_eq!(store.held(&presences).unwrap().len(), presences.len());
    });
    check("list", &mut |store| {
        assert_eq!(store.list(Some(&room("room 5")), 50).unwrap().len(), 50);
    });
    let user = UserId::new("user 8").unwrap();
    check("where_is", &mut |store| drop(store.where_is(&user).unwrap()));
    check("connections", &mut |store| {
        assert_ne!(store.connections(&Kick::User(user.clone())).unwrap(), []);
        assert_ne!(store.connections(&Kick::Connection(id(72))).unwrap(), []);
    });
    check("receivers", &mut |store| {
        assert_ne!(store.receivers(&Kick::User(user.clone())).unwrap(), []);
        assert_ne!(store.receivers(&Kick::Connection(id(72))).unwrap(), []);
    });
    check("reap", &mut |store| {
        let second: Epoch = "0000000000000002".parse().unwrap();
        let _ = store.reap(&node("node-2"), second, at(100)).unwrap();
    });
    check("hand_over", &mut |store| {
        let _ = store.hand_over(&n, at(0), LEASE).unwrap();
    });
    check("stop", &mut |store| {
        let _ = store.stop(&n).unwrap();
    });
    check("prune_presences", &mut |store| {
        let pruned = store.prune_presences(at(30), Duration::from_secs(60)).unwrap();
        assert!(pruned > 1900, "{pruned}");
    });
}
