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
    beside::in_schema,
    contract::{OnPostgres, options, url},
    database::lines,
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
    fn start(server: &Postgres, mode: &str, settings: &str) -> Self {
        let places = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer", "/usr/local/bin/pgbouncer"];
        let program = places.map(PathBuf::from).into_iter().find(|place| place.exists());
        let program = program.expect("this test runs PgBouncer: install the package `pgbouncer`");
        let (port, to) = (free_port(), server.port());
        let configuration = server.directory().join(format!("pgbouncer-{port}.ini"));
        let text = format!(
            "[databases]\n* = host=127.0.0.1 port={to}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nauth_type = any\nunix_socket_dir =\npool_mode = {mode}\n\
             default_pool_size = 3\n{settings}\n[users]\n"
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
    let pooler = PgBouncer::start(&server, "transaction", "");
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
    let pooler = PgBouncer::start(&server, "session", "");
    let mut fixture = OnPostgres::on(&server);
    let mut store = PostgresStore::open(&url(&pooler.through(&fixture.url))).unwrap();
    let _ = store.start(&node("n"), at(0), LEASE).unwrap();
    write(&mut store, &upserts([row("a", 1, None)]));
    assert_eq!(fixture.rows().len(), 1);
}

/// PgBouncer refuses the `options` of a URL, or drops them where it is told to ignore them.
#[test]
fn behind_a_pooler_the_schema_is_that_of_the_option_or_of_the_role() {
    const IGNORE: &str = "ignore_startup_parameters = options";
    let server = Postgres::start();
    let database = server.fresh_database();
    let (_, name) = database.rsplit_once('/').unwrap();
    let mut app = PgConnection::establish(&database).unwrap();
    app.batch_execute("CREATE SCHEMA realtime; CREATE TABLE rooms (beds INT)").unwrap();
    let by_url = |pooler: &PgBouncer| {
        let by_url = format!("{}?options=-csearch_path%3Drealtime", pooler.through(&database));
        PostgresStore::open(&url(&by_url)).err()
    };
    let pooler = PgBouncer::start(&server, "session", "");
    let refused = by_url(&pooler);
    assert!(matches!(refused, Some(StoreError::Unavailable { .. })), "{refused:?}");
    assert!(refused.unwrap().to_string().contains("options"));
    let ignored = by_url(&PgBouncer::start(&server, "session", IGNORE));
    assert!(ignored.unwrap().to_string().contains("the schema `public`"));

    let through = url(&pooler.through(&database));
    assert!(PostgresStore::open_with(&through, in_schema("by_option")).is_ok());
    server.admin(&format!("ALTER ROLE presence IN DATABASE {name} SET search_path = realtime"));
    // The pooler keeps sessions that have the path of before.
    let pooler = PgBouncer::start(&server, "session", "");
    assert!(PostgresStore::open(&url(&pooler.through(&database))).is_ok());
    let tables =
        "SELECT schemaname::text AS line FROM pg_tables WHERE tablename = 'nodes' ORDER BY 1";
    assert_eq!(lines(&mut app, tables), ["by_option", "realtime"]);
}
