//! Places of sessions where their number is limited: a session keeps its place while it fades.

use std::{fmt, sync::Arc};

use actix::prelude::*;
use smallvec::SmallVec;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::model::{ConnectionId, Info, RoomName, SessionKey, UserId};

/// A limited number of places for sessions. A clone shares them.
///
/// ```
/// use actix_presence::SessionPlaces;
///
/// let places = SessionPlaces::new(1);
/// let place = places.take();
/// assert!(place.is_some() && places.take().is_none());
/// drop(place);
/// assert!(places.take().is_some());
/// ```
#[derive(Clone, Debug)]
pub struct SessionPlaces(Arc<Semaphore>);

impl SessionPlaces {
    /// So many places.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS))))
    }

    /// A free place, if there is one.
    #[must_use]
    pub fn take(&self) -> Option<SessionPlace> {
        Arc::clone(&self.0).try_acquire_owned().ok().map(SessionPlace::new)
    }
}

/// A place among a limited number of sessions, for [`WsOptions::place`](crate::WsOptions::place).
///
/// It is free again when it is dropped: when the socket of its session has ended or, if the session then
/// fades, when the grace is over. Meanwhile a [`TakePlace`] of the same client gets it.
#[derive(Debug)]
pub struct SessionPlace {
    permit: Option<OwnedSemaphorePermit>,
    open: Option<Arc<()>>,
    keeper: Option<Box<PlaceKeeper>>,
}

/// The connections whose fading keeps a place when its socket has ended.
#[derive(Debug)]
struct PlaceKeeper {
    registry: Recipient<PlaceBack>,
    /// The connection of the socket, and the one that had the place before.
    connections: SmallVec<[ConnectionId; 2]>,
}

impl SessionPlace {
    fn new(permit: OwnedSemaphorePermit) -> Self {
        Self { permit: Some(permit), open: None, keeper: None }
    }

    /// A place where there is no limit.
    #[must_use]
    pub fn unlimited() -> Self {
        Self { permit: None, open: None, keeper: None }
    }

    /// Counts the socket of its session among those that are open: holds this for as long as it is.
    #[must_use]
    pub fn counted(mut self, open: Arc<()>) -> Self {
        self.open = Some(open);
        self
    }

    /// A place that is kept for a fading connection, if there is one.
    pub(crate) fn of(
        permit: OwnedSemaphorePermit,
        fading: Option<ConnectionId>,
        registry: Recipient<PlaceBack>,
    ) -> Self {
        match fading {
            Some(connection) => Self::new(permit).kept_for(connection, registry),
            None => Self::new(permit),
        }
    }

    /// Keeps the place for the connection if that fades when the place is dropped.
    pub(crate) fn kept_for(
        mut self,
        connection: ConnectionId,
        registry: Recipient<PlaceBack>,
    ) -> Self {
        if self.permit.is_some() {
            let new = || Box::new(PlaceKeeper { registry, connections: SmallVec::new() });
            // The latest first.
            self.keeper.get_or_insert_with(new).connections.insert(0, connection);
        }
        self
    }
}

impl Drop for SessionPlace {
    fn drop(&mut self) {
        if let (Some(permit), Some(keeper)) = (self.permit.take(), self.keeper.take()) {
            let PlaceKeeper { registry, connections } = *keeper;
            // One for each place, so the queue stays bounded.
            registry.do_send(PlaceBack { permit, connections });
        }
    }
}

/// Returns the place of a closed socket: it is for the first of these connections that fades.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct PlaceBack {
    pub permit: OwnedSemaphorePermit,
    pub connections: SmallVec<[ConnectionId; 2]>,
}

/// Asks for the place of an older connection of a client session, as none is free: of one on this node that
/// fades, or of one that is still open, whose socket is closed first, and whose presences fade until the newer
/// one joins. `None` if there is no such connection.
///
/// A socket is closed only if the newer connection may enter each of its rooms: a session key gives no access
/// beyond the token. The reply comes when that socket is closed; wait for it for a limited time.
#[derive(Message)]
#[rtype(result = "Option<SessionPlace>")]
pub struct TakePlace {
    /// The user; `None` is anonymous.
    pub user: Option<UserId>,
    /// The client session.
    pub session: SessionKey,
    /// The info, for the `authorize` hook.
    pub info: Info,
    /// Which rooms the newer connection may enter.
    pub enters: Box<dyn Fn(&RoomName) -> bool + Send>,
}

impl fmt::Debug for TakePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TakePlace").field("user", &self.user).finish_non_exhaustive()
    }
}
