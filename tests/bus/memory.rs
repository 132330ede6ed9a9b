//! The bus for tests does what a bus has to do.

use actix_presence::{
    bus::{Bus, Channel},
    bus_contract,
    testing::{MemoryHub, bus_contract::BusFixture},
};

struct InMemory(MemoryHub);

impl BusFixture for InMemory {
    fn bus(&self) -> Box<dyn Bus> {
        Box::new(self.0.bus())
    }

    async fn publish_bytes(&self, channel: &Channel, bytes: &[u8]) {
        self.0.publish_bytes(channel, bytes);
    }

    async fn break_connections(&self) {
        self.0.break_connections();
    }

    async fn stall(&self) {
        self.0.stall();
    }

    async fn resume(&self) {
        self.0.resume();
    }
}

bus_contract!(contract, || InMemory(MemoryHub::new()));
