//! A client of the registry for code that is no actor, such as the handlers of an app.

use std::{
    future::{Ready, ready},
    time::Duration,
};

use actix::{MailboxError, prelude::*};
use actix_web::{FromRequest, HttpRequest, dev::Payload, error::ErrorInternalServerError, web};

use super::PresenceHandle;
use crate::{
    log_limit::LogLimit,
    messages::{
        Admit, CloseRoom, Explain, Explained, Flush, GetOccupancy, GetSnapshot, GetStatus, Kick,
        KickFrom, Kicked, ListPresences, ListRooms, PresenceChanged, PresenceError, PrunePresences,
        PruneReport, PruneRooms, Publish, RoomFilter, Status, Subscribe, SubscribeUsers,
        SubscriptionId, Unsubscribe, UpdateInfo, UpdatePresence, UpdateUser, UserChanged,
        UserUpdated, UsersSubscribed, WhereIs,
    },
    model::{
        ConnectionId, Info, Occupancy, Presence, RoomName, RoomSummary, SeenPresence, Snapshot,
        UserId,
    },
    registry::RoomRegistry,
};

/// A client of the [`RoomRegistry`]: its messages as asynchronous methods, which share one error. A clone is a
/// client of the same registry, and cheap. What a session says of itself (join, leave, touch) is a
/// [`Connection`](crate::Connection)'s; who is to be out of a room is [kicked](Self::kick_from).
///
/// Each method is named like its message and says no more than what differs; the message has the details.
/// Actors send the messages themselves, to [`registry`](Self::registry).
///
/// It is an extractor. Give it to the app as it is or in [`web::Data`], or give the [`PresenceHandle`] so; a
/// request to an app that has neither is answered with 500, and the log says what is missing. Give it in one of
/// these ways: they are tried in this order, each over all scopes, so a scope with a system of its own needs the
/// way of the app, or an earlier one.
///
/// ```
/// use actix_presence::{PresenceClient, PresenceConfig, PresenceError, RoomName};
/// use actix_web::{App, http::StatusCode, test, web};
///
/// /// `GET /who/{room}`: how many users there are.
/// async fn who(room: web::Path<RoomName>, presence: PresenceClient) -> Result<String, PresenceError> {
///     let users = presence.occupancy(&room).await?.users;
///     Ok(format!("{users} users"))
/// }
///
/// # actix::System::new().block_on(async {
/// let presence = PresenceConfig::new("sqlite::memory:").start()?;
/// let app = App::new().app_data(presence.client()).route("/who/{room}", web::get().to(who));
/// let app = test::init_service(app).await;
/// let request = || test::TestRequest::get().uri("/who/lobby").to_request();
/// assert_eq!(test::call_and_read_body(&app, request()).await, "0 users");
///
/// presence.shutdown(std::time::Duration::from_secs(5)).await?;
/// let answer = test::call_service(&app, request()).await;
/// assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct PresenceClient {
    registry: Addr<RoomRegistry>,
}

/// # Errors
///
/// Every method has [`PresenceError::Ended`] if the registry has ended; some have another one, which they name.
impl PresenceClient {
    /// A client of this registry.
    #[must_use]
    pub fn new(registry: Addr<RoomRegistry>) -> Self {
        Self { registry }
    }

    /// The registry, to send messages to.
    #[must_use]
    pub fn registry(&self) -> Addr<RoomRegistry> {
        self.registry.clone()
    }

    async fn ask<M>(&self, message: M) -> Result<M::Result, PresenceError>
    where
        M: Message<Result: Send> + Send + 'static,
        RoomRegistry: Handler<M>,
    {
        // It sets no timeout, so there is no other error.
        self.registry.send(message).await.map_err(|_: MailboxError| PresenceError::Ended)
    }

    /// The members of a room, `None` if it is empty: [`GetSnapshot`].
    ///
    /// # Errors
    ///
    /// [`PresenceError::Query`].
    pub async fn snapshot(&self, room: &RoomName) -> Result<Option<Snapshot>, PresenceError> {
        Ok(self.ask(GetSnapshot { room: room.clone() }).await??)
    }

    /// The number of members of a room: [`GetOccupancy`].
    ///
    /// # Errors
    ///
    /// [`PresenceError::Query`].
    pub async fn occupancy(&self, room: &RoomName) -> Result<Occupancy, PresenceError> {
        Ok(self.ask(GetOccupancy { room: room.clone() }).await??)
    }

    /// The rooms that a user is in, with the number of connections in each: [`WhereIs`].
    ///
    /// # Errors
    ///
    /// [`PresenceError::Query`].
    pub async fn where_is(&self, user: &UserId) -> Result<Vec<(RoomName, usize)>, PresenceError> {
        Ok(self.ask(WhereIs { user: user.clone() }).await??)
    }

    /// A page of the rooms, after the last one of the page before: [`ListRooms`].
    ///
    /// # Errors
    ///
    /// [`PresenceError::Query`].
    pub async fn list_rooms(
        &self,
        after: Option<&RoomName>,
        limit: usize,
    ) -> Result<Vec<RoomSummary>, PresenceError> {
        Ok(self.ask(ListRooms { after: after.cloned(), limit }).await??)
    }

    /// A page of the presences of a room, after the last one of the page before; `None` if the room is empty:
    /// [`ListPresences`].
    ///
    /// # Errors
    ///
    /// [`PresenceError::Query`].
    pub async fn list_presences(
        &self,
        room: &RoomName,
        after: Option<&Presence>,
        limit: usize,
    ) -> Result<Option<Vec<SeenPresence>>, PresenceError> {
        Ok(self.ask(ListPresences { room: room.clone(), after: after.cloned(), limit }).await??)
    }

