//! The store on a real PostgreSQL.

#[path = "../common/postgres.rs"]
mod server;

mod contract;
mod database;
mod identity;
mod plans;
mod trouble;
