//! The couriers that the registry has, and its own.

use std::{sync::Arc, time::Duration};

use actix::{WeakRecipient, prelude::*};

use super::{
    courier::Courier,
    order::{Errand, Order, Parcel, Report},
};
use crate::model::micros;

/// A thread with so many errands under way, of which none comes back for so long, stands still.
const MANY: usize = 256;
const PATIENCE: Duration = Duration::from_secs(10);

/// Which courier a connection has; none is the registry's own, for sessions of unknown threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Desk(Option<u32>);

#[cfg(test)]
impl Desk {
    pub fn numbered(number: u32) -> Self {
        Self(Some(number))
    }
}

/// What becomes of an order.
pub(super) enum Sent {
    /// It is done.
    Back(Report),
    /// It is under way, and what comes of it comes as a message.
    Away,
    /// Its thread has ended, or stands still for too long: it was not given.
    Lost,
}

/// A courier on another thread.
struct There {
    courier: Addr<Courier>,
    /// Where its reports go; shared with the errands under way, and so their number.
    home: Arc<WeakRecipient<Report>>,
    /// How many were under way after the last was sent, and since when none has come back.
    under_way: usize,
    since: u64,
    /// How many connections it serves.
    connections: usize,
}

#[derive(Default)]
pub(super) struct Couriers {
    here: Courier,
    there: Vec<Option<There>>,
    home: Option<WeakRecipient<Report>>,
}

impl Couriers {
    /// Tells where reports go.
    pub fn report_to(&mut self, home: WeakRecipient<Report>) {
        self.home = Some(home);
    }

    /// Has a courier serve one connection more.
    pub fn hire(&mut self, courier: Option<Addr<Courier>>) -> Desk {
        let (Some(courier), Some(home)) = (courier, &self.home) else { return Desk(None) };
        let is_it = |there: &Option<There>| there.as_ref().is_some_and(|it| it.courier == courier);
        let known = self.there.iter().position(is_it);
        let free = known.or_else(|| self.there.iter().position(Option::is_none));
        let index = free.unwrap_or(self.there.len());
        self.there.resize_with(self.there.len().max(index + 1), || None);
        let there = || There {
            courier,
            home: Arc::new(home.clone()),
            under_way: 0,
            since: 0,
            connections: 0,
        };
        self.there[index].get_or_insert_with(there).connections += 1;
        // Threads do not come in billions.
        Desk(u32::try_from(index).ok())
    }

    /// A courier serves one connection less; with none it is let go.
    pub fn release(&mut self, Desk(desk): Desk) {
        let Some(desk) = desk.and_then(|desk| self.there.get_mut(desk as usize)) else { return };
        if let Some(there) = desk {
            there.connections -= 1;
            if there.connections == 0 {
                *desk = None;
            }
        }
    }

    /// Gives an order of which nothing is to come back.
    pub fn tell(&mut self, desk: Desk, order: Order) {
        match self.find_mut(desk) {
            None => self.here.take(order, &mut Report::default()),
            Some(there) => there.courier.do_send(Parcel(order, None)),
        }
    }

    /// Gives an order of which something is to come back, now or as a message.
    pub fn send(&mut self, desk: Desk, order: Order, mut report: Report, now: u64) -> Sent {
        let Some(there) = self.find_mut(desk) else {
            self.here.take(order, &mut report);
            return Sent::Back(report);
        };
        if there.stands_still(now) {
            return Sent::Lost;
        }
        let errand = Errand { home: Arc::clone(&there.home), report };
        there.courier.do_send(Parcel(order, Some(errand)));
        Sent::Away
    }

    /// Whether nothing is left of anybody.
    #[cfg(test)]
    pub fn is_idle(&self) -> bool {
        self.here.is_idle() && self.there.iter().all(Option::is_none)
    }

    fn find_mut(&mut self, Desk(desk): Desk) -> Option<&mut There> {
        self.there.get_mut(desk? as usize)?.as_mut()
    }
}

impl There {
    /// Whether it is of no use to give it another errand.
    fn stands_still(&mut self, now: u64) -> bool {
        let under_way = Arc::strong_count(&self.home) - 1;
        if under_way == 0 || under_way < self.under_way {
            self.since = now;
        }
        // By time alone, a process that was stopped would find all its threads so.
        let still = under_way >= MANY && now.saturating_sub(self.since) > micros(PATIENCE);
        if still || !self.courier.connected() {
            return true;
        }
        self.under_way = under_way + 1;
        false
    }
}
