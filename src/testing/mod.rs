//! What tests of an app that embeds presence need: a clock of their own, actors that listen, and a
//! database in memory and a bus that several nodes share. What a database or a bus has to do, as
//! tests: [`store_contract`], [`bus_contract`].

pub mod bus_contract;
mod clock;
mod memory;
mod memory_bus;
mod probe;
pub mod store_contract;

pub use self::{
    clock::ManualClock,
    memory::{MemoryDatabase, MemoryLink, MemoryStore},
    memory_bus::{MemoryBus, MemoryConnection, MemoryHub},
    probe::{Heard, Probe, Seen},
};
