//! The model mirrored into SQL, for restarts and for people who ask with SQL.
//!
//! Memory is the truth; a database that is away costs freshness, never presence.

pub mod store;
mod writer;

pub use writer::{Goodbye, PruneRoomRows, Renew, Write, Writer};
