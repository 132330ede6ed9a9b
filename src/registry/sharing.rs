//! What handlers pass on to other nodes and ask of the database that they share: nothing on a single node.

use std::{
    cell::Cell, collections::HashSet, error::Error, future::ready, rc::Rc, slice, sync::Arc,
    time::Duration,
};

use actix::prelude::*;
use ahash::RandomState;
use futures_util::{FutureExt, future::LocalBoxFuture};
use tokio::sync::oneshot;

use super::{
    RoomRegistry,
    commands::{Answer, READ_TIMEOUT, Reply},
};
use crate::{
    bus::{AddressedMessage, BusMessage},
    log_limit::LogLimit,
    messages::{Audience, Content, Kick, KickFrom, Kicked, QueryError},
    model::{ConnectionId, Moment, NodeName, Remote, RoomName, SeenPresence, Sender},
    store::{SharedStore, StoreError, reader::ReaderHandle},
};

/// Why the database did not answer the last question, if it did not. A clone is the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Unanswered(Rc<Cell<Option<&'static str>>>);

impl Unanswered {
    pub fn reason(&self) -> Option<&'static str> {
        self.0.get()
    }

    pub fn note<T>(&self, answer: &Answer<T>) {
        self.0.set(answer.as_ref().err().map(QueryError::reason));
    }
}

/// How long a question about all rooms waits for the database.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);

/// How many messages at a time have their receivers on other nodes counted by the database.
const MAX_COUNTS: usize = 64;

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
        let from = from.map(|from| (from.user.clone(), from.connection));
        if !cluster.tell_said(room.clone(), content.clone(), from, except) {
            return 0;
        }
        let gets = |remote: &&Remote| {
            remote.record.fading.is_none() && Some(remote.record.presence.connection) != except
        };
        self.rooms.remotes_in(room).filter(gets).count()
    }

    /// Publishes a message to the connections of an audience on other nodes, each once. The future counts them: by
    /// the rooms that are known here, or by the database, if that answers in time.
    pub(super) fn address_elsewhere(
        &mut self,
        to: &Audience,
        content: &Content,
        from: Option<&Sender>,
        except: Option<ConnectionId>,
        timeout: Duration,
    ) -> Option<LocalBoxFuture<'static, usize>> {
        let (reader, cluster) = (self.reader()?, self.cluster.as_mut()?);
        let from = from.map(|from| (from.user.clone(), from.connection));
        let (to_all, content, me) = (to.clone(), content.clone(), cluster.me().clone());
        let message = AddressedMessage { to: to_all, content, from, except };
        if !cluster.tell(BusMessage::Addressed(message)) {
            return None;
        }
        let (whom, known) = match to {
            Audience::Room(room) => return Some(self.count_remotes(slice::from_ref(room), except)),
            Audience::Rooms(rooms) => return Some(self.count_remotes(rooms, except)),
            Audience::User(user) => {
                let mut known = self.rooms.remote_connections_of(user);
                known.retain(|one| Some(*one) != except);
                (Kick::User(user.clone()), known.len())
            }
            Audience::Connection(id) => (Kick::Connection(*id), 0),
        };
        let pending = Rc::clone(&self.counting);
        // Beside those that are under way the registry has one, and this is one.
        if Rc::strong_count(&pending) >= MAX_COUNTS + 2 {
            return Some(ready(known).boxed_local());
        }
        let single = matches!(whom, Kick::Connection(_));
        let asked = reader.ask(move |store| store.receivers(&whom));
        let counted = async move {
            let found = tokio::time::timeout(timeout, asked).await;
            drop(pending);
            // It was sent all the same.
            let Ok(Ok(found)) = found else { return known };
            let gets = |(one, node): &&(_, _)| *node != me && Some(*one) != except;
            let count = found.iter().filter(gets).count();
            if single { count.min(1) } else { count }
        };
        Some(counted.boxed_local())
    }

    /// Counts the connections of other nodes that are known to be in some of the rooms.
    fn count_remotes(
        &self,
        rooms: &[RoomName],
        except: Option<ConnectionId>,
    ) -> LocalBoxFuture<'static, usize> {
        let remotes = rooms.iter().flat_map(|room| self.rooms.remotes_in(room));
        let gets = |remote: &&Remote| {
            let ids = [remote.record.presence.connection, remote.current_connection()];
            remote.record.fading.is_none() && !ids.iter().any(|id| Some(*id) == except)
        };
        let connections = remotes.filter(gets).map(Remote::current_connection);
        ready(connections.collect::<HashSet<_, RandomState>>().len()).boxed_local()
    }

    /// Kicks from a room on the other nodes. Returns how many are known here to be kicked; `None` if there may be
    /// others.
    pub(super) fn kick_from_elsewhere(&mut self, msg: KickFrom) -> Option<usize> {
        let is_known = self.is_known(&msg.room);
        let cluster = self.cluster.as_mut().filter(|cluster| cluster.is_shared());
        let Some(cluster) = cluster else { return Some(0) };
        let KickFrom { room, whom } = msg;
        let is_meant = |remote: &&Remote| match &whom {
            Kick::Connection(id) => {
                remote.record.presence.connection == *id || remote.current_connection() == *id
            }
            Kick::User(user) => remote.record.presence.user.as_ref() == Some(user),
        };
        let count = self.rooms.remotes_in(&room).filter(is_meant).count();
        let told = cluster.tell(BusMessage::KickFrom { room, whom });
        (is_known && (told || count == 0)).then_some(count)
    }

    /// Closes a room on the other nodes. Returns how many of their members are known here; `None` if there may
    /// be others.
    pub(super) fn close_elsewhere(&mut self, room: &RoomName) -> Option<usize> {
        let is_known = self.is_known(room);
        let Some(cluster) = self.cluster.as_mut().filter(|cluster| cluster.is_shared()) else {
            return Some(0);
        };
        let count = self.rooms.remotes_in(room).count();
        let told = cluster.tell(BusMessage::Close { room: room.clone() });
        (is_known && (told || count == 0)).then_some(count)
    }

    /// Kicks on other nodes, after `kicked` connections here. Their number is read from the database; if it
    /// does not answer, they are kicked all the same.
    pub(super) fn kick_elsewhere(
        &mut self,
        whom: Kick,
        kicked: usize,
        ctx: &mut Context<Self>,
    ) -> Reply<Kicked> {
        let Some(reader) = self.reader() else {
            return Reply::Now(Kicked { connections: kicked, partial: false });
        };
        let (reply, answer) = oneshot::channel();
        // Asked before they are kicked: their rows are deleted then.
        let found = self.find_connections(reader, whom.clone(), ctx);
        ctx.spawn(found.into_actor(self).map(move |found, registry, _| {
            let Some(cluster) = &mut registry.cluster else { return };
            let single = matches!(whom, Kick::Connection(_));
            let elsewhere = match found {
                Ok(found) => Some(found.iter().filter(|(_, node)| node != cluster.me()).count()),
                Err(error) => {
                    static UNCOUNTED: LogLimit = LogLimit::new();
                    if let Some(suppressed) = UNCOUNTED.pass() {
                        let error = &error as &dyn Error;
                        tracing::warn!(
                            error,
                            suppressed,
                            "the connections to kick on other nodes cannot be counted"
                        );
                    }
                    None
                }
            };
            let told = cluster.tell(BusMessage::Kick(whom));
            let reached = elsewhere.filter(|_| told).unwrap_or(0);
            let all = kicked + reached;
            // Where nobody is elsewhere, nobody had to be told.
            let partial = elsewhere.is_none_or(|elsewhere| elsewhere > reached);
            // A connection may have presences on two nodes, and counts once all the same.
            let connections = if single { all.min(1) } else { all };
            let _ = reply.send(Kicked { connections, partial });
        }));
        Reply::Later(answer)
    }

    /// Asks the database for the connections that are meant, each with the node that holds it.
    pub(super) fn find_connections(
        &mut self,
        reader: ReaderHandle,
        meant: Kick,
        ctx: &mut Context<Self>,
    ) -> impl Future<Output = Answer<Vec<(ConnectionId, NodeName)>>> + 'static {
        self.ask_when_written(READ_TIMEOUT, reader, ctx, move |store| store.connections(&meant))
    }

    /// Asks the database about all rooms, of which this node follows only some.
    pub(super) fn ask_all<T: Send + 'static>(
        &mut self,
        reader: ReaderHandle,
        ctx: &mut Context<Self>,
        query: impl FnOnce(&mut dyn SharedStore) -> Result<T, StoreError> + Send + 'static,
    ) -> impl Future<Output = Answer<T>> + 'static {
        let asked = self.ask_when_written(QUERY_TIMEOUT, reader, ctx, query);
        async {
            asked.await.inspect_err(|error| {
                static UNREADABLE: LogLimit = LogLimit::new();
                if let Some(suppressed) = UNREADABLE.pass() {
                    let error = error as &dyn Error;
                    tracing::warn!(error, suppressed, "all rooms cannot be queried");
                }
            })
        }
    }

    /// Asks the database once this node's own changes are in it, and notes whether it answered in time.
    fn ask_when_written<T: Send + 'static>(
        &mut self,
        timeout: Duration,
        reader: ReaderHandle,
        ctx: &mut Context<Self>,
        query: impl FnOnce(&mut dyn SharedStore) -> Result<T, StoreError> + Send + 'static,
    ) -> impl Future<Output = Answer<T>> + 'static {
        let (unanswered, written) = (self.unanswered.clone(), self.written(ctx));
        let asked = within(timeout, async move {
            written.await;
            reader.ask(query).await
        });
        asked.inspect(move |answer| unanswered.note(answer))
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

