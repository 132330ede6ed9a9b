//! Presence in an app of your own: a chat with its own session actor and its own protocol, which is
//! lines of text.
//!
//! ```text
//! cargo run --example embed
//! ```
//!
//! Open <http://127.0.0.1:8080/> in two tabs, give two names and talk. Close one tab: the other reads
//! who went and why. Two tabs of one name are one user, and only the last to close is announced.
//! Ctrl-C tells everybody to close with 1001 and ends the program.
//!
//! An app writes what `Chatter` (a session), `Announcer` (an observer) and `enter` (the route) are.

use std::{error::Error, future::poll_fn, net::TcpListener, task::Poll, time::Duration};

use actix::prelude::*;
use actix_presence::{
    Change, Connection, Disconnect, ForwardMessage, Forwarded, PresenceChanged, PresenceConfig,
    Publish, RoomFilter, RoomName, RoomRegistry, Snapshot, UserId, configure_tcp, watch_socket,
};
use actix_web::{
    App, HttpRequest, HttpResponse, HttpServer,
    rt::signal::unix::{SignalKind, signal},
    web,
};
use actix_web_actors::ws;

/// One client in one room. Dropping `me` leaves the room, so no end of the session can forget to.
struct Chatter {
    me: Connection,
    room: RoomName,
    user: Option<UserId>,
}

impl Actor for Chatter {
    type Context = ws::WebsocketContext<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(256); // a burst; a client further behind loses its place (4003)
        let join = self.me.join(self.room.clone(), ctx.address()).user(self.user.clone());
        let joining = self.me.enter(join).into_actor(self);
        // Waiting: no frame is read before the room knows us.
        ctx.wait(joining.map(|answer, _, ctx| match answer {
            Ok(joined) => ctx.text(roster(&joined.snapshot)),
            Err(refused) => close(ctx, refused),
        }));
    }
}

impl Handler<ForwardMessage> for Chatter {
    type Result = ();
    fn handle(&mut self, msg: ForwardMessage, ctx: &mut Self::Context) {
        match msg.kind {
            Forwarded::Closed { cause } => ctx.text(format!("* out of {}: {cause}", msg.room)),
            _ => ctx.text(msg.payload), // shared by all members, not copied
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
                // Any text is a sign of life; the literal "heartbeat" is nothing else.
                let Some(text) = self.me.text(&text) else { return };
                let name = self.user.as_ref().map_or("a guest", UserId::as_str);
                let line = Publish::new(self.room.clone(), format!("{name}: {text}"));
                let saying = self.me.publish(line).into_actor(self);
                ctx.wait(saying.map(|_, _, _| ())); // the next line when this one is with the room
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
            Ok(_) => close(ctx, (ws::CloseCode::Unsupported, "only short lines of text")),
            Err(ws::ProtocolError::Overflow) => close(ctx, (ws::CloseCode::Size, "too long")),
            Err(_) => ctx.stop(),
        }
    }
}

/// Closes with a frame that says why: an order and a refusal are made into one.
fn close(ctx: &mut ws::WebsocketContext<Chatter>, why: impl Into<ws::CloseReason>) {
    ctx.close(Some(why.into()));
    ctx.stop(); // what was written before is still sent
}

/// Tells each room who comes and goes, in this app's own words.
struct Announcer(Addr<RoomRegistry>);

impl Actor for Announcer {
    type Context = Context<Self>;
}

impl Handler<PresenceChanged> for Announcer {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, event: PresenceChanged, _: &mut Context<Self>) -> Self::Result {
        let online = event.online().iter().map(|user| format!("* {user} is here"));
        let offline = event.offline().iter().map(|gone| format!("* {} {}", gone.user, gone.cause));
        let mut lines: Vec<_> = online.chain(offline).collect();
        if let Change::Resync | Change::ResyncAll = event.change {
            lines.push(roster(&event.snapshot)); // more happened than we could follow
        }
        let registry = self.0.clone();
        // The next event comes when this is done, so what is on its way stays bounded.
        Box::pin(async move {
            for line in lines {
                let _ = registry.send(Publish::new(event.room.clone(), line)).await;
            }
        })
    }
}

