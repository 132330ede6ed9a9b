//! Limits of a WebSocket session, and why one did not start.

use std::time::{Duration, Instant};

use actix_web::{ResponseError, http::StatusCode};

use super::Connection;
use crate::messages::{JoinError, SessionPlace};

/// Limits of a WebSocket session.
///
/// ```
/// use std::time::Duration;
///
/// use actix_presence::WsOptions;
///
/// let options = WsOptions::default().max_rate(50).ping_interval(Duration::from_secs(25));
/// ```
#[derive(Debug)]
pub struct WsOptions {
    pub(super) max_frame_size: usize,
    pub(super) max_rate: Option<u32>,
    pub(super) ping_interval: Option<Duration>,
    pub(super) place: Option<SessionPlace>,
}

impl Default for WsOptions {
    /// Messages of at most 64 KiB, no rate limit, no pings.
    fn default() -> Self {
        Self { max_frame_size: 65_536, max_rate: None, ping_interval: None, place: None }
    }
}

impl WsOptions {
    /// The largest message of the client, in bytes, fragments together. A larger one ends the
    /// session with 1009. Default 64 KiB.
    #[must_use]
    pub fn max_frame_size(self, bytes: usize) -> Self {
        Self { max_frame_size: bytes, ..self }
    }

    /// How many frames the client may send per second, and in one burst. One more ends the session
    /// with 1008. Default no limit.
    #[must_use]
    pub fn max_rate(self, frames: impl Into<Option<u32>>) -> Self {
        Self { max_rate: frames.into(), ..self }
    }

    /// How often to ping the client. A client library answers by itself, so this keeps a silent
    /// client present. Default never.
    #[must_use]
    pub fn ping_interval(self, interval: impl Into<Option<Duration>>) -> Self {
        Self { ping_interval: interval.into(), ..self }
    }

    /// A place among a limited number of sessions, given back when this one has ended: see
    /// [`SessionPlaces`](crate::SessionPlaces).
    #[must_use]
    pub fn place(self, place: SessionPlace) -> Self {
        Self { place: Some(place), ..self }
    }

    /// Has the place kept while the presences of this connection fade.
    pub(super) fn place_kept_for(self, me: &Connection) -> Self {
        let keep = |place: SessionPlace| place.kept_for(me.id(), me.registry().clone().recipient());
        Self { place: self.place.map(keep), ..self }
    }
}

/// The builder methods that the ready-made sessions share; the member's fields are those of this field.
macro_rules! session_builder {
    ($member:ident) => {
        /// Sets the user; `None` is anonymous.
        #[must_use]
        pub fn user(mut self, user: Option<UserId>) -> Self {
            self.$member.user = user;
            self
        }

        /// Sets the info of the presence, which the client may replace. A resumed client session keeps its
        /// info.
        #[must_use]
        pub fn info(mut self, info: Info) -> Self {
            self.$member.info = info;
            self
        }

        /// Sets the info of the presence; the client cannot replace any of its keys.
        #[must_use]
        pub fn fixed_info(mut self, info: Info) -> Self {
            self.$member.fixed = info.clone();
            self.info(info)
        }

        /// Sets the client session that survives reconnects, if the client has one: see
        /// [`Join::session`](crate::Join::session).
        #[must_use]
        pub fn session(mut self, session: Option<SessionKey>) -> Self {
            self.$member.session = session;
            self
        }

        /// Sets the limits.
        #[must_use]
        pub fn options(self, options: WsOptions) -> Self {
            Self { options, ..self }
        }

        /// The limits, with the place kept while a client session fades.
        fn place_options(&mut self) -> WsOptions {
            let options = std::mem::take(&mut self.options);
            match self.$member.session {
                Some(_) => options.place_kept_for(&self.me),
                None => options,
            }
        }
    };
}
pub(super) use session_builder;

/// Why a session did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WsSessionError {
    /// The registry has refused the join.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The request is no WebSocket handshake.
    #[error("a WebSocket handshake is needed: {0}")]
    Handshake(String),
    /// The registry has stopped.
    #[error("the registry has stopped")]
    Stopped,
}

impl ResponseError for WsSessionError {
    fn status_code(&self) -> StatusCode {
        match self {
            Self::Handshake(_) => StatusCode::BAD_REQUEST,
            Self::Stopped => StatusCode::SERVICE_UNAVAILABLE,
            Self::Join(error) => error.status_code(),
        }
    }
}

/// A rate limit: so many frames per second, with as many in one burst.
#[derive(Debug)]
pub(super) struct RateLimit {
    per_second: f64,
    left: f64,
    updated: Instant,
}

impl RateLimit {
    pub fn new(per_second: u32, now: Instant) -> Self {
        let per_second = f64::from(per_second);
        Self { per_second, left: per_second, updated: now }
    }

    pub fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.updated).as_secs_f64();
        self.updated = now;
        self.left = (self.left + passed * self.per_second).min(self.per_second);
        let is_within = self.left >= 1.0;
        self.left -= f64::from(u8::from(is_within));
        is_within
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_taken_and_then_so_many_per_second() {
        let start = Instant::now();
        let mut rate = RateLimit::new(2, start);
        let after = |millis| start + Duration::from_millis(millis);
        let taken = [0, 0, 0, 500, 500, 5000, 5000, 5000].map(|millis| rate.take(after(millis)));
        assert_eq!(taken, [true, true, false, true, false, true, true, false]);
    }
}
