//! [`PhoenixSession`]: the ready-made session for clients of Phoenix, with channels in many rooms.

use actix::Addr;
use actix_web::{HttpRequest, HttpResponse, web};

use super::{
    Connection,
    channels::Channels,
    options::{WsOptions, WsSessionError, session_builder},
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

    session_builder!(channels);

    /// Which rooms the client may join; others are refused as `unauthorized`.
    #[must_use]
    pub fn rooms(mut self, allowed: impl Fn(&RoomName) -> bool + 'static) -> Self {
        self.channels.allowed = Box::new(allowed);
        self
    }

    /// Answers the handshake and starts the session.
    ///
    /// # Errors
    ///
    /// [`WsSessionError::Handshake`].
    pub fn start(
        mut self,
        req: &HttpRequest,
        payload: web::Payload,
    ) -> Result<HttpResponse, WsSessionError> {
        let mut response = handshake(req, &["phoenix"])?;
        let options = self.place_options();
        let session = Socket::start(req, payload, self.me, self.channels, options);
        Ok(response.streaming(session))
    }
}
