//! Presence for sessions that are no actors: a chat on `actix-ws`, where a session is a task.
//!
//! ```text
//! cargo run --example actix_ws
//! ```
//!
//! Open <http://127.0.0.1:8080/> in two tabs and talk. The page shows the frames as they come: the
//! member list after each change, and messages. Ctrl-C tells everybody to close with 1001.
//!
//! The registry delivers to an actor, so a session has a small one that only writes to the client:
//! `Outlet`. The task reads, and owns the [`Connection`]: however it ends, the room is left. The
//! frames are those of the server, `Dialect::Json`; see `embed` for a protocol of one's own.

use std::{error::Error, future::poll_fn, net::TcpListener, task::Poll, time::Duration};

use actix::prelude::*;
use actix_presence::{
    Connection, Dialect, Disconnect, Feed, ForwardMessage, Forwarded, PresenceConfig, Publish,
    RoomName, RoomRegistry, UserId, configure_tcp,
};
use actix_web::{
    App, HttpRequest, HttpResponse, HttpServer,
    rt::signal::unix::{SignalKind, signal},
    web,
};
use actix_ws::{CloseReason, Message, MessageStream, Session};
use serde_json::value::to_raw_value;

/// Writes to one client what its room sends. It ends by itself when the room no longer knows it.
struct Outlet(Session);

impl Actor for Outlet {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.set_mailbox_capacity(256);
    }
}

impl Handler<ForwardMessage> for Outlet {
    type Result = ();

    fn handle(&mut self, msg: ForwardMessage, ctx: &mut Context<Self>) {
        // Nothing for the client: it is out of one of several rooms.
        if let Forwarded::Closed { .. } = msg.kind {
            return;
        }
        let mut session = self.0.clone();
        // While the client does not read, the mailbox fills; when it is full, the room lets go of us.
        let writing = async move { session.text(msg.payload).await }.into_actor(self);
        ctx.wait(writing.map(|written, _, ctx| {
            if written.is_err() {
                ctx.stop();
            }
        }));
    }
}

impl Handler<Disconnect> for Outlet {
    type Result = ();

    fn handle(&mut self, msg: Disconnect, ctx: &mut Context<Self>) {
        let description = Some(msg.cause.to_string());
        let closing =
            self.0.clone().close(Some(CloseReason { code: msg.code.into(), description }));
        // With that the client's frames end, too, and so does the task.
        ctx.wait(closing.into_actor(self).map(|_, _, ctx| ctx.stop()));
    }
}

/// The session: joins, reads until the client is gone, and leaves, because `me` is dropped.
async fn chat(
    mut me: Connection,
    room: RoomName,
    user: Option<UserId>,
    mut session: Session,
    mut frames: MessageStream,
) -> Result<(), Box<dyn Error>> {
    let outlet = Outlet(session.clone()).start();
    let join = me.join(room.clone(), outlet).user(user).dialect(Dialect::Json(Feed::Full));
    if let Err(refused) = me.registry().send(join).await? {
        session.text(refused.to_string()).await?;
        return Ok(session.close(None).await?);
    }

    while let Some(frame) = frames.recv().await {
        match frame? {
            Message::Text(text) => {
                // Any text is a sign of life; the literal "heartbeat" is nothing else.
                let Some(text) = me.text(&text) else { continue };
                let message = Publish::json(room.clone(), to_raw_value(text)?).sent_by(me.id());
                me.registry().send(message).await??;
            }
            Message::Ping(bytes) => {
                me.touch();
                session.pong(&bytes).await?;
            }
            Message::Pong(_) | Message::Nop => me.touch(),
            Message::Close(reason) => {
                me.goodbye(); // it has left, and was not just cut off
                return Ok(session.close(reason).await?);
            }
            Message::Binary(_) | Message::Continuation(_) => break,
        }
    }
    Ok(session.close(None).await?)
}

#[derive(serde::Deserialize)]
struct Who {
    name: Option<UserId>, // a real app asks its login
}

async fn enter(
    req: HttpRequest,
    body: web::Payload,
    room: web::Path<RoomName>,
    who: web::Query<Who>,
    registry: web::Data<Addr<RoomRegistry>>,
) -> actix_web::Result<HttpResponse> {
    let (response, session, frames) = actix_ws::handle(&req, body)?;
    let me = Connection::new(registry.get_ref().clone());
    let (room, user) = (room.into_inner(), who.into_inner().name);
    actix_web::rt::spawn(async move {
        let id = me.id();
        if let Err(error) = chat(me, room, user, session, frames).await {
            eprintln!("{id}: {error}");
        }
    });
    Ok(response)
}

/// Serves until told to stop.
pub async fn serve(
    listener: TcpListener,
    stop: impl Future<Output = ()> + 'static,
) -> Result<(), Box<dyn Error>> {
    let presence =
        PresenceConfig::new("sqlite::memory:").max_age(Duration::from_secs(150)).start()?;
    let registry = web::Data::new(presence.registry());
    let page = || async { HttpResponse::Ok().content_type("text/html").body(PAGE) };
    let app = move || {
        App::new()
            .app_data(registry.clone())
            .route("/", web::get().to(page))
            .route("/ws/{room}", web::get().to(enter))
    };
    let server = HttpServer::new(app)
        .on_connect(|io, _| configure_tcp(io))
        .disable_signals()
        .shutdown_timeout(5)
        .listen(listener)?
        .run();

    let running = server.handle();
    let closing = actix_web::rt::spawn(async move {
        stop.await;
        let closed = presence.shutdown(Duration::from_secs(5)).await;
        running.stop(true).await;
        closed
    });
    server.await?;
    closing.await??;
    Ok(())
}

#[actix_web::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:8080")?;
    println!("http://127.0.0.1:8080/ in two tabs; Ctrl-C ends it");
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = poll_fn(move |cx| match (interrupt.poll_recv(cx), terminate.poll_recv(cx)) {
        (Poll::Pending, Poll::Pending) => Poll::Pending,
        _ => Poll::Ready(()),
    });
    serve(listener, stop).await
}

const PAGE: &str = r#"<!doctype html><meta charset="utf-8"><title>actix-ws</title>
<form id="say"><input id="line" autofocus></form><pre id="log"></pre><script>
const me = prompt("Your name? Leave it empty to be a guest.");
const query = me ? `?name=${encodeURIComponent(me)}` : "";
const ws = new WebSocket(`ws://${location.host}/ws/lobby${query}`);
ws.onmessage = event => log.append(event.data + "\n");
ws.onclose = event => log.append(`closed: ${event.code} ${event.reason}`);
say.onsubmit = event => { event.preventDefault(); ws.send(line.value); line.value = ""; };
setInterval(() => ws.readyState === 1 && ws.send('"heartbeat"'), 20000);
</script>"#;
