#![doc = include_str!("../README.md")]
//!
//! # Map of the crate
//!
//! - [`model`]: rooms and presences as plain values
//! - [`messages`]: what one sends to the actors, and gets from them
//! - [`RoomRegistry`], [`Pruner`]: the actors; [`PresenceConfig`] starts them
//! - [`session`]: the side of the sockets
//! - [`mirror`]: the database that follows
//! - [`bus`]: what nodes tell each other
//! - [`mod@wire`]: the bytes of the frames
//! - `testing` (a feature): a manual clock, probes, a bus to cut, and the rules of a bus as tests
#![deny(missing_docs)]

#[cfg(not(any(feature = "sqlite", feature = "postgres")))]
compile_error!("actix-presence needs a database: enable the feature `sqlite` or `postgres`");

pub mod bus;
mod clock;
mod cluster;
mod counters;
mod delivery;
mod handle;
pub mod log_limit;
pub mod messages;
pub mod mirror;
pub mod model;
mod registry;
pub mod session;
#[cfg(test)]
#[path = "../tests/simulation/mod.rs"]
mod simulation;
pub mod sockets;
pub mod store;
mod supervision;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod wire;

pub use clock::Clock;
pub use handle::{PresenceConfig, PresenceHandle, StartError};
pub use messages::*;
pub use model::*;
pub use registry::{Pruner, RoomRegistry};
pub use session::{Connection, PhoenixSession, StopSignal, WsOptions, WsSession, WsSessionError};
pub use sockets::{configure_tcp, watch_socket};
pub use supervision::Crashed;
