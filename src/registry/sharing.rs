//! What handlers pass on to other nodes and ask of the database that they share: nothing on a single node.

use actix::prelude::*;
use tokio::sync::oneshot;

use super::{RoomRegistry, commands::Reply};
use crate::{
    bus::BusMessage,
    log_limit::LogLimit,
    messages::{Content, Kick},
    model::{ConnectionId, Moment, Remote, RoomName, SeenPresence},
    store::{SharedStore, StoreError, reader::ReaderHandle},
    wire::json::Sender,
};

impl RoomRegistry {
    /// The reader of the database, if rooms are shared with other nodes.
    pub(super) fn reader(&self) -> Option<ReaderHandle> {
        let cluster = self.cluster.as_ref().filter(|cluster| cluster.is_shared());
        cluster.map(|cluster| cluster.reader.clone())
    }

    /// Whether the room is known as well as it can be.
    pub(super) fn is_known(&self, room: &RoomName) -> bool {
        self.closing || self.cluster.as_ref().is_none_or(|cluster| cluster.knows(room))
    }

    /// Follows a room for a while at least, since it was asked for.
    pub(super) fn follow(&mut self, room: &RoomName) {
        if let Some(cluster) = &mut self.cluster {
            cluster.follow(room);
            self.linger_if_empty(room, self.clock.now());
        }
    }

    /// Follows a room a little longer if this node holds no presence in it.
    pub(super) fn linger_if_empty(&mut self, room: &RoomName, now: Moment) {
        if let Some(cluster) = &mut self.cluster
            && !self.rooms.holds_any(room)
        {
            cluster.linger(room, now);
        }
    }

    /// Marks a presence after a change that is in no diff, but matters to other nodes: its session, its
    /// current connection, whether it fades.
    pub(super) fn mark_shared(&mut self, room: RoomName, presence: ConnectionId) {
        if self.cluster.is_some() {
            self.mirror.mark_one(room, presence);
        }
    }

    /// Publishes a message to the members on other nodes. Returns how many are known here.
    pub(super) fn publish_elsewhere(
        &mut self,
        room: &RoomName,
        content: &Content,
        from: Option<&Sender>,
        except: Option<ConnectionId>,
    ) -> usize {
        let Some(cluster) = &mut self.cluster else { return 0 };
        let from = from.map(|from| (from.id.clone(), from.connection));
        if !cluster.tell_said(room.clone(), content.clone(), from, except) {
            return 0;
        }
        let gets = |remote: &&Remote| {
            remote.record.fading.is_none() && Some(remote.record.presence.connection) != except
        };
        self.rooms.remotes_in(room).filter(gets).count()
    }

    /// Closes a room on the other nodes. Returns how many of their members are known here.
    pub(super) fn close_elsewhere(&mut self, room: &RoomName) -> usize {
        let Some(cluster) = &mut self.cluster else { return 0 };
        match cluster.tell(BusMessage::Close { room: room.clone() }) {
            true => self.rooms.remotes_in(room).count(),
            false => 0,
        }
    }

    /// The number of connections to kick that are known to be on other nodes.
    pub(super) fn seen_elsewhere(&self, whom: &Kick) -> usize {
        match whom {
            Kick::User(user) if self.cluster.is_some() => self.rooms.remotes_of(user),
            _ => 0,
        }
    }

    /// Kicks on other nodes, after `kicked` connections here. Their number is read from the database or, if
    /// it does not answer, is the number `seen` here.
    pub(super) fn kick_elsewhere(
        &mut self,
        whom: Kick,
        kicked: usize,
        seen: usize,
        ctx: &mut Context<Self>,
    ) -> Reply<usize> {
        let Some(reader) = self.reader() else { return Reply::Now(kicked) };
        let (reply, answer) = oneshot::channel();
        let (asked, written) = (whom.clone(), self.written(ctx));
        // Asked before they are kicked: their rows are deleted then.
        let found = async move {
            written.await;
            reader.ask(move |store| store.connections(&asked)).await
        };
        ctx.spawn(found.into_actor(self).map(move |found, registry, _| {
            let Some(cluster) = &mut registry.cluster else { return };
            let single = matches!(whom, Kick::Connection(_));
            let elsewhere = match found {
                Ok(found) => found.iter().filter(|(_, node)| node != cluster.me()).count(),
                Err(error) => {
                    tracing::warn!(%error, "the connections to kick on other nodes cannot be counted");
                    seen
                }
            };
            let told = cluster.tell(BusMessage::Kick(whom));
            let all = kicked + if told { elsewhere } else { 0 };
            // A connection may have presences on two nodes, and counts once all the same.
            let _ = reply.send(if single { all.min(1) } else { all });
        }));
        Reply::Later(answer)
    }

    /// Asks the database about all rooms, of which this node follows only some. If it does not answer, the
    /// result is what is known `here`.
    pub(super) fn ask_all<T: Send + 'static>(
        &mut self,
        reader: ReaderHandle,
        ctx: &mut Context<Self>,
        here: T,
        query: impl FnOnce(&mut dyn SharedStore) -> Result<T, StoreError> + Send + 'static,
    ) -> impl Future<Output = T> + 'static {
        let written = self.written(ctx);
        async move {
            written.await;
            let answer = reader.ask(query).await;
            answer.unwrap_or_else(|error| {
                static UNREADABLE: LogLimit = LogLimit::new();
                if let Some(suppressed) = UNREADABLE.pass() {
                    tracing::warn!(%error, suppressed, "all rooms cannot be queried");
                }
                here
            })
        }
    }

    /// Waits until what this node has answered before is in the database, unless that is in trouble: one
    /// that cannot be written may still answer queries.
    fn written(&mut self, ctx: &mut Context<Self>) -> impl Future<Output = ()> + 'static {
        let settled = self.mirror.settled();
        let now = self.clock.now();
        self.write(ctx, now);
        async {
            if let Some(settled) = settled {
                let _ = settled.await;
            }
        }
    }
}

/// Corrects by the database when presences of other nodes were last seen: they write that, and do not
/// publish it. Without an answer they stay as they are.
pub(super) async fn correct_last_seen(
    reader: &ReaderHandle,
    room: RoomName,
    mut seen: Vec<&mut SeenPresence>,
) {
    seen.retain(|seen| seen.node.is_some());
    if seen.is_empty() {
        return;
    }
    let connections: Vec<_> = seen.iter().map(|seen| seen.presence.connection).collect();
    let rows = reader.ask(move |store| store.find(&room, &connections)).await;
    let rows = rows.inspect_err(|error| tracing::warn!(%error, "presences cannot be read"));
    for (_, row) in rows.unwrap_or_default() {
        let connection = row.record.presence.connection;
        if let Some(seen) = seen.iter_mut().find(|seen| seen.presence.connection == connection) {
            seen.last_seen = row.record.last_seen;
        }
    }
}
