//! Rooms as the database has them: read when this node begins to follow them or may have missed something,
//! and compared with what was heard on the bus.

use std::{collections::HashMap, error::Error, time::Duration};

use actix::prelude::*;
use ahash::RandomState;

use super::{
    RoomRegistry,
    sharing::{count_unanswered, query_error},
};
use crate::{
    cluster::{NotRead, ReadRooms, remote},
    log_limit::LogLimit,
    messages::RoomFilter,
    model::{ConnectionId, Moment, NodeName, Remote, RoomName},
    store::{RoomRows, Row, StoreError},
};

/// How many rooms are listed at once where all are followed.
const ROOMS_PAGE: usize = 1000;
/// How long after a failure they are listed again.
const LIST_RETRY_DELAY: Duration = Duration::from_secs(5);

type RowsByPlace = HashMap<(RoomName, ConnectionId), (NodeName, Row), RandomState>;

impl RoomRegistry {
    /// Reads the rooms that are to be read, if nothing is being read.
    pub(super) fn read(&mut self, ctx: &mut Context<Self>) {
        let Some(cluster) = &mut self.cluster else { return };
        if cluster.take_unlisted() {
            self.follow_page(None, ctx);
        }
        let Some(cluster) = &mut self.cluster else { return };
        let Some(rooms) = cluster.next_read() else { return };
        let (names, now) = (rooms.clone(), self.clock.now().utc());
        let reading = cluster.reader.ask(move |store| store.read(&names, now));
        ctx.spawn(reading.into_actor(self).map(move |found, registry, ctx| {
            registry.was_read(rooms, found, ctx);
        }));
    }

    fn was_read(
        &mut self,
        rooms: Vec<RoomName>,
        found: Result<RoomRows, StoreError>,
        ctx: &mut Context<Self>,
    ) {
        let Some(cluster) = &mut self.cluster else { return };
        let now = self.clock.now();
        // One of the rooms may be the reason.
        let answered = matches!(found, Err(StoreError::Failed { .. }));
        let found = found.map_err(query_error);
        self.unanswered.note(&found);
        match found {
            Ok(found) => {
                // Rows contain session keys, which must not be logged.
                tracing::trace!(node = %cluster.me(), ?rooms, rows = found.rows.len(), "read");
                let read = cluster.read(rooms, found);
                self.commands.was_read(None);
                self.survey_is_due |= read.unsure;
                let known: Vec<_> = read.rooms.iter().map(|(room, _)| room.clone()).collect();
                self.apply_rows(read, now);
                for room in known {
                    self.run_commands(&room, ctx);
                    self.linger_if_empty(&room, now);
                }
                self.read(ctx);
            }
            Err(error) => {
                count_unanswered(&error);
                static UNREADABLE: LogLimit = LogLimit::new();
                if let Some(suppressed) = UNREADABLE.pass() {
                    tracing::warn!(
                        error = &error as &dyn Error,
                        suppressed,
                        "cannot read rooms: members on other nodes are missing"
                    );
                }
                match cluster.not_read(&rooms, answered) {
                    NotRead::FewerAtOnce => return self.read(ctx),
                    NotRead::OneLater(room, wait) => {
                        ctx.run_later(wait, move |registry, ctx| {
                            if let Some(cluster) = &mut registry.cluster {
                                cluster.read_later(&room);
                            }
                            registry.read(ctx);
                        });
                        self.read(ctx);
                    }
                    NotRead::AllLater(wait) => {
                        ctx.run_later(wait, |registry, ctx| {
                            if let Some(cluster) = &mut registry.cluster {
                                cluster.read_again();
                            }
                            registry.read(ctx);
                        });
                    }
                }
                self.commands.was_read(Some(error));
                for room in rooms {
                    self.run_commands(&room, ctx);
                }
            }
        }
        self.advance_batch(ctx, now);
    }

    fn apply_rows(&mut self, read: ReadRooms, now: Moment) {
        for (room, everybody) in read.rooms {
            self.write_missing(&room, |presence| read.own.contains(&(room.clone(), presence)));
            self.end_rivals(&room, everybody.iter(), now);
            let Some(cluster) = &self.cluster else { return };
            let left = |node: &NodeName| {
                let restarted =
                    read.restarted.iter().find(|(of, who, _)| (of, who) == (&room, node));
                restarted.map_or_else(|| cluster.peers.cause_of_absence(node), |(.., cause)| *cause)
            };
            let changes = self.rooms.changes_to(&room, everybody, left);
            let me = cluster.me().clone();
            for (node, changes) in changes {
                // One after the other, so that each change is told with the room as it is after it.
                let outcome = self.rooms.apply_rows(&room, changes, &me);
                self.take_outcome(&room, &node, outcome, now);
            }
        }
        for changes in read.held_back {
            self.apply_remote(changes, now);
        }
    }

