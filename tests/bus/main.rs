//! The rules of a bus, on the buses of the crate.

#[cfg(feature = "redis")]
mod redis;

actix_presence::bus_contract!(memory, actix_presence::testing::MemoryHub::new);
