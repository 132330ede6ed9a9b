//! The couriers of this thread: one for each registry that has sessions here.

use std::cell::RefCell;

use actix::{WeakAddr, prelude::*};

use crate::{delivery::Courier, registry::RoomRegistry};

thread_local! {
    static COURIERS: RefCell<Vec<(WeakAddr<RoomRegistry>, WeakAddr<Courier>)>> =
        const { RefCell::new(Vec::new()) };
}

/// The courier that delivers for the registry on this thread, if the thread has an arbiter. The registry
/// keeps it for as long as it serves anybody.
pub(super) fn courier(registry: &Addr<RoomRegistry>) -> Option<Addr<Courier>> {
    COURIERS.with_borrow_mut(|couriers| {
        let mut found = None;
        couriers.retain(|(whose, courier)| {
            let Some(courier) = courier.upgrade().filter(Addr::connected) else { return false };
            if whose.upgrade().is_some_and(|whose| whose == *registry) {
                found = Some(courier);
            }
            true
        });
        if found.is_none() {
            // Through its handle, as this may be called outside of what it runs.
            let courier =
                Courier::start_in_arbiter(&Arbiter::try_current()?, |_| Courier::default());
            couriers.push((registry.downgrade(), courier.downgrade()));
            found = Some(courier);
        }
        found
    })
}
