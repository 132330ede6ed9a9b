//! [`PhoenixSession`]: the ready-made session for clients of Phoenix, with channels in many rooms.

use actix::Addr;
use actix_web::{HttpRequest, HttpResponse, web};

use super::{
    Connection,
    channels::Channels,
    options::{StopSignal, WsOptions, WsSessionError},
    ws::{Socket, handshake},
};
use crate::{
    model::{Info, RoomName, SessionKey, UserId},
    registry::RoomRegistry,
};

/// A WebSocket session that speaks Phoenix Channels, version 2.0.0: connecting alone joins nothing,
/// and each topic the client joins is a room.
///
/// ```
/// use actix_presence::{PhoenixSession, RoomRegistry, WsSessionError};
/// use actix_web::{HttpRequest, HttpResponse, web};
///
/// async fn socket(
///     req: HttpRequest,
///     body: web::Payload,
///     registry: web::Data<actix::Addr<RoomRegistry>>,
/// ) -> Result<HttpResponse, WsSessionError> {
///     let session = PhoenixSession::new(registry.get_ref().clone());
///     session.rooms(|room| room.as_str().starts_with("public:")).start(&req, body)
/// }
/// ```
#[derive(Debug)]
pub struct PhoenixSession {
    me: Connection,
    channels: Channels,
    options: WsOptions,
}

impl PhoenixSession {
    /// An anonymous session that may join every room.
    #[must_use]
    pub fn new(registry: Addr<RoomRegistry>) -> Self {
        let (me, options) = (Connection::new(registry), WsOptions::default());
        Self { me, channels: Channels::default(), options }
    }

    /// Whose session it is; `None` is anonymous.
    #[must_use]
    pub fn user(mut self, user: Option<UserId>) -> Self {
        self.channels.user = user;
        self
    }

    /// What to attach to the presences. The client may name another info when it joins. A resumed client
    /// session keeps the info that it has.
    #[must_use]
    pub fn info(mut self, info: Info) -> Self {
        self.channels.info = info;
        self
    }

    /// What to attach to the presences; the client cannot replace any of its keys.
    #[must_use]
    pub fn fixed_info(mut self, info: Info) -> Self {
        self.channels.fixed = info.clone();
        self.info(info)
    }

    /// The client session that survives reconnects, if the client has one: see
    /// [`Join::session`](crate::Join::session).
    #[must_use]
    pub fn session(mut self, session: Option<SessionKey>) -> Self {
        self.channels.session = session;
        self
    }

    /// Which rooms the client may join; others are refused as `unauthorized`.
    #[must_use]
    pub fn rooms(mut self, allowed: impl Fn(&RoomName) -> bool + 'static) -> Self {
        self.channels.allowed = Box::new(allowed);
        self
    }

    /// Closes with 1001 at this signal if it is in no room; the registry closes sessions that are.
    #[must_use]
    pub fn until(mut self, stop: StopSignal) -> Self {
        self.channels.stop = Some(stop);
        self
    }

    /// Limits.
    #[must_use]
    pub fn options(self, options: WsOptions) -> Self {
        Self { options, ..self }
    }

    /// Answers the handshake and starts the session.
    ///
    /// # Errors
    ///
    /// [`WsSessionError::Handshake`].
    pub fn start(
        self,
        req: &HttpRequest,
        payload: web::Payload,
    ) -> Result<HttpResponse, WsSessionError> {
        let mut response = handshake(req, &["phoenix"])?;
        let options = match self.channels.session {
            Some(_) => self.options.place_kept_for(&self.me),
            None => self.options,
        };
        let session = Socket::start(req, payload, self.me, self.channels, options);
        Ok(response.streaming(session))
    }
}
