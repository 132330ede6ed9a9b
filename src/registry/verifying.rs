//! What was heard on the bus, compared with the database: what it contradicts is read again.

use std::collections::HashMap;

use actix::prelude::*;
use ahash::RandomState;

use super::RoomRegistry;
use crate::{
    cluster::remote,
    model::{ConnectionId, NodeName, Remote, RoomName},
    store::Row,
};

type Rows = HashMap<(RoomName, ConnectionId), (NodeName, Row), RandomState>;

impl RoomRegistry {
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
        let rows = cluster.desk.ask(move |store| store.held(&presences));
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
        let mut rows: Rows = rows.into_iter().map(by_place).collect();
        for place in asked {
            let row = rows.remove(&place);
            let (room, connection) = place;
            let later = cluster.is_unverified(&room, connection) || !cluster.knows(&room);
            if later || self.rooms.holds(&room, connection) {
                continue;
            }
            // Of nodes that are not known, or no more, nobody is shown.
            let row = row.filter(|(node, _)| cluster.peers.is_alive(node));
            let row = row.map(|(node, row)| remote(node, row));
            if !is_same(self.rooms.remote(&room, connection), row.as_ref()) {
                cluster.differs(&room, connection);
            }
        }
    }
}

/// Whether a presence is as its row says, but for its last sign of life, which is told by rows alone.
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
