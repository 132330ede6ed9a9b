//! Users over all their rooms: their state, and when they come and go.

use std::error::Error;

use actix::prelude::*;
use tokio::sync::oneshot;

use super::{RoomRegistry, commands::Reply};
use crate::{
    bus::BusMessage,
    log_limit::LogLimit,
    messages::{Kick, RoomFilter, SubscribeUsers, UpdateUser, UserUpdated, UsersSubscribed},
    model::{Diff, Moment},
};

impl Handler<UpdateUser> for RoomRegistry {
    type Result = Reply<UserUpdated>;

    fn handle(&mut self, msg: UpdateUser, ctx: &mut Context<Self>) -> Self::Result {
        let now = self.clock.now();
        let here = self.rooms.connections_of(&msg.user).len();
        self.update_user(&msg, now);
        self.advance_batch(ctx, now);
        self.update_user_elsewhere(msg, here, ctx)
    }
}

impl RoomRegistry {
    /// Replaces the info of the user's presences that are here.
    pub(super) fn update_user(&mut self, UpdateUser { user, info }: &UpdateUser, now: Moment) {
        for diff in self.rooms.update_user(user, info, now) {
            self.announce(diff, now);
        }
    }

    /// The same on other nodes, after `here` connections on this one. How many they have is read from the
    /// database.
    fn update_user_elsewhere(
        &mut self,
        msg: UpdateUser,
        here: usize,
        ctx: &mut Context<Self>,
    ) -> Reply<UserUpdated> {
        let (Some(reader), Some(cluster)) = (self.reader(), &mut self.cluster) else {
            return Reply::Now(UserUpdated { connections: here, partial: false });
        };
        let whom = Kick::User(msg.user.clone());
        let told = cluster.tell(BusMessage::UpdateUser(msg));
        let (reply, answer) = oneshot::channel();
        let found = self.find_connections(reader, whom, ctx);
        ctx.spawn(found.into_actor(self).map(move |found, registry, _| {
            let now = registry.clock.now();
            let Some(cluster) = &registry.cluster else { return };
            let (mut connections, mut partial) = (here, false);
            match found {
                Ok(found) => {
                    let elsewhere = found.iter().filter(|(_, node)| node != cluster.me());
                    for (_, node) in elsewhere {
                        let is_reached =
                            told && cluster.unheard(now).all(|(unheard, _)| unheard != node);
                        connections += usize::from(is_reached);
                        partial |= !is_reached;
                    }
                }
                Err(error) => {
                    static UNCOUNTED: LogLimit = LogLimit::new();
                    if let Some(suppressed) = UNCOUNTED.pass() {
                        let error = &error as &dyn Error;
                        tracing::warn!(
                            error,
                            suppressed,
                            "a user's connections on other nodes cannot be counted"
                        );
                    }
                    partial = true;
                }
            }
            // The receiver may have been dropped.
            let _ = reply.send(UserUpdated { connections, partial });
        }));
        Reply::Later(answer)
    }

    /// Tells observers who has come online anywhere or gone offline everywhere by a change of a room.
    pub(super) fn tell_user_observers(&mut self, diff: &Diff, now: Moment) {
        if (diff.online.is_empty() && diff.offline.is_empty()) || !self.user_observers.any() {
            return;
        }
        for user in diff.online.iter().filter(|user| self.rooms.is_somewhere(user)) {
            self.user_observers.is_online(user, now);
        }
        for gone in diff.offline.iter().filter(|gone| !self.rooms.is_somewhere(&gone.user)) {
            self.user_observers.is_offline(gone, now);
        }
    }
}

impl Handler<SubscribeUsers> for RoomRegistry {
    type Result = UsersSubscribed;

    fn handle(
        &mut self,
        SubscribeUsers { observer }: SubscribeUsers,
        ctx: &mut Context<Self>,
    ) -> UsersSubscribed {
        let (id, online) = self.user_observers.subscribe(observer, self.rooms.users().cloned());
        self.follow_for(&RoomFilter::Any, ctx);
        UsersSubscribed { id, online }
    }
}
