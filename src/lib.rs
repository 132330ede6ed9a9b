pub mod clock;
mod config;
mod delivery;
pub mod messages;
pub mod mirror;
pub mod model;
mod pruner;
mod registry;
#[cfg(feature = "server")]
pub mod server;
pub mod session;
pub mod testing;
pub mod wire;

pub use clock::Clock;
pub use config::{Decision, PresenceConfig, PresenceHandle, StartError};
pub use messages::*;
pub use model::*;
pub use pruner::Pruner;
pub use registry::RoomRegistry;
pub use session::{Connection, WsSession, WsSessionError, limit_silence};
