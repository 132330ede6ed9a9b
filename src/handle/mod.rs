//! Starting a presence system ([`start`]) with its options ([`config`]), the handle of a running one
//! ([`presence_handle`]), and its [`client`].

mod client;
mod config;
mod error;
mod presence_handle;
mod start;
mod stores;
mod validate;

#[cfg(test)]
pub(crate) use self::start::Backend;
pub use self::{
    client::PresenceClient, config::PresenceConfig, error::StartError,
    presence_handle::PresenceHandle,
};
