//! What tests of an app that embeds presence need: a clock of their own, actors that listen, and a
//! database in memory that several nodes share. What a database has to do, as tests: [`store_contract`].

mod clock;
mod memory;
mod probe;
pub mod store_contract;

pub use self::{
    clock::ManualClock,
    memory::{MemoryDatabase, MemoryLink, MemoryStore},
    probe::{Heard, Probe, Seen},
};
