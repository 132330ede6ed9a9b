use actix::prelude::*;
use actix_presence::{
    Connection, Disconnect, ForwardMessage, Forwarded, PresenceClient, Publish, RoomName, UserId,
};
use actix_web::{HttpRequest, HttpResponse, web};
use actix_web_actors::ws;

struct Chatter {
    me: Connection,
    room: RoomName,
    user: Option<UserId>,
}

impl Actor for Chatter {
    type Context = ws::WebsocketContext<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(256);
        let join = self.me.join(self.room.clone(), ctx.address()).user(self.user.clone());
        let joining = self.me.enter(join).into_actor(self);
        // No frame is read before the room knows this connection.
        ctx.wait(joining.map(|answer, _, ctx| match answer {
            Ok(joined) => ctx.text(format!("{} are here", joined.snapshot.occupancy().connections)),
            Err(refused) => close(ctx, refused),
        }));
    }
}

impl Handler<ForwardMessage> for Chatter {
    type Result = ();

    fn handle(&mut self, msg: ForwardMessage, ctx: &mut Self::Context) {
        if msg.kind == Forwarded::Message {
            ctx.text(msg.payload);
        }
    }
}

impl Handler<Disconnect> for Chatter {
    type Result = ();

    fn handle(&mut self, order: Disconnect, ctx: &mut Self::Context) {
        close(ctx, order);
    }
}

impl StreamHandler<Result<ws::Message, ws::ProtocolError>> for Chatter {
    fn handle(&mut self, frame: Result<ws::Message, ws::ProtocolError>, ctx: &mut Self::Context) {
        match frame {
            Ok(ws::Message::Text(text)) => {
                let Some(text) = self.me.text(&text) else { return };
                let message = Publish::new(self.room.clone(), text.to_owned());
                // Waiting for the answer is the backpressure: the next frame is read after it.
                ctx.wait(self.me.publish(message).into_actor(self).map(|answer, _, ctx| {
                    if let Err(refused) = answer {
                        ctx.text(refused.to_string());
                    }
                }));
            }
            Ok(ws::Message::Ping(bytes)) => {
                self.me.touch();
                ctx.pong(&bytes);
            }
            Ok(ws::Message::Pong(_)) => self.me.touch(),
            Ok(ws::Message::Close(reason)) => {
                self.me.closed_by_client(reason.as_ref());
                ctx.close(reason);
                ctx.stop();
            }
            Ok(_) => close(ctx, (ws::CloseCode::Unsupported, "only text")),
            Err(ws::ProtocolError::Overflow) => close(ctx, (ws::CloseCode::Size, "too long")),
            Err(_) => ctx.stop(),
        }
    }
}

fn close(ctx: &mut ws::WebsocketContext<Chatter>, why: impl Into<ws::CloseReason>) {
    ctx.close(Some(why.into()));
    ctx.stop();
}

async fn enter(
    req: HttpRequest,
    body: web::Payload,
    room: web::Path<RoomName>,
    presence: PresenceClient,
) -> actix_web::Result<HttpResponse> {
    let me = Connection::new(presence.registry()).watched(&req);
    ws::start(Chatter { me, room: room.into_inner(), user: None }, &req, body)
}
