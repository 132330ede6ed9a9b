//! The session of agents: an actor on actix-web-actors, with a protocol of lines of text.

use actix::prelude::*;
use actix_presence::{Connection, Dialect, Disconnect, Feed, ForwardMessage, Publish, RoomName};
use actix_web::{HttpRequest, HttpResponse, web};
use actix_web_actors::ws;
use serde_json::{Value, json, value::to_raw_value};

use super::{app::Desk, login::Person};

/// One agent in one room. Dropping `me` leaves the room.
struct Agent {
    me: Connection,
    room: RoomName,
    person: Person,
}

impl Actor for Agent {
    type Context = ws::WebsocketContext<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(256);
        let join = self.me.join(self.room.clone(), ctx.address());
        let join = join.user(self.person.user.clone()).info(self.person.info.clone());
        let join = join.dialect(Dialect::Json(Feed::None)); // messages with their senders, no lists
        let joining = self.me.registry().send(join).into_actor(self);
        // No line is read before the room knows this agent.
        ctx.wait(joining.map(|answer, _, ctx| match answer {
            Ok(Ok(room)) => ctx.text(format!("* {} here", room.snapshot.occupancy().connections)),
            Ok(Err(refused)) => close(ctx, 1008, refused.to_string()),
            Err(stopped) => close(ctx, 1001, stopped.to_string()),
        }));
    }
}

impl Handler<ForwardMessage> for Agent {
    type Result = ();

    fn handle(&mut self, msg: ForwardMessage, ctx: &mut Self::Context) {
        let frame: Value = serde_json::from_str(&msg.payload).unwrap_or_default();
        let (who, text) = (frame["from"]["id"].as_str(), frame["payload"]["text"].as_str());
        if let (Some(who), Some(text)) = (who, text) {
            ctx.text(format!("{who}: {text}"));
        }
    }
}

impl Handler<Disconnect> for Agent {
    type Result = ();

    fn handle(&mut self, order: Disconnect, ctx: &mut Self::Context) {
        close(ctx, order.code, order.cause.to_string());
    }
}

impl StreamHandler<Result<ws::Message, ws::ProtocolError>> for Agent {
    fn handle(&mut self, frame: Result<ws::Message, ws::ProtocolError>, ctx: &mut Self::Context) {
        self.me.touch();
        match frame {
            Ok(ws::Message::Text(line)) => {
                let Some(line) = self.me.text(&line) else { return };
                let line = to_raw_value(&json!({ "text": line }));
                let Ok(line) = line else { return ctx.text("* that cannot be said") };
                let message = Publish::json(self.room.clone(), line).sent_by(self.me.id());
                let saying = self.me.registry().send(message).into_actor(self);
                // The next line is read when this one is with the room.
                ctx.wait(saying.map(|_, _, _| ()));
            }
            Ok(ws::Message::Ping(bytes)) => ctx.pong(&bytes),
            Ok(ws::Message::Pong(_)) => {}
            Ok(ws::Message::Close(reason)) => {
                self.me.goodbye();
                ctx.close(reason);
                ctx.stop();
            }
            Ok(_) => close(ctx, 1003, "only lines of text".to_owned()),
            Err(_) => ctx.stop(),
        }
    }
}

fn close(ctx: &mut ws::WebsocketContext<Agent>, code: u16, why: String) {
    ctx.close(Some(ws::CloseReason { code: code.into(), description: Some(why) }));
    ctx.stop();
}

/// `GET /agent/{room}`.
pub async fn enter(
    req: HttpRequest,
    body: web::Payload,
    room: web::Path<RoomName>,
    desk: web::Data<Desk>,
) -> actix_web::Result<HttpResponse> {
    let person = desk.logins.person(&req).await?;
    let me = Connection::new(desk.registry.clone()).watched(&req);
    ws::start(Agent { me, room: room.into_inner(), person }, &req, body)
}
