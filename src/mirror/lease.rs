//! The lease of this node: its renewal, and what is written again if it had lapsed.

use std::collections::BTreeMap;

use super::{Mirror, NextStep, Renew};
use crate::{
    model::{ConnectionId, Moment, RoomName, Rooms},
    store::{Renewal, StoreError},
};

impl Mirror {
    /// The time of the last renewal of the lease, if there was one since the start.
    pub fn lease_renewed(&self) -> Option<Moment> {
        self.lease_renewed
    }

    /// Begins to renew the lease, unless a renewal is under way.
    pub fn renew(
        &mut self,
        now: Moment,
    ) -> Option<impl Future<Output = Result<Renewal, StoreError>> + use<>> {
        if self.closed || self.renewing.is_some() {
            return None;
        }
        self.renewing = Some(now);
        Some(self.writer.renew(Renew { now: now.utc() }))
    }

    /// Handles the writer's answer to a renewal of the lease.
    pub fn renewed(
        &mut self,
        answer: Result<Renewal, StoreError>,
        rooms: &Rooms,
        now: Moment,
    ) -> NextStep {
        self.renewing = None;
        if answer.is_ok() {
            self.lease_renewed = Some(now);
            self.schedule.resume();
        }
        match answer {
            Ok(Renewal::Held) if self.dirty.is_empty() => self.succeeded(now),
            Ok(Renewal::Held) => {}
            Ok(Renewal::Continued { incarnation }) => {
                return NextStep::ContinueAs(incarnation);
            }
            Ok(Renewal::Lapsed { incarnation }) => {
                tracing::warn!("the lease of this node had expired: every row is written again");
                return NextStep::BeginIncarnation(incarnation);
            }
            Err(error) => return self.failed(error, rooms, now),
        }
        NextStep::Write
    }

    /// Begins a new incarnation, in which all rows are written again. Returns the presences of this node
    /// that others may have seen end with the old incarnation, by room.
    pub fn begin_incarnation(&mut self, rooms: &Rooms) -> BTreeMap<RoomName, Vec<ConnectionId>> {
        let mut seen: BTreeMap<RoomName, Vec<ConnectionId>> = BTreeMap::new();
        for (room, presence) in rooms.held_presences() {
            if self.dirty.is_stored(&(room.clone(), presence)) {
                seen.entry(room.clone()).or_default().push(presence);
            }
        }
        self.dirty.mark_all(rooms);
        seen
    }

    /// Goes on in a new incarnation without anybody having seen an end of the old one: rows may differ from
    /// memory in whatever way, and all are written again.
    pub fn continue_incarnation(&mut self, rooms: &Rooms) {
        self.dirty.mark_all(rooms);
    }
}
