//! A session that only reads: a task on `actix-ws`, with the JSON frames of the server. It is for agents
//! who learn, and is seen in the room like everybody.

use std::time::Duration;

use actix_presence::{
    Cause, Connection, Dialect, Disconnect, Feed, Forwarded, Heard, IdleStep, IdleWatch,
    OutletStream, PresenceClient, PresenceError, RoomName,
};
use actix_web::{HttpRequest, HttpResponse, web};
use actix_ws::{Closed, Message, MessageStream, Session};

use super::login::Person;

/// `GET /listen/{room}`. It joins before the handshake is answered, so that a refusal has a status.
pub async fn enter(
    req: HttpRequest,
    body: web::Payload,
    room: web::Path<RoomName>,
    presence: PresenceClient,
    person: Person,
) -> actix_web::Result<HttpResponse> {
    let (response, session, frames) = actix_ws::handle(&req, body)?;
    let me = Connection::new(presence.registry()).watched(&req);
    let (outlet, heard) = me.outlet(256); // who falls further behind loses its place (4003)
    let join = me.join(room.into_inner(), outlet).user(person.user).info(person.info);
    me.enter(join.dialect(Dialect::Json(Feed::Diff))).await?;
    actix_web::rt::spawn(listen(me, heard, session, frames));
    Ok(response)
}

/// The session. However it ends, the room is left, because `me` is dropped.
async fn listen(
    mut me: Connection,
    mut heard: OutletStream,
    mut session: Session,
    mut frames: MessageStream,
) -> Result<(), Closed> {
    let mut idle = IdleWatch::new(Duration::from_secs(25), Duration::from_secs(60));
    let end = loop {
        tokio::select! {
            heard = heard.recv() => match heard {
                // Of one of several rooms: this session has one.
                Some(Heard::Frame(frame)) if matches!(frame.kind, Forwarded::Closed { .. }) => {}
                Some(Heard::Frame(frame)) => session.text(frame.payload).await?,
                Some(Heard::Close(order)) => break Some(order.into()),
                None => break Some(PresenceError::Ended.into()),
            },
            step = idle.next() => match step {
                IdleStep::Ping => session.ping(b"").await?,
                IdleStep::Close => {
                    me.leave(Cause::Expired);
                    break Some(Disconnect { code: 4000, cause: Cause::Expired }.into());
                }
            },
            frame = frames.recv() => {
                let Some(Ok(frame)) = frame else { return Ok(()) }; // the connection has broken
                idle.heard();
                me.touch();
                match frame {
                    Message::Ping(bytes) => session.pong(&bytes).await?,
                    Message::Close(reason) => {
                        me.closed_by_client(reason.as_ref());
                        break reason;
                    }
                    _ => {}
                }
            }
        }
    };
    session.close(end).await
}
