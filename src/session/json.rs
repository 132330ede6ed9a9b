//! [`WsSession`]: the ready-made session in one room that speaks JSON.

use actix::prelude::*;
use actix_web::{HttpRequest, HttpResponse, web};
use futures_util::{StreamExt, stream};
use serde_json::{Map, Value};
use tokio::sync::oneshot;

use super::{
    Connection,
    batches::batch_join,
    options::{WsOptions, WsSessionError, session_builder},
    ws::{Closing, Ctx, Protocol, Socket, handshake, run_until},
};
use crate::{
    messages::{Dialect, Disconnect, Feed, ForwardMessage, Publish, PublishError, UpdateInfo},
    model::{Info, InvalidInfo, RoomName, SessionKey, UserId},
    registry::RoomRegistry,
    wire::json::{self, ClientFrame},
};

/// A WebSocket session in one room that speaks JSON.
///
/// ```
/// use actix_presence::{Feed, PresenceClient, RoomName, WsSession, WsSessionError};
/// use actix_web::{HttpRequest, HttpResponse, web};
///
/// async fn enter(
///     req: HttpRequest,
///     body: web::Payload,
///     presence: PresenceClient,
/// ) -> Result<HttpResponse, WsSessionError> {
///     let room = RoomName::new("lobby").expect("a name within the limits");
///     WsSession::new(presence.registry(), room).feed(Feed::Diff).start(&req, body).await
/// }
/// ```
#[derive(Debug)]
pub struct WsSession {
    me: Connection,
    member: JsonMember,
    options: WsOptions,
}

#[derive(Debug)]
struct JsonMember {
    room: RoomName,
    user: Option<UserId>,
    info: Info,
    /// The part of the info that updates do not replace.
    fixed: Info,
    session: Option<SessionKey>,
    feed: Feed,
    /// Where the answer to the join goes.
    handshake: Option<oneshot::Sender<Result<(), WsSessionError>>>,
}

impl WsSession {
    /// An anonymous session in the room, with the whole member list.
    #[must_use]
    pub fn new(registry: Addr<RoomRegistry>, room: RoomName) -> Self {
        let (user, info, fixed, session, feed) = (None, Info::EMPTY, Info::EMPTY, None, Feed::Full);
        let member = JsonMember { room, user, info, fixed, session, feed, handshake: None };
        Self { me: Connection::new(registry), member, options: WsOptions::default() }
    }

    session_builder!(member);

    /// How much the client is sent about who is in the room.
    #[must_use]
    pub fn feed(mut self, feed: Feed) -> Self {
        self.member.feed = feed;
        self
    }

    /// Starts the session and joins, then answers the handshake.
    ///
    /// # Errors
    ///
    /// [`WsSessionError`]; the request can still be answered with a status.
    pub async fn start(
        mut self,
        req: &HttpRequest,
        payload: web::Payload,
    ) -> Result<HttpResponse, WsSessionError> {
        let mut response = handshake(req, &[])?;
        let (handshake, joined) = oneshot::channel();
        self.member.handshake = Some(handshake);
        let options = self.place_options();
        let mut session = Socket::start(req, payload, self.me, self.member, options);
        let (first, joined) = run_until(&mut session, joined).await;
        joined.unwrap_or(Err(WsSessionError::Stopped))?;
        Ok(response.streaming(stream::iter(first).chain(session)))
    }
}

impl Protocol for JsonMember {
    fn started(socket: &mut Socket<Self>, ctx: &mut Ctx<Self>) {
        let Self { room, user, info, fixed, session, feed, handshake } = &mut socket.protocol;
        let handshake = handshake.take();
        let join = socket.me.join(room.clone(), ctx.address()).user(user.take());
        let join = join.info(std::mem::take(info)).fixed_info(fixed.clone());
        let join = join.session(session.take()).dialect(Dialect::Json(*feed));
        // No frame is read before the join is answered.
        let joining = batch_join(socket.me.registry(), join).into_actor(socket);
        ctx.wait(joining.map(move |answer, _, _| {
            let joined = match answer {
                Some(joined) => joined.map(drop).map_err(WsSessionError::from),
                None => Err(WsSessionError::Stopped),
            };
            if let Some(handshake) = handshake {
                // The receiver may have been dropped, and the session with it.
                let _ = handshake.send(joined);
            }
        }));
    }

    fn text(socket: &mut Socket<Self>, ctx: &mut Ctx<Self>, text: &str) {
        let frame = json::read(text);
        if !matches!(frame, Ok(ClientFrame::Heartbeat)) {
            socket.me.batched_touch();
        }
        match frame {
            Ok(ClientFrame::Heartbeat) => socket.me.batched_heartbeat(),
            Ok(ClientFrame::Message { payload, to_others }) => {
                let publish = Publish::json(socket.protocol.room.clone(), payload);
                let except = to_others.then(|| socket.me.id());
                let publish = Publish { except, ..publish };
                socket.publish(ctx, publish, |socket, answer| {
                    if let Err(error) = answer {
                        let code = match error {
                            PublishError::NotAMember => "not_a_member",
                            PublishError::NotAllowed => "not_allowed",
                            PublishError::ReservedEvent => "bad_frame",
                        };
                        socket.outgoing.text(json::error(code, &error.to_string()));
                    }
                });
            }
            Ok(ClientFrame::Update(info)) => update(socket, ctx, info),
            Err(error) => socket.outgoing.text(json::error(error.code(), &error.to_string())),
        }
    }

    fn forward(socket: &mut Socket<Self>, _: &mut Ctx<Self>, msg: ForwardMessage) {
        socket.outgoing.forward(msg.payload, msg.reservation);
    }

    fn disconnect(socket: &mut Socket<Self>, ctx: &mut Ctx<Self>, msg: Disconnect) {
        socket.close(ctx, Closing::Ordered(msg));
    }
}

fn update(
    socket: &mut Socket<JsonMember>,
    ctx: &mut Ctx<JsonMember>,
    mut info: Map<String, Value>,
) {
    info.extend(socket.protocol.fixed.to_map());
    let info = match Info::from_map(&info) {
        Ok(info) => info,
        Err(error) => {
            let code = match error {
                InvalidInfo::TooLarge { .. } => "info_too_large",
                _ => "bad_frame",
            };
            return socket.outgoing.text(json::error(code, &error.to_string()));
        }
    };
    let (room, connection) = (socket.protocol.room.clone(), socket.me.id());
    let update = socket.me.registry().send(UpdateInfo { room, connection, info });
    ctx.wait(update.into_actor(socket).map(|answer, socket, ctx| {
        if answer.is_err() {
            socket.registry_stopped(ctx);
        }
    }));
}