/// The answer of the database, if it comes in time. One that does not is counted.
async fn within<T>(
    timeout: Duration,
    answer: impl Future<Output = Result<T, StoreError>>,
) -> Answer<T> {
    let answer = tokio::time::timeout(timeout, answer).await;
    let answer =
        answer.map_err(|_| QueryError::Timeout).and_then(|answer| answer.map_err(query_error));
    answer.inspect_err(count_unanswered)
}

/// An error of the store, as messages report it.
pub(super) fn query_error(error: StoreError) -> QueryError {
    QueryError::Database { reason: error.as_str(), source: Arc::new(error) }
}

pub(super) fn count_unanswered(error: &QueryError) {
    let reason = error.reason();
    metrics::counter!("presence_queries_unanswered_total", "reason" => reason).increment(1);
}

/// Corrects by the database when presences of other nodes were last seen: they write that, and do not
/// publish it. Without an answer they stay as they are: earlier at most, and still true of what was heard.
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
    let rows = within(READ_TIMEOUT, reader.ask(move |store| store.find(&room, &connections))).await;
    let rows = rows.inspect_err(|error| {
        static UNREADABLE: LogLimit = LogLimit::new();
        if let Some(suppressed) = UNREADABLE.pass() {
            let error = error as &dyn Error;
            tracing::warn!(error, suppressed, "presences cannot be read");
        }
    });
    for (_, row) in rows.unwrap_or_default() {
        let connection = row.record.presence.connection;
        if let Some(seen) = seen.iter_mut().find(|seen| seen.presence.connection == connection) {
            seen.last_seen = row.record.last_seen;
        }
    }
}
