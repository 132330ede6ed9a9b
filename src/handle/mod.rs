//! Starting a presence system: its options, and the handle of a running one.

mod config;
mod start;

#[cfg(test)]
pub(crate) use self::start::Backend;
pub use self::{
    config::{PresenceConfig, StartError},
    start::PresenceHandle,
};
