//! The floor that the load tool measures against: the simplest chat on actix-web-actors, written by
//! hand, that knows nothing of presence.
//!
//! ```text
//! cargo run --release --example floor -- --listen 127.0.0.1:9000 --workers 1
//! ```
//!
//! `/echo` gives back each text; `/ws/{room}` gives each text to all members of the room, with one
//! `do_send` and one copy per member. No identities, no limits, no member lists: what
//! `presence serve` costs above this is what presence costs. See `benches/compare`.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
};

use actix::prelude::*;
use actix_web::{App, Error, HttpRequest, HttpResponse, HttpServer, web};
use actix_web_actors::ws;
use clap::Parser;

/// As many as `presence serve` lets wait and takes, so that no figure is one of the queue.
const BACKLOG: u32 = 2048;
const PER_WORKER: usize = 1_000_000;

/// The simplest chat on actix-web-actors.
#[derive(Parser)]
struct Flags {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:9000")]
    listen: SocketAddr,
    /// Threads that serve.
    #[arg(long, default_value_t = 1)]
    workers: usize,
}

/// Gives back what it gets.
struct Echo;

impl Actor for Echo {
    type Context = ws::WebsocketContext<Self>;
}

impl StreamHandler<Result<ws::Message, ws::ProtocolError>> for Echo {
    fn handle(&mut self, frame: Result<ws::Message, ws::ProtocolError>, ctx: &mut Self::Context) {
        match frame {
            Ok(ws::Message::Text(text)) => ctx.text(text),
            Ok(ws::Message::Ping(bytes)) => ctx.pong(&bytes),
            Ok(ws::Message::Close(_)) | Err(_) => ctx.stop(),
            Ok(_) => {}
        }
    }
}

/// What somebody said, on its way to one member.
#[derive(Message)]
#[rtype(result = "()")]
struct Said(String);

#[derive(Message)]
#[rtype(result = "()")]
struct Enter(String, Addr<Chatter>);

#[derive(Message)]
#[rtype(result = "()")]
struct Exit(String, Addr<Chatter>);

#[derive(Message)]
#[rtype(result = "()")]
struct Say(String, String);

/// Knows the members of each room.
#[derive(Default)]
struct Hub(HashMap<String, HashSet<Addr<Chatter>>>);

impl Actor for Hub {
    type Context = Context<Self>;
}

impl Handler<Enter> for Hub {
    type Result = ();
    fn handle(&mut self, Enter(room, member): Enter, _: &mut Context<Self>) {
        self.0.entry(room).or_default().insert(member);
    }
}

impl Handler<Exit> for Hub {
    type Result = ();
    fn handle(&mut self, Exit(room, member): Exit, _: &mut Context<Self>) {
        let Some(members) = self.0.get_mut(&room) else { return };
        members.remove(&member);
        if members.is_empty() {
            self.0.remove(&room);
        }
    }
}

impl Handler<Say> for Hub {
    type Result = ();
    fn handle(&mut self, Say(room, text): Say, _: &mut Context<Self>) {
        for member in self.0.get(&room).into_iter().flatten() {
            member.do_send(Said(text.clone()));
        }
    }
}

/// A member of one room.
struct Chatter {
    room: String,
    hub: Addr<Hub>,
}

impl Actor for Chatter {
    type Context = ws::WebsocketContext<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.hub.do_send(Enter(self.room.clone(), ctx.address()));
    }

    fn stopped(&mut self, ctx: &mut Self::Context) {
        self.hub.do_send(Exit(self.room.clone(), ctx.address()));
    }
}

impl Handler<Said> for Chatter {
    type Result = ();
    fn handle(&mut self, Said(text): Said, ctx: &mut Self::Context) {
        ctx.text(text);
    }
}

impl StreamHandler<Result<ws::Message, ws::ProtocolError>> for Chatter {
    fn handle(&mut self, frame: Result<ws::Message, ws::ProtocolError>, ctx: &mut Self::Context) {
        match frame {
            Ok(ws::Message::Text(text)) => {
                self.hub.do_send(Say(self.room.clone(), text.to_string()));
            }
            Ok(ws::Message::Ping(bytes)) => ctx.pong(&bytes),
            Ok(ws::Message::Close(_)) | Err(_) => ctx.stop(),
            Ok(_) => {}
        }
    }
}

async fn echo(req: HttpRequest, body: web::Payload) -> Result<HttpResponse, Error> {
    ws::start(Echo, &req, body)
}

async fn enter(
    req: HttpRequest,
    body: web::Payload,
    room: web::Path<String>,
    hub: web::Data<Addr<Hub>>,
) -> Result<HttpResponse, Error> {
    ws::start(Chatter { room: room.into_inner(), hub: hub.get_ref().clone() }, &req, body)
}

#[actix_web::main]
async fn main() -> std::io::Result<()> {
    let Flags { listen, workers } = Flags::parse();
    let hub = web::Data::new(Hub::default().start());
    let server = HttpServer::new(move || {
        App::new()
            .app_data(hub.clone())
            .route("/echo", web::get().to(echo))
            .route("/ws/{room}", web::get().to(enter))
    });
    let server =
        server.workers(workers).backlog(BACKLOG).max_connections(PER_WORKER).bind(listen)?;
    for address in server.addrs() {
        eprintln!("listening on http://{address}");
    }
    server.run().await
}
