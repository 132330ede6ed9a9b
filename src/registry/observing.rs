//! Who hears of changes.

use actix::prelude::*;

use super::RoomRegistry;
use crate::messages::{Subscribe, SubscriptionId, Unsubscribe};

impl Handler<Subscribe> for RoomRegistry {
    type Result = SubscriptionId;

    fn handle(&mut self, msg: Subscribe, _: &mut Context<Self>) -> SubscriptionId {
        self.observers.subscribe(msg.filter, msg.observer)
    }
}

impl Handler<Unsubscribe> for RoomRegistry {
    type Result = bool;

    fn handle(&mut self, msg: Unsubscribe, _: &mut Context<Self>) -> bool {
        self.observers.unsubscribe(msg.id)
    }
}
