//! Who may join: what the app's hooks are asked and what they decide, and the question whether a join would be
//! allowed.

use std::borrow::Cow;

use actix::prelude::*;

use super::JoinError;
use crate::model::{Info, Rights, RoomName, SessionKey, UserId};

/// A join as the hook of [`authorize_async`](crate::PresenceConfig::authorize_async) sees it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct JoinRequest {
    /// The room to enter.
    pub room: RoomName,
    /// The user; `None` is anonymous.
    pub user: Option<UserId>,
    /// What the join would attach to the presence.
    pub info: Info,
}

/// Whether a user may join: the result of the hooks [`authorize`](crate::PresenceConfig::authorize) and
/// [`authorize_async`](crate::PresenceConfig::authorize_async).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Decision {
    /// Yes, with all rights.
    Allow,
    /// With these rights; no, if [`Rights::join`] is not among them.
    Grant(Rights),
    /// No, with the reason for the client.
    Deny(Cow<'static, str>),
    /// It cannot be said now, as the app's database does not answer, say. The client is to try again later:
    /// [`JoinError::Undecided`].
    Undecided,
}

impl Decision {
    /// No, for this reason.
    #[must_use]
    pub fn deny(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Deny(reason.into())
    }
}

/// Asks whether a user could join now. The [`Join`](crate::Join) itself may still be refused.
///
/// A browser does not tell a page why a WebSocket failed: only a request that cannot become a session, such
/// as a plain GET of the same address, can show the reason.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<(), JoinError>")]
pub struct Admit {
    /// The room to enter.
    pub room: RoomName,
    /// The user; `None` is anonymous.
    pub user: Option<UserId>,
    /// What would be attached to the presence.
    pub info: Info,
    /// The client session, if there is one: resuming it needs no space in the room.
    pub session: Option<SessionKey>,
}

impl Admit {
    /// Asks for an anonymous user without info or client session.
    #[must_use]
    pub fn new(room: RoomName) -> Self {
        Self { room, user: None, info: Info::EMPTY, session: None }
    }

    /// Sets the user.
    #[must_use]
    pub fn user(self, user: impl Into<Option<UserId>>) -> Self {
        Self { user: user.into(), ..self }
    }

    /// Sets the info.
    #[must_use]
    pub fn info(self, info: Info) -> Self {
        Self { info, ..self }
    }

    /// Sets the client session.
    #[must_use]
    pub fn session(self, session: impl Into<Option<SessionKey>>) -> Self {
        Self { session: session.into(), ..self }
    }
}
