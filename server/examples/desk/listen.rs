//! A session that only reads: a task on `actix-ws`, with the JSON frames of the server. It is for agents
//! who learn, and is seen in the room like everybody.

use actix::prelude::*;
use actix_presence::{Connection, Dialect, Disconnect, Feed, ForwardMessage, Forwarded, RoomName};
use actix_web::error::{ErrorForbidden, ErrorServiceUnavailable};
use actix_web::{HttpRequest, HttpResponse, web};
use actix_ws::{CloseReason, Message, Session};

use super::app::Desk;

/// Writes to one client what its room sends: the registry delivers to an actor.
struct Outlet(Session);

impl Actor for Outlet {
    type Context = Context<Self>;
}

impl Handler<ForwardMessage> for Outlet {
    type Result = ();

    fn handle(&mut self, msg: ForwardMessage, ctx: &mut Context<Self>) {
        if !matches!(msg.kind, Forwarded::Closed { .. }) {
            // While the client does not read, the mailbox fills; when it is full, the room lets go of it.
            let mut session = self.0.clone();
            let writing = async move { session.text(msg.payload).await };
            ctx.wait(writing.into_actor(self).map(|_, _, _| ()));
        }
    }
}

impl Handler<Disconnect> for Outlet {
    type Result = ();

    fn handle(&mut self, order: Disconnect, ctx: &mut Context<Self>) {
        let (code, description) = (order.code.into(), Some(order.cause.to_string()));
        let closing = self.0.clone().close(Some(CloseReason { code, description }));
        ctx.wait(closing.into_actor(self).map(|_, _, ctx| ctx.stop()));
    }
}

/// `GET /listen/{room}`. It joins before the handshake is answered, so that a refusal has a status.
pub async fn enter(
    req: HttpRequest,
    body: web::Payload,
    room: web::Path<RoomName>,
    desk: web::Data<Desk>,
) -> actix_web::Result<HttpResponse> {
    let person = desk.logins.person(&req).await?;
    let (response, mut session, mut frames) = actix_ws::handle(&req, body)?;
    let mut me = Connection::new(desk.registry.clone()).watched(&req);
    let join = me.join(room.into_inner(), Outlet(session.clone()).start());
    let join = join.user(person.user).info(person.info).dialect(Dialect::Json(Feed::Diff));
    let joined = me.registry().send(join).await.map_err(ErrorServiceUnavailable)?;
    joined.map_err(ErrorForbidden)?;
    actix_web::rt::spawn(async move {
        let mut reason = None;
        while let Some(Ok(frame)) = frames.recv().await {
            me.touch();
            match frame {
                Message::Ping(bytes) if session.pong(&bytes).await.is_err() => break,
                Message::Close(given) => {
                    me.goodbye();
                    reason = given;
                    break;
                }
                _ => {}
            }
        }
        // It may be closed already. Dropping `me` leaves the room.
        let _ = session.close(reason).await;
    });
    Ok(response)
}
