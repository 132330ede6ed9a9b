//! Who hears of changes.

use std::time::Duration;

use actix::prelude::*;

use super::RoomRegistry;
use crate::messages::{RoomFilter, Scope, Subscribe, SubscriptionId, Unsubscribe};
use crate::model::RoomName;

impl RoomRegistry {
    /// An observer wants to hear of these rooms, whoever holds their presences.
    fn follow_for(&mut self, filter: &RoomFilter, ctx: &mut Context<Self>) {
        let Some(cluster) = &mut self.cluster else { return };
        match filter {
            RoomFilter::Room(room) => cluster.follow(room),
            RoomFilter::Any => cluster.follow_everything(),
        }
        self.read(ctx);
    }

    /// Follows the rooms that are there already, a page at a time.
    pub(super) fn follow_page(&mut self, after: Option<RoomName>, ctx: &mut Context<Self>) {
        const PAGE: usize = 1000;
        const AGAIN: Duration = Duration::from_secs(5);
        let Some(cluster) = self.cluster.as_ref().filter(|one| one.follows_everything()) else {
            return;
        };
        let from = after.clone();
        let page = cluster.desk.ask(move |store| store.list(from.as_ref(), PAGE));
        ctx.spawn(page.into_actor(self).map(move |page, registry, ctx| {
            let Some(cluster) = &mut registry.cluster else { return };
            let page = match page {
                Ok(page) => page,
                Err(error) => {
                    tracing::warn!(%error, "rooms cannot be listed");
                    ctx.run_later(AGAIN, |registry, ctx| registry.follow_page(after, ctx));
                    return;
                }
            };
            for summary in &page {
                cluster.follow(&summary.room);
            }
            registry.read(ctx);
            if let Some(last) = page.last().filter(|_| page.len() == PAGE) {
                registry.follow_page(Some(last.room.clone()), ctx);
            }
        }));
    }
}

impl Handler<Subscribe> for RoomRegistry {
    type Result = SubscriptionId;

    fn handle(&mut self, msg: Subscribe, ctx: &mut Context<Self>) -> SubscriptionId {
        let Subscribe { filter, observer, scope } = msg;
        if scope == Scope::Cluster {
            self.follow_for(&filter, ctx);
        }
        self.observers.subscribe(filter, observer, scope)
    }
}

impl Handler<Unsubscribe> for RoomRegistry {
    type Result = bool;

    fn handle(&mut self, msg: Unsubscribe, _: &mut Context<Self>) -> bool {
        self.observers.unsubscribe(msg.id)
    }
}
