//! The store on a real PostgreSQL.

#[path = "../common/postgres.rs"]
mod server;

mod beside;
mod clock;
mod contract;
mod database;
mod foreign;
mod hanging;
mod identity;
mod plans;
mod pooler;
mod roles;
mod trouble;
