//! What a handler does for the sake of other nodes, where there may be some: nothing on a node alone.

use actix::prelude::*;
use tokio::sync::oneshot;

use super::{RoomRegistry, commands::Reply};
use crate::{
    bus::BusMessage,
    messages::{Content, Kick},
    model::{ConnectionId, Moment, Remote, RoomName, SeenPresence},
    store::{SharedStore, StoreError, reader::ReaderHandle},
    wire::json::Sender,
};

impl RoomRegistry {
    /// The way to ask the database, if other nodes share it and rooms with it.
    pub(super) fn reader(&self) -> Option<ReaderHandle> {
        let cluster = self.cluster.as_ref().filter(|cluster| cluster.is_shared());
        cluster.map(|cluster| cluster.reader.clone())
    }

    /// Whether all is known of the room that can be.
    pub(super) fn is_known(&self, room: &RoomName) -> bool {
        self.closing || self.cluster.as_ref().is_none_or(|cluster| cluster.knows(room))
    }

    /// Follows a room for a while at least, as somebody asks for it.
    pub(super) fn follow(&mut self, room: &RoomName) {
        if let Some(cluster) = &mut self.cluster {
            cluster.follow(room);
            self.linger_if_empty(room, self.clock.now());
        }
    }

    /// A room in which this node holds nobody is followed a little longer.
    pub(super) fn linger_if_empty(&mut self, room: &RoomName, now: Moment) {
        if let Some(cluster) = &mut self.cluster
            && !self.rooms.holds_any(room)
        {
            cluster.linger(room, now);
        }
    }

    /// Has a presence written that has changed in a way that no diff tells and other nodes have to know:
    /// whose session it is, the connection behind it, whether its client is there.
    pub(super) fn mark_shared(&mut self, room: RoomName, presence: ConnectionId) {
        if self.cluster.is_some() {
            self.mirror.mark_one(room, presence);
        }
    }

    /// Passes on what is published to a room. Answers how many members on other nodes are to get it, as far
    /// as is known here.
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

    /// Has a room closed on the other nodes. Answers how many are to go, as far as is known here.
    pub(super) fn close_elsewhere(&mut self, room: &RoomName) -> usize {
        let Some(cluster) = &mut self.cluster else { return 0 };
        match cluster.tell(BusMessage::Close { room: room.clone() }) {
            true => self.rooms.remotes_in(room).count(),
            false => 0,
        }
    }

    /// The connections on other nodes that this one sees and that are to be put out.
    pub(super) fn seen_elsewhere(&self, whom: &Kick) -> usize {
        match whom {
            Kick::User(user) if self.cluster.is_some() => self.rooms.remotes_of(user),
            _ => 0,
        }
    }

    /// Has those put out who are on other nodes, besides the `kicked` ones who were here. How many they
    /// are says the database or, where it does not answer, what is `seen` of them here.
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
        // Asked before they are put out: after that they are not there.
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
                    tracing::warn!(%error, "no answer how many are to be put out elsewhere");
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

    /// Asks the database about all rooms, of which this node follows only some; if it does not answer,
    /// what is known here has to do.
    pub(super) fn ask_all<T: Send + 'static>(
        &mut self,
        ctx: &mut Context<Self>,
        here: T,
        question: impl FnOnce(&mut dyn SharedStore) -> Result<T, StoreError> + Send + 'static,
    ) -> impl Future<Output = T> + 'static {
        let asked = self.reader().map(|reader| (reader, self.written(ctx)));
        async move {
            let Some((reader, written)) = asked else { return here };
            written.await;
            let answer = reader.ask(question).await;
            let answer =
                answer.inspect_err(|error| tracing::warn!(%error, "no answer about all rooms"));
            answer.unwrap_or(here)
        }
    }

    /// When what this node has answered before is in the database, or the database is in trouble: one
    /// that takes no rows may still answer questions.
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

    /// The way to ask when presences of a room were last seen that other nodes hold.
    pub(super) fn last_seen_elsewhere(&self, room: RoomName) -> LastSeen {
        LastSeen { reader: self.reader(), room }
    }
}

/// When presences of other nodes were last seen: those nodes write that to the database and do not tell it.
pub(super) struct LastSeen {
    reader: Option<ReaderHandle>,
    room: RoomName,
}

impl LastSeen {
    /// Corrects presences by what the database says. Without an answer they stay as they were when they
    /// were heard of.
    pub async fn correct(self, mut seen: Vec<&mut SeenPresence>) {
        let Self { reader: Some(reader), room } = self else { return };
        seen.retain(|seen| seen.node.is_some());
        if seen.is_empty() {
            return;
        }
        let connections: Vec<_> = seen.iter().map(|seen| seen.presence.connection).collect();
        let rows = reader.ask(move |store| store.find(&room, &connections)).await;
        let rows = rows.inspect_err(|error| tracing::warn!(%error, "presences cannot be read"));
        for (_, row) in rows.unwrap_or_default() {
            let same = |seen: &&mut &mut SeenPresence| {
                seen.presence.connection == row.record.presence.connection
            };
            if let Some(seen) = seen.iter_mut().find(same) {
                seen.last_seen = row.record.last_seen;
            }
        }
    }
}
