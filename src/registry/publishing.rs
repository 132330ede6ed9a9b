//! Messages: to a room, to several, to a user or to one connection.

use std::{collections::BTreeMap, slice, sync::Arc, time::Duration};

use actix::prelude::*;
use futures_util::future::{LocalBoxFuture, join};

use super::{
    RoomRegistry,
    authorizing::count_denial,
    commands::{Reply, RoomCommand},
};
use crate::{
    delivery::{DeliveryCount, Publication},
    messages::{Audience, Content, Publish, PublishError, SessionPublish},
    model::{Activity, ConnectionId, Moment, RoomName, Sender, UserId},
    wire::phoenix,
};

/// How long all threads that have receivers of a message may take to deliver it before its sender gets the
/// count so far.
const COUNT_TIMEOUT: Duration = Duration::from_secs(1);
/// The same where the sender is a session that reads nothing meanwhile.
const SESSION_COUNT_TIMEOUT: Duration = Duration::from_millis(50);

/// A message that was handed out: the count of its receivers here, and of those on other nodes if they are still
/// to be counted.
type HandedOut = (DeliveryCount, Option<LocalBoxFuture<'static, usize>>);

impl Handler<Publish> for RoomRegistry {
    type Result = Reply<Result<usize, PublishError>>;

    fn handle(&mut self, msg: Publish, ctx: &mut Context<Self>) -> Self::Result {
        self.publish_or_wait(msg, COUNT_TIMEOUT, ctx)
    }
}

impl Handler<SessionPublish> for RoomRegistry {
    type Result = Reply<Result<usize, PublishError>>;

    fn handle(
        &mut self,
        SessionPublish(msg): SessionPublish,
        ctx: &mut Context<Self>,
    ) -> Self::Result {
        self.publish_or_wait(msg, SESSION_COUNT_TIMEOUT, ctx)
    }
}

impl RoomRegistry {
    fn publish_or_wait(
        &mut self,
        msg: Publish,
        timeout: Duration,
        ctx: &mut Context<Self>,
    ) -> Reply<Result<usize, PublishError>> {
        if let Some(room) = self.room_to_wait_for(&msg.to, ctx) {
            return self.reply_later(ctx, |reply| RoomCommand::Publish(room, msg, timeout, reply));
        }
        self.publish(msg, timeout, ctx)
    }

    /// A room of the audience that is not known yet. Of several rooms one is waited for: they are read together,
    /// and members that are not known then are not counted.
    fn room_to_wait_for(&mut self, to: &Audience, ctx: &mut Context<Self>) -> Option<RoomName> {
        let rooms = match to {
            Audience::Room(room) => slice::from_ref(room),
            Audience::Rooms(rooms) => rooms,
            // Members of all nodes are told, whatever this one follows.
            Audience::User(_) | Audience::Connection(_) => return None,
        };
        let mut unknown = None;
        for room in rooms {
            if self.must_wait(room, ctx) {
                unknown.get_or_insert_with(|| room.clone());
            }
        }
        unknown
    }

    /// Publishes now; the number of connections that took it may be known later.
    pub(super) fn publish(
        &mut self,
        msg: Publish,
        timeout: Duration,
        ctx: &mut Context<Self>,
    ) -> Reply<Result<usize, PublishError>> {
        let now = self.clock.now();
        let (mut here, elsewhere) = match self.hand_out(msg, timeout, now) {
            Ok(handed_out) => handed_out,
            Err(error) => return Reply::Now(Err(error)),
        };
        self.advance_batch(ctx, now);
        if let Some(elsewhere) = elsewhere {
            let both = join(here.count(timeout), elsewhere);
            return Reply::when_done(async {
                let (here, elsewhere) = both.await;
                Ok(here + elsewhere)
            });
        }
        match here.known() {
            Some(count) => Reply::Now(Ok(count)),
            None => Reply::when_done(async move { Ok(here.count(timeout).await) }),
        }
    }

    fn hand_out(
        &mut self,
        msg: Publish,
        timeout: Duration,
        now: Moment,
    ) -> Result<HandedOut, PublishError> {
        let Publish { to, content, from, except } = msg;
        if let Content::Event { event, .. } = &content
            && !phoenix::may_push(event)
        {
            return Err(PublishError::ReservedEvent);
        }
        let _span = tracing::debug_span!("publish").entered();
        let (mut sender, mut joined) = (None, None);
        if let Some(connection) = from {
            let (known, version) = self.sender_to(&to, connection)?;
            if !self.may_publish_to(&to, connection) {
                count_denial("publish");
                return Err(PublishError::NotAllowed);
            }
            (sender, joined) = (Some(known), Some(version));
            self.rooms.touch(connection, Activity::Message, now);
            self.mirror.heard(connection);
        }
        self.messages.add(1);
        let Audience::Room(room) = &to else {
            let is_here =
                matches!(to, Audience::Connection(one) if self.connection_here(one).is_some());
            let elsewhere = match is_here {
                true => None,
                false => self.address_elsewhere(&to, &content, sender.as_ref(), except, timeout),
            };
            let here = self.deliver_addressed(&to, content, sender, from, except, now);
            return Ok((here, elsewhere));
        };
        let except = except.map(|one| self.rooms.presence_of(room, one).unwrap_or(one));
        let elsewhere = self.publish_elsewhere(room, &content, sender.as_ref(), except);
        let here = self.deliver(room, content, sender, joined, except, now);
        here.add(elsewhere);
        Ok((here, None))
    }

    /// The sender as the audience knows it, and the version of the room that brought it.
    fn sender_to(
        &self,
        to: &Audience,
        connection: ConnectionId,
    ) -> Result<(Sender, u64), PublishError> {
        let is_in = |room: &RoomName| self.rooms.presence_of(room, connection).is_some();
        let room = match to {
            Audience::Room(room) => Some(room),
            Audience::Rooms(rooms) if !rooms.iter().all(is_in) => {
                return Err(PublishError::NotAMember);
            }
            Audience::Rooms(rooms) => rooms.first(),
            Audience::User(_) | Audience::Connection(_) => None,
        };
        let room = room
            .or_else(|| self.rooms.oldest_room(connection, None))
            .ok_or(PublishError::NotAMember)?;
        let presence = self.rooms.presence_of(room, connection).ok_or(PublishError::NotAMember)?;
        let seen = self.rooms.presence(room, presence).ok_or(PublishError::NotAMember)?;
        let sender = Sender { user: seen.presence.user, connection: presence };
        Ok((sender, seen.joined_version))
    }

    /// Whether the rights of a connection allow it: in each of the rooms, or in any room where the audience is a
    /// user or a connection.
    fn may_publish_to(&self, to: &Audience, connection: ConnectionId) -> bool {
        let may = |room: &RoomName| self.rights.of(room, connection).publish;
        match to {
            Audience::Room(room) => may(room),
            Audience::Rooms(rooms) => rooms.iter().all(may),
            Audience::User(_) | Audience::Connection(_) => self.rooms.rooms_of(connection).any(may),
        }
    }

    /// Sends to the members of the room that are here, but for the connection of one presence. `joined` is
    /// the version that brought the sender, where that is known.
    pub(super) fn deliver(
        &mut self,
        room: &RoomName,
        content: Content,
        from: Option<Sender>,
        joined: Option<u64>,
        except: Option<ConnectionId>,
        now: Moment,
    ) -> DeliveryCount {
        let except = except.and_then(|presence| self.rooms.current_connection(room, presence));
        let joined = from.as_ref().map(|from| from.connection).zip(joined);
        let (message, count) = self.delivery.message(content, from, false);
        if let Some(room) = self.rooms.room(room) {
            let publication = Publication { message, joined, except, only: None };
            self.delivery.publish(room, publication, now.monotonic);
        }
        count
    }

    /// Sends to the connections of an audience that are here, each once, but for one. `speaker` is the connection
    /// of the sender if that is here.
    pub(super) fn deliver_addressed(
        &mut self,
        to: &Audience,
        content: Content,
        from: Option<Sender>,
        speaker: Option<ConnectionId>,
        except: Option<ConnectionId>,
        now: Moment,
    ) -> DeliveryCount {
        let several_rooms = matches!(to, Audience::Rooms(_));
        let (message, count) = self.delivery.message(content, from.clone(), several_rooms);
        let excluded = except.map(|one| self.rooms.connections_known_as(one)).unwrap_or_default();
        for (room, only) in self.destinations(to) {
            let is_member = |one: &ConnectionId| self.rooms.presence_of(&room, *one).is_some();
            let except = excluded.iter().copied().find(is_member);
            let sender = speaker.and_then(|one| self.rooms.presence_of(&room, one));
            let sender = sender.or(from.as_ref().map(|from| from.connection));
            let seen = sender.and_then(|sender| self.rooms.presence(&room, sender));
            let joined = seen.map(|seen| (seen.presence.connection, seen.joined_version));
            let Some(room) = self.rooms.room(&room) else { continue };
            let message = Arc::clone(&message);
            let publication = Publication { message, joined, except, only };
            self.delivery.publish(room, publication, now.monotonic);
        }
        count
    }

    /// The rooms by which an audience is reached here, each with its receivers if not all members are.
    fn destinations(&self, to: &Audience) -> Vec<(RoomName, Option<Arc<[ConnectionId]>>)> {
        let (connections, user) = match to {
            Audience::Room(room) => return vec![(room.clone(), None)],
            Audience::Rooms(rooms) => {
                return rooms.iter().map(|room| (room.clone(), None)).collect();
            }
            Audience::User(user) => (self.rooms.connections_of(user), Some(user)),
            Audience::Connection(id) => (self.connection_here(*id).into_iter().collect(), None),
        };
        self.by_oldest_room(connections, user)
    }

    /// Connections by the room that each has been in for longest, as this user if one is given.
    fn by_oldest_room(
        &self,
        connections: Vec<ConnectionId>,
        user: Option<&UserId>,
    ) -> Vec<(RoomName, Option<Arc<[ConnectionId]>>)> {
        let mut rooms: BTreeMap<&RoomName, Vec<ConnectionId>> = BTreeMap::new();
        for connection in connections {
            if let Some(room) = self.rooms.oldest_room(connection, user) {
                rooms.entry(room).or_default().push(connection);
            }
        }
        rooms.into_iter().map(|(room, members)| (room.clone(), Some(members.into()))).collect()
    }

    /// The connection of this node that an id means: its own, or the newest that has taken over a presence with
    /// this id. One that fades is none.
    fn connection_here(&self, id: ConnectionId) -> Option<ConnectionId> {
        let mut known = self.rooms.connections_known_as(id);
        known.retain(|one| !self.rooms.has_ended(*one));
        if known.contains(&id) { Some(id) } else { known.last().copied() }
    }
}
