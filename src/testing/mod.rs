//! What tests of an app that embeds presence need: a manual clock, probes in the place of sessions and
//! observers, and a database in memory and a bus that several nodes share. The rules that a database and
//! a bus have to obey, as tests: [`store_contract`], [`bus_contract`].

pub mod bus_contract;
mod manual_clock;
mod memory;
mod memory_bus;
mod probe;
pub mod store_contract;

pub use self::{
    manual_clock::ManualClock,
    memory::{MemoryDatabase, MemoryLink, MemoryStore},
    memory_bus::{MemoryBus, MemoryConnection, MemoryHub},
    probe::{Probe, Seen, settle},
};
pub use crate::messages::Heard;

/// The payload of a panic, which panics when it is dropped, so that it cannot be caught.
#[cfg(test)]
pub(crate) struct Bomb;

#[cfg(test)]
impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("again");
    }
}
