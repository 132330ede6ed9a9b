//! PgBouncer in between.

use std::{
    fs,
    net::{Ipv4Addr, TcpStream},
    path::PathBuf,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use actix_presence::{
    store::{PostgresStore, Store, StoreError},
    testing::store_contract::{LEASE, StoreFixture, at, node, row, upserts, write},
};
use diesel::{
    Connection, PgConnection, QueryableByName, RunQueryDsl, connection::SimpleConnection,
    sql_query, sql_types::Text,
};

use crate::{
    contract::{OnPostgres, options, url},
    server::{Postgres, free_port},
};

/// How long PgBouncer may take to start.
const MAX_WAIT: Duration = Duration::from_secs(10);

/// A pooler in front of a server, with three sessions. It ends when it is dropped.
struct PgBouncer {
    process: Child,
    port: u16,
}

impl PgBouncer {
    fn start(server: &Postgres, mode: &str) -> Self {
        let places = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer", "/usr/local/bin/pgbouncer"];
        let program = places.map(PathBuf::from).into_iter().find(|place| place.exists());
        let program = program.expect("this test runs PgBouncer: install the package `pgbouncer`");
        let (port, to) = (free_port(), server.port());
        let configuration = server.directory().join(format!("pgbouncer-{mode}.ini"));
        let text = format!(
            "[databases]\n* = host=127.0.0.1 port={to}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nauth_type = any\nunix_socket_dir =\npool_mode = {mode}\n\
             default_pool_size = 3\n[users]\n"
        );
        // Of any user, since it is asked to be one.
        let text = text.replace(&format!("port={to}"), &format!("port={to} user=presence"));
        fs::write(&configuration, text).unwrap();
        let mut command = server.command_of(program);
        let process = command.arg(&configuration).stdout(Stdio::null()).stderr(Stdio::null());
        let pooler = Self { process: process.spawn().unwrap(), port };
        let started = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            assert!(started.elapsed() < MAX_WAIT, "PgBouncer does not start");
            thread::sleep(Duration::from_millis(20));
        }
        pooler
    }

    /// The URL of a database through the pooler.
    fn through(&self, database: &str) -> String {
        let (_, name) = database.rsplit_once('/').unwrap();
        format!("postgres://presence@127.0.0.1:{}/{name}", self.port)
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[derive(QueryableByName)]
struct Setting {
    #[diesel(sql_type = Text)]
    statement_timeout: String,
}

#[test]
fn a_pooler_that_gives_each_transaction_another_session_is_refused_by_its_name() {
    let server = Postgres::start();
    let pooler = PgBouncer::start(&server, "transaction");
    let database = server.fresh_database();
    // Whether others use it at the same time or not.
    let mut others = Vec::new();
    for busy in [0, 1, 2] {
        while others.len() < busy {
            let mut other = PgConnection::establish(&pooler.through(&database)).unwrap();
            other.batch_execute("BEGIN").unwrap();
            others.push(other);
        }
        let mut options = options();
        options.answer_timeout = Duration::from_secs(1);
        let through = url(&pooler.through(&database));
        let refused = PostgresStore::open_with(&through, options).err().unwrap();
        assert!(matches!(refused, StoreError::Unsuitable { .. }), "{busy}: {refused:?}");
        assert!(refused.to_string().contains("pool_mode = session"), "{refused}");
    }
    drop(others);
    // Nothing of ours is left in the sessions that others get.
    for _ in 0..5 {
        let mut stranger = PgConnection::establish(&pooler.through(&database)).unwrap();
        let show = sql_query("SELECT current_setting('statement_timeout') AS statement_timeout");
        let Setting { statement_timeout } = show.get_result(&mut stranger).unwrap();
        assert_eq!(statement_timeout, "0");
    }
}

#[test]
fn a_pooler_that_works_by_session_is_no_matter() {
    let server = Postgres::start();
    let pooler = PgBouncer::start(&server, "session");
    let mut fixture = OnPostgres::on(&server);
    let mut store = PostgresStore::open(&url(&pooler.through(&fixture.url))).unwrap();
    let _ = store.start(&node("n"), at(0), LEASE).unwrap();
    write(&mut store, &upserts([row("a", 1, None)]));
    assert_eq!(fixture.rows().len(), 1);
}