fn roster(room: &Snapshot) -> String {
    let users: Vec<_> = room.users().map(|member| member.id.to_string()).collect();
    format!("* in {}: {}, and {} guests", room.room(), users.join(", "), room.anonymous_count())
}

#[derive(serde::Deserialize)]
struct Who {
    name: Option<UserId>, // a real app asks its login
}

/// A bad room name is answered with 404, a bad user name with 400: they are no `RoomName`, `UserId`.
async fn enter(
    req: HttpRequest,
    body: web::Payload,
    room: web::Path<RoomName>,
    who: web::Query<Who>,
    registry: web::Data<Addr<RoomRegistry>>,
) -> actix_web::Result<HttpResponse> {
    let me = Connection::new(registry.get_ref().clone()).watched(&req);
    let (room, user) = (room.into_inner(), who.into_inner().name);
    ws::start(Chatter { me, room, user }, &req, body)
}

/// Serves until told to stop.
pub async fn serve(
    listener: TcpListener,
    stop: impl Future<Output = ()> + 'static,
) -> Result<(), Box<dyn Error>> {
    let presence = PresenceConfig::new("sqlite::memory:")
        .max_age(Duration::from_secs(150)) // browsers slow timers of hidden tabs to one a minute
        .start()?;
    let announcer = Announcer(presence.registry()).start();
    presence.subscribe(RoomFilter::Any, announcer.recipient()).await?;

    let registry = web::Data::new(presence.registry());
    let page = || async { HttpResponse::Ok().content_type("text/html").body(PAGE) };
    let app = move || {
        App::new()
            .app_data(registry.clone())
            .route("/", web::get().to(page))
            .route("/ws/{room}", web::get().to(enter))
    };
    let server = HttpServer::new(app)
        .on_connect(|io, extensions| {
            configure_tcp(io); // a vanished client does not keep its socket
            watch_socket(io, extensions); // nor does one that was told to go
        })
        .disable_signals()
        .shutdown_timeout(5)
        .listen(listener)?
        .run();

    let running = server.handle();
    let closing = actix_web::rt::spawn(async move {
        stop.await;
        // First everybody is told to close, then the server need not wait for anybody.
        let closed = presence.shutdown(Duration::from_secs(5)).await;
        running.stop(true).await;
        closed
    });
    server.await?;
    closing.await??;
    Ok(())
}

/// Serves until the process is asked to stop: SIGINT (Ctrl-C) or SIGTERM.
pub async fn run(listener: TcpListener) -> Result<(), Box<dyn Error>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = poll_fn(move |cx| match (interrupt.poll_recv(cx), terminate.poll_recv(cx)) {
        (Poll::Pending, Poll::Pending) => Poll::Pending,
        _ => Poll::Ready(()),
    });
    serve(listener, stop).await
}

#[actix_web::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:8080")?;
    println!("http://127.0.0.1:8080/ in two tabs; Ctrl-C ends it");
    run(listener).await
}

const PAGE: &str = r#"<!doctype html><meta charset="utf-8"><title>embed</title>
<form id="say"><input id="line" autofocus></form><pre id="log"></pre><script>
const me = prompt("Your name? Leave it empty to be a guest.");
const query = me ? `?name=${encodeURIComponent(me)}` : "";
const ws = new WebSocket(`ws://${location.host}/ws/lobby${query}`);
ws.onmessage = event => log.append(event.data + "\n");
ws.onclose = event => log.append(`closed: ${event.code} ${event.reason}`);
say.onsubmit = event => { event.preventDefault(); ws.send(line.value); line.value = ""; };
setInterval(() => ws.readyState === 1 && ws.send('"heartbeat"'), 20000);
</script>"#;
