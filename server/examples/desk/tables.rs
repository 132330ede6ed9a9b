//! The app's own tables, in a file of their own: on SQLite presence has its file alone.

use std::error::Error;

use diesel::r2d2::{ConnectionManager, Pool};
use diesel::{connection::SimpleConnection, sqlite::SqliteConnection};

diesel::table! { logins (cookie) { cookie -> Text, name -> Text, agent -> Bool, } }
diesel::table! { tickets (room) { room -> Text, customer -> Text, } }
diesel::table! { visits (id) { id -> Integer, room -> Text, name -> Text, event -> Text, at -> Timestamp, } }

pub type Database = Pool<ConnectionManager<SqliteConnection>>;

/// Opens the database, with two people and two tickets to try it with. A real app has migrations.
pub fn open(path: &str) -> Result<Database, Box<dyn Error>> {
    let pool = Database::builder().max_size(2).build(ConnectionManager::new(path))?;
    pool.get()?.batch_execute(include_str!("tables.sql"))?;
    Ok(pool)
}
