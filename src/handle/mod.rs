//! Starting everything: the options, and the handle of what runs.

mod config;
mod start;

#[cfg(test)]
pub(crate) use self::start::{Shared, Ties};
pub use self::{
    config::{PresenceConfig, StartError},
    start::PresenceHandle,
};
