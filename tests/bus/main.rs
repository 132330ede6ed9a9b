//! The buses, and what they have to do.

mod memory;
#[cfg(feature = "redis")]
mod redis;