    /// A presence, and why it has ended if it has: [`Explain`].
    ///
    /// # Errors
    ///
    /// [`PresenceError::Query`].
    pub async fn explain(
        &self,
        room: &RoomName,
        connection: ConnectionId,
    ) -> Result<Option<Explained>, PresenceError> {
        Ok(self.ask(Explain { room: room.clone(), connection }).await??)
    }

    /// The state of the registry: [`GetStatus`].
    pub async fn status(&self) -> Result<Status, PresenceError> {
        self.ask(GetStatus).await
    }

    /// Whether a user could join now: [`Admit`].
    ///
    /// # Errors
    ///
    /// [`PresenceError::Join`] says why not.
    pub async fn admit(&self, admit: Admit) -> Result<(), PresenceError> {
        Ok(self.ask(admit).await??)
    }

    /// Sends something to a room, several, a user or a connection, and returns how many took it: [`Publish`].
    ///
    /// # Errors
    ///
    /// [`PresenceError::Publish`] if a sender is named who is not in the room, or may not publish there.
    pub async fn publish(&self, message: Publish) -> Result<usize, PresenceError> {
        Ok(self.ask(message).await??)
    }

    /// Replaces the info of a presence, and returns whether that changed anything: [`UpdateInfo`], by its connection
    /// or by the id under which it is listed.
    pub async fn update_info(
        &self,
        room: &RoomName,
        connection: ConnectionId,
        info: Info,
    ) -> Result<bool, PresenceError> {
        let update = UpdateInfo { room: room.clone(), connection, info };
        self.ask(UpdatePresence(update)).await
    }

    /// Replaces the info of all connections of a user: [`UpdateUser`].
    pub async fn update_user(
        &self,
        user: &UserId,
        info: Info,
    ) -> Result<UserUpdated, PresenceError> {
        self.ask(UpdateUser { user: user.clone(), info }).await
    }

    /// Removes a connection or a user, and returns how many connections that were: [`Kick`].
    pub async fn kick(&self, whom: Kick) -> Result<Kicked, PresenceError> {
        self.ask(whom).await
    }

    /// Removes a connection or a user from one room: [`KickFrom`].
    pub async fn kick_from(&self, room: &RoomName, whom: Kick) -> Result<Kicked, PresenceError> {
        self.ask(KickFrom { room: room.clone(), whom }).await
    }

    /// Removes all members of a room, and returns how many: [`CloseRoom`].
    pub async fn close_room(&self, room: &RoomName) -> Result<Kicked, PresenceError> {
        self.ask(CloseRoom { room: room.clone() }).await
    }

    /// Waits until all changes so far are in the database: [`Flush`].
    ///
    /// # Errors
    ///
    /// [`PresenceError::Flush`] says why they are not.
    pub async fn flush(&self) -> Result<(), PresenceError> {
        Ok(self.ask(Flush).await??)
    }

    /// Removes every presence that was silent for longer than the age, or than
    /// [`max_age`](crate::PresenceConfig::max_age): [`PrunePresences`].
    pub async fn prune_presences(
        &self,
        age: Option<Duration>,
    ) -> Result<PruneReport, PresenceError> {
        self.ask(PrunePresences { age }).await
    }

    /// Removes the rows of empty rooms, and returns how many: [`PruneRooms`].
    ///
    /// # Errors
    ///
    /// [`PresenceError::Flush`].
    pub async fn prune_rooms(&self) -> Result<usize, PresenceError> {
        Ok(self.ask(PruneRooms).await??)
    }

    /// Subscribes an observer to the changes that this node makes from now on: [`Subscribe`].
    pub async fn subscribe(
        &self,
        filter: RoomFilter,
        observer: Recipient<PresenceChanged>,
    ) -> Result<SubscriptionId, PresenceError> {
        self.subscribe_with(Subscribe::new(filter, observer)).await
    }

    /// Subscribes an observer, with a [`scope`](Subscribe::scope): [`Subscribe`].
    pub async fn subscribe_with(
        &self,
        subscription: Subscribe,
    ) -> Result<SubscriptionId, PresenceError> {
        self.ask(subscription).await
    }

    /// Subscribes an observer to users who come online anywhere and go offline everywhere; returns who is
    /// online: [`SubscribeUsers`].
    pub async fn subscribe_users(
        &self,
        observer: Recipient<UserChanged>,
    ) -> Result<UsersSubscribed, PresenceError> {
        self.ask(SubscribeUsers { observer }).await
    }

    /// Ends a subscription, and returns whether there was one: [`Unsubscribe`].
    pub async fn unsubscribe(&self, id: SubscriptionId) -> Result<bool, PresenceError> {
        self.ask(Unsubscribe { id }).await
    }
}

impl FromRequest for PresenceClient {
    type Error = actix_web::Error;
    type Future = Ready<Result<Self, Self::Error>>;

    fn from_request(req: &HttpRequest, _: &mut Payload) -> Self::Future {
        let client = req.app_data().or_else(|| Some(&***req.app_data::<web::Data<Self>>()?));
        let handle = || req.app_data::<PresenceHandle>().map(|handle| &**handle);
        let shared = || Some(&****req.app_data::<web::Data<PresenceHandle>>()?);
        let client: Option<&Self> = client.or_else(handle).or_else(shared);
        ready(client.cloned().ok_or_else(|| missing(req)))
    }
}

/// The answer of an app that was not given a client.
fn missing(req: &HttpRequest) -> actix_web::Error {
    static MISSING: LogLimit = LogLimit::new();
    if let Some(suppressed) = MISSING.pass() {
        let route = req.match_pattern();
        tracing::error!(
            route,
            suppressed,
            "a handler asks for a PresenceClient, and the app has none: add `.app_data(presence.client())`"
        );
    }
    ErrorInternalServerError("the app is not configured correctly; its log says more")
}
