//! Questions.

use actix::prelude::*;

use super::RoomRegistry;
use crate::{
    messages::{
        Counters, GetOccupancy, GetSnapshot, GetStatus, ListPresences, ListRooms, Status, WhereIs,
    },
    model::{Occupancy, RoomName, RoomSummary, SeenPresence, Snapshot},
};

impl Handler<GetSnapshot> for RoomRegistry {
    type Result = Option<Snapshot>;

    fn handle(&mut self, msg: GetSnapshot, _: &mut Context<Self>) -> Self::Result {
        self.rooms.room(&msg.room).cloned()
    }
}

impl Handler<GetOccupancy> for RoomRegistry {
    type Result = Occupancy;

    fn handle(&mut self, msg: GetOccupancy, _: &mut Context<Self>) -> Occupancy {
        self.rooms.occupancy(&msg.room)
    }
}

impl Handler<WhereIs> for RoomRegistry {
    type Result = Vec<(RoomName, usize)>;

    fn handle(&mut self, msg: WhereIs, _: &mut Context<Self>) -> Self::Result {
        self.rooms.where_is(&msg.user)
    }
}

impl Handler<ListRooms> for RoomRegistry {
    type Result = Vec<RoomSummary>;

    fn handle(&mut self, msg: ListRooms, _: &mut Context<Self>) -> Self::Result {
        self.rooms.list(msg.after.as_ref(), msg.limit)
    }
}

impl Handler<ListPresences> for RoomRegistry {
    type Result = Option<Vec<SeenPresence>>;

    fn handle(&mut self, msg: ListPresences, _: &mut Context<Self>) -> Self::Result {
        self.rooms.room(&msg.room)?;
        let now = self.clock.now();
        let page = self.rooms.presences(&msg.room, msg.after.as_ref(), msg.limit);
        Some(page.into_iter().map(|seen| self.with_state(&msg.room, seen, now)).collect())
    }
}

impl Handler<GetStatus> for RoomRegistry {
    type Result = Status;

    fn handle(&mut self, _: GetStatus, _: &mut Context<Self>) -> Status {
        let now = self.clock.now();
        let trouble = self.mirror.trouble(now);
        metrics::counter!("presence_touches_total").absolute(self.touches);
        Status {
            epoch: self.rooms.epoch(),
            uptime: now.since(self.started),
            rooms: self.rooms.room_count(),
            connections: self.rooms.connection_count(),
            presences: self.rooms.presence_count(),
            users: self.rooms.user_count(),
            unwritten: self.mirror.unwritten(),
            database: trouble.map(|trouble| trouble.reason),
            lag: trouble.map(|trouble| now.since(trouble.since)).unwrap_or_default(),
            lease_age: now.since(self.mirror.lease_renewed().unwrap_or(self.started)),
            observer_lag: self.observers.lag(),
            closing: self.closing,
            counters: Counters {
                joins: self.joins.count(),
                leaves: self.leaves.counts(),
                touches: self.touches,
                messages: self.messages.count(),
                deliveries: self.deliveries.count(),
                lists_sent: self.delivery.lists_sent(),
                rows_written: self.mirror.rows_written(),
            },
        }
    }
}