    /// Has rows written again that others have removed, of presences that this node holds: another node
    /// may have taken one and ended it before this one heard of either.
    fn write_missing(&mut self, room: &RoomName, is_written: impl Fn(ConnectionId) -> bool) {
        let snapshot = self.rooms.snapshot(room);
        let unwritten = snapshot.connections().filter(|one| !is_written(*one));
        let missing = unwritten.filter(|one| self.rooms.holds(room, *one)).collect();
        self.mirror.mark_missing(room, missing);
    }

    /// Follows the rooms of an observer's filter, whoever holds their presences.
    pub(super) fn follow_for(&mut self, filter: &RoomFilter, ctx: &mut Context<Self>) {
        let Some(cluster) = &mut self.cluster else { return };
        match filter {
            RoomFilter::Room(room) => cluster.follow(room),
            RoomFilter::Any | RoomFilter::Prefix(_) => cluster.follow_everything(),
        }
        self.read(ctx);
    }

    /// Follows the rooms that are there already, a page at a time.
    fn follow_page(&mut self, after: Option<RoomName>, ctx: &mut Context<Self>) {
        let cluster = self.cluster.as_ref().filter(|cluster| cluster.follows_everything());
        let Some(cluster) = cluster else { return };
        let from = after.clone();
        let page = cluster.reader.ask(move |store| store.list(from.as_ref(), ROOMS_PAGE));
        ctx.spawn(page.into_actor(self).map(move |page, registry, ctx| {
            let Some(cluster) = &mut registry.cluster else { return };
            let page = match page {
                Ok(page) => page,
                Err(error) => {
                    tracing::warn!(%error, "rooms cannot be listed");
                    ctx.run_later(LIST_RETRY_DELAY, |registry, ctx| {
                        registry.follow_page(after, ctx)
                    });
                    return;
                }
            };
            for summary in &page {
                cluster.follow(&summary.room);
            }
            registry.read(ctx);
            if let Some(last) = page.last().filter(|_| page.len() == ROOMS_PAGE) {
                registry.follow_page(Some(last.room.clone()), ctx);
            }
        }));
    }

    /// Compares what was heard since the last time with the rows. Changes are committed before they
    /// are told, so what the rows do not show was never so, or has changed since.
    pub(super) fn verify(&mut self, ctx: &mut Context<Self>) {
        let Some(cluster) = &mut self.cluster else { return };
        cluster.verify();
        self.verify_more(ctx);
    }

    fn verify_more(&mut self, ctx: &mut Context<Self>) {
        let Some(cluster) = &mut self.cluster else { return };
        let Some(asked) = cluster.next_unverified() else { return };
        let presences = asked.clone();
        let rows = cluster.reader.ask(move |store| store.held(&presences));
        ctx.spawn(rows.into_actor(self).map(move |rows, registry, ctx| {
            let Some(cluster) = &mut registry.cluster else { return };
            cluster.verified(&asked, rows.is_ok());
            match rows {
                Ok(rows) => {
                    registry.compare(asked, rows);
                    registry.read(ctx);
                    registry.verify_more(ctx);
                }
                // They wait for the next survey.
                Err(error) => tracing::debug!(%error, "what was heard cannot be compared"),
            }
        }));
    }

    /// Has the rooms read again whose presences are not as the rows say, twice running: once it may be
    /// a change that is committed and not heard yet.
    fn compare(&mut self, asked: Vec<(RoomName, ConnectionId)>, rows: Vec<(NodeName, Row)>) {
        let Some(cluster) = &mut self.cluster else { return };
        let by_place = |(node, row): (NodeName, Row)| {
            ((row.room.clone(), row.record.presence.connection), (node, row))
        };
        let mut rows: RowsByPlace = rows.into_iter().map(by_place).collect();
        for place in asked {
            let row = rows.remove(&place);
            let (room, connection) = place;
            let later = cluster.is_unverified(&room, connection) || !cluster.knows(&room);
            if later || self.rooms.holds(&room, connection) {
                continue;
            }
            // Presences of nodes that are not known, or no more, are not shown.
            let row = row.filter(|(node, _)| cluster.peers.is_alive(node));
            let row = row.map(|(node, row)| remote(node, row));
            if !is_same(self.rooms.remote(&room, connection), row.as_ref()) {
                cluster.differs(&room, connection);
            }
        }
    }
}

/// Whether a presence is as its row says, but for when it was last seen, which is told by rows alone.
fn is_same(known: Option<&Remote>, row: Option<&Remote>) -> bool {
    match (known, row) {
        (Some(known), Some(row)) => {
            let mut expected = row.clone();
            expected.record.last_seen = known.record.last_seen;
            *known == expected
        }
        (None, None) => true,
        _ => false,
    }
}
