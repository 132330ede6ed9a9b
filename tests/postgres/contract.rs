//! The contract of stores.

use actix_presence::{
    ConnectionId, NodeName, Presence, RoomName, SessionKey, UserId,
    store::{
        DatabaseUrl, LeaseClock, PostgresOptions, PostgresStore, PostgresUrl, PresenceRecord, Row,
        SchemaName,
    },
    testing::store_contract::{ManualChange, SharedStoreFixture, StoreFixture, Verb},
};
use chrono::NaiveDateTime;
use diesel::{
    PgConnection,
    connection::SimpleConnection,
    prelude::*,
    sql_query,
    sql_types::{Integer, Nullable, Text, Timestamp},
};

use crate::server::Postgres;

actix_presence::store_contract!(every_store, super::OnPostgres);
actix_presence::shared_store_contract!(shared_store, super::OnPostgres);
actix_presence::store_contract!(every_store_in_a_schema, super::InSchema);
actix_presence::shared_store_contract!(shared_store_in_a_schema, super::InSchema);

/// A database with a store that goes by the time it is given.
pub struct OnPostgres {
    pub url: String,
    pub store: PostgresStore,
    options: PostgresOptions,
}

/// The same in a schema of its own, while the `search_path` finds tables of somebody else.
pub struct InSchema(OnPostgres);

pub fn options() -> PostgresOptions {
    let mut options = PostgresOptions::default();
    options.clock = LeaseClock::Given;
    options
}

pub fn url(url: &str) -> PostgresUrl {
    let DatabaseUrl::Postgres(url) = url.parse().unwrap() else { panic!("{url}") };
    url
}

impl OnPostgres {
    pub fn on(server: &Postgres) -> Self {
        let database = server.fresh_database();
        Self::open(database, options())
    }

    pub fn open(database: String, options: PostgresOptions) -> Self {
        let store = PostgresStore::open_with(&url(&database), options.clone()).unwrap();
        Self { url: database, store, options }
    }

    pub fn shell(&self) -> PgConnection {
        let mut shell = PgConnection::establish(&self.url).unwrap();
        if let Some(schema) = &self.options.schema {
            shell.batch_execute(&format!("SET search_path = \"{schema}\"")).unwrap();
        }
        shell
    }

    pub fn sql(&self, sql: &str) {
        self.shell().batch_execute(sql).unwrap();
    }
}

#[derive(QueryableByName)]
struct Columns {
    #[diesel(sql_type = Text)]
    room: String,
    #[diesel(sql_type = Text)]
    connection: String,
    #[diesel(sql_type = Nullable<Text>)]
    user_id: Option<String>,
    #[diesel(sql_type = Text)]
    info: String,
    #[diesel(sql_type = Timestamp)]
    joined_at: NaiveDateTime,
    #[diesel(sql_type = Nullable<Timestamp>)]
    updated_at: Option<NaiveDateTime>,
    #[diesel(sql_type = Timestamp)]
    last_seen: NaiveDateTime,
    #[diesel(sql_type = Text)]
    node_id: String,
    #[diesel(sql_type = Nullable<Text>)]
    session_key: Option<String>,
    #[diesel(sql_type = Text)]
    fixed_info: String,
    #[diesel(sql_type = Nullable<Timestamp>)]
    fading_until: Option<NaiveDateTime>,
    #[diesel(sql_type = Integer)]
    turn: i32,
    #[diesel(sql_type = Nullable<Text>)]
    current_connection: Option<String>,
}

impl Columns {
    fn typed(self) -> (NodeName, Row) {
        let presence = Presence {
            connection: self.connection.parse().unwrap(),
            user: self.user_id.map(|user| UserId::new(user).unwrap()),
            info: serde_json::from_str(&self.info).unwrap(),
            joined_at: self.joined_at.and_utc(),
            updated_at: self.updated_at.unwrap_or(self.joined_at).and_utc(),
        };
        let record = PresenceRecord {
            presence,
            last_seen: self.last_seen.and_utc(),
            session: self.session_key.map(|key| SessionKey::new(key).unwrap()),
            fixed: serde_json::from_str(&self.fixed_info).unwrap(),
            fading: self.fading_until.map(|until| until.and_utc()),
            generation: self.turn.try_into().unwrap(),
            current_connection: self.current_connection.map(|current| current.parse().unwrap()),
        };
        let row = Row { room: RoomName::new(self.room).unwrap(), record };
        (NodeName::new(self.node_id).unwrap(), row)
    }
}

impl StoreFixture for OnPostgres {
    type Store = PostgresStore;

    fn new() -> Self {
        Self::on(Postgres::shared())
    }

    fn store(&mut self) -> &mut PostgresStore {
        &mut self.store
    }

    fn change_manually(&mut self, change: ManualChange<'_>) {
        self.sql(&change.to_sql());
    }

    fn rows(&mut self) -> Vec<(NodeName, Row)> {
        let rows: Vec<Columns> = sql_query(
            "SELECT rooms.channel_name AS room, presences.channel_name AS connection, presences.*
             FROM presences JOIN rooms ON rooms.id = room_id
             ORDER BY rooms.channel_name, presences.channel_name",
        )
        .load(&mut self.shell())
        .unwrap();
        rows.into_iter().map(Columns::typed).collect()
    }

    fn refuse(&mut self, verb: Verb, connection: ConnectionId) {
        let name = format!("refuse_{}_{connection}", verb.as_sql());
        let row = if verb == Verb::Insert { "NEW" } else { "OLD" };
        self.sql(&format!(
            "CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN RAISE ''refused''; END';
             CREATE TRIGGER {name} BEFORE {} ON presences FOR EACH ROW
             WHEN ({row}.channel_name = '{connection}') EXECUTE FUNCTION {name}()",
            verb.as_sql(),
        ));
    }
}

impl SharedStoreFixture for OnPostgres {
    fn another(&mut self) -> PostgresStore {
        PostgresStore::open_with(&url(&self.url), self.options.clone()).unwrap()
    }
}

impl StoreFixture for InSchema {
    type Store = PostgresStore;

    fn new() -> Self {
        let database = Postgres::shared().fresh_database();
        let mut app = PgConnection::establish(&database).unwrap();
        app.batch_execute(TABLES_OF_AN_APP).unwrap();
        let mut options = options();
        options.schema = Some(SchemaName::new("Presence of the app").unwrap());
        Self(OnPostgres::open(database, options))
    }

    fn store(&mut self) -> &mut PostgresStore {
        self.0.store()
    }

    fn change_manually(&mut self, change: ManualChange<'_>) {
        self.0.change_manually(change);
    }

    fn rows(&mut self) -> Vec<(NodeName, Row)> {
        self.0.rows()
    }

    fn refuse(&mut self, verb: Verb, connection: ConnectionId) {
        self.0.refuse(verb, connection);
    }
}

impl SharedStoreFixture for InSchema {
    fn another(&mut self) -> PostgresStore {
        self.0.another()
    }
}

/// Tables of the same names as those of the library, which have nothing else in common with them.
pub const TABLES_OF_AN_APP: &str = "
    CREATE TABLE rooms (number INTEGER PRIMARY KEY, beds INTEGER NOT NULL);
    CREATE TABLE presences (guest TEXT PRIMARY KEY);
    CREATE TABLE nodes (address INET PRIMARY KEY);
    CREATE TABLE cluster (name TEXT PRIMARY KEY)";
