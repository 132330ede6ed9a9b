//! The session of agents: an actor on actix-web-actors, with a protocol of lines of text.

use std::time::Duration;

use actix::prelude::*;
use actix_presence::{
    Cause, Connection, Dialect, Disconnect, Feed, ForwardMessage, IdleStep, IdleWatch,
    PresenceClient, Publish, RoomName,
};
use actix_web::{HttpRequest, HttpResponse, web};
use actix_web_actors::ws;
use serde_json::{Value, json};

use super::login::Person;

/// One agent in one room. Dropping `me` leaves the room.
struct Agent {
    me: Connection,
    room: RoomName,
    person: Person,
    idle: IdleWatch,
}

impl Actor for Agent {
    type Context = ws::WebsocketContext<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(256);
        watch(self, ctx);
        let join = self.me.join(self.room.clone(), ctx.address());
        let join = join.user(self.person.user.clone()).info(self.person.info.clone());
        let join = join.dialect(Dialect::Json(Feed::None)); // messages with their senders, no lists
        let joining = self.me.enter(join).into_actor(self);
        // No line is read before the room knows this agent.
        ctx.wait(joining.map(|answer, _, ctx| match answer {
            Ok(room) => ctx.text(format!("* {} here", room.snapshot.occupancy().connections)),
            Err(refused) => close(ctx, refused),
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
        close(ctx, order);
    }
}

impl StreamHandler<Result<ws::Message, ws::ProtocolError>> for Agent {
    fn handle(&mut self, frame: Result<ws::Message, ws::ProtocolError>, ctx: &mut Self::Context) {
        self.idle.heard();
        self.me.touch();
        match frame {
            Ok(ws::Message::Text(line)) => {
                let Some(line) = self.me.text(&line) else { return };
                let message = Publish::json(self.room.clone(), json!({ "text": line }));
                let saying = self.me.publish(message).into_actor(self);
                // The next line is read when this one is with the room.
                ctx.wait(saying.map(|said, _, ctx| {
                    if let Err(refused) = said {
                        ctx.text(format!("* {refused}"));
                    }
                }));
            }
            Ok(ws::Message::Ping(bytes)) => ctx.pong(&bytes),
            Ok(ws::Message::Pong(_)) => {}
            Ok(ws::Message::Close(reason)) => {
                self.me.closed_by_client(reason.as_ref());
                ctx.close(reason);
                ctx.stop();
            }
            Ok(_) => close(ctx, (ws::CloseCode::Unsupported, "only lines of text")),
            Err(ws::ProtocolError::Overflow) => close(ctx, (ws::CloseCode::Size, "too long")),
            Err(_) => ctx.stop(),
        }
    }
}

/// Pings a silent client, and closes when it stays silent.
fn watch(agent: &Agent, ctx: &mut ws::WebsocketContext<Agent>) {
    ctx.run_later(agent.idle.wait(), |agent, ctx| {
        match agent.idle.step() {
            Some(IdleStep::Close) => {
                agent.me.leave(Cause::Expired);
                return close(ctx, Disconnect { code: 4000, cause: Cause::Expired });
            }
            Some(IdleStep::Ping) => ctx.ping(b""),
            None => {}
        }
        watch(agent, ctx);
    });
}

fn close(ctx: &mut ws::WebsocketContext<Agent>, why: impl Into<ws::CloseReason>) {
    ctx.close(Some(why.into()));
    ctx.stop();
}

/// `GET /agent/{room}`, for agents.
pub async fn enter(
    req: HttpRequest,
    body: web::Payload,
    room: web::Path<RoomName>,
    presence: PresenceClient,
    person: Person,
) -> actix_web::Result<HttpResponse> {
    let me = Connection::new(presence.registry()).watched(&req);
    let idle = IdleWatch::new(Duration::from_secs(25), Duration::from_secs(60));
    ws::start(Agent { me, room: room.into_inner(), person: person.agent()?, idle }, &req, body)
}
