//! The app's own tables, in a file of their own: on SQLite presence has its file alone.

use diesel::r2d2::{ConnectionManager, Pool};
use diesel::{connection::SimpleConnection, sqlite::SqliteConnection};

diesel::table! { logins (cookie) { cookie -> Text, name -> Text, agent -> Bool, } }
diesel::table! { tickets (room) { room -> Text, customer -> Text, } }
diesel::table! { visits (id) { id -> Integer, room -> Text, name -> Text, event -> Text, at -> Timestamp, } }

pub type Database = Pool<ConnectionManager<SqliteConnection>>;
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Asks the database on a thread where Diesel may block.
pub async fn ask<T: Send + 'static>(
    database: Database,
    question: impl FnOnce(&mut SqliteConnection) -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    actix_web::web::block(move || question(&mut *database.get()?)).await?
}

/// Opens the database, with two people and two tickets to try it with. A real app has migrations.
pub fn open(path: &str) -> Result<Database, Box<dyn std::error::Error>> {
    let pool = Database::builder().max_size(2).build(ConnectionManager::new(path))?;
    pool.get()?.batch_execute(include_str!("tables.sql"))?;
    Ok(pool)
}
