//! The database, read as people read it.

use std::path::Path;

use diesel::{
    Connection, QueryableByName, RunQueryDsl, SqliteConnection,
    connection::SimpleConnection,
    sql_query,
    sql_types::{BigInt, Nullable, Text},
};

/// A connection of its own to the database of a server.
pub struct Database(SqliteConnection);

/// A presence as its row says, times without their fractions.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, QueryableByName)]
pub struct PresenceRow {
    #[diesel(sql_type = Text)]
    pub room: String,
    #[diesel(sql_type = Text)]
    pub channel_name: String,
    #[diesel(sql_type = Nullable<Text>)]
    pub user_id: Option<String>,
    #[diesel(sql_type = Text)]
    pub info: String,
    #[diesel(sql_type = Text)]
    pub joined_at: String,
    #[diesel(sql_type = Text)]
    pub node_id: String,
}

impl Database {
    pub fn open(path: &Path) -> Self {
        let mut conn = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
        conn.batch_execute("PRAGMA busy_timeout = 10000; PRAGMA foreign_keys = ON").unwrap();
        Self(conn)
    }

    pub fn execute(&mut self, sql: &str) {
        self.0.batch_execute(sql).unwrap();
    }

    pub fn count(&mut self, table: &str) -> i64 {
        #[derive(QueryableByName)]
        struct Count {
            #[diesel(sql_type = BigInt)]
            n: i64,
        }
        let query = sql_query(format!("SELECT count(*) AS n FROM {table}"));
        query.get_result::<Count>(&mut self.0).unwrap().n
    }

    /// Every presence, by room and connection.
    pub fn presences(&mut self) -> Vec<PresenceRow> {
        self.try_presences().unwrap()
    }

    /// As [`presences`](Self::presences), where there may not be a table yet.
    pub fn try_presences(&mut self) -> diesel::QueryResult<Vec<PresenceRow>> {
        sql_query(
            "SELECT r.channel_name AS room, p.channel_name, p.user_id, p.info, \
                substr(p.joined_at, 1, 19) AS joined_at, p.node_id \
            FROM presences p JOIN rooms r ON r.id = p.room_id ORDER BY 1, 2",
        )
        .load(&mut self.0)
    }
}
