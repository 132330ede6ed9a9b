//! Presence for sessions that are no actors: a chat on `actix-ws`, where a session is a task.
//!
//! ```text
//! cargo run --example actix_ws
//! ```
//!
//! Open <http://127.0.0.1:8080/> in two tabs and talk. The page shows the frames as they come: the
//! member list after each change, and messages. Ctrl-C tells everybody to close with 1001.
//!
//! One task reads and writes, and owns the [`Connection`]: however it ends, the room is left. What its room
//! sends comes from a stream, [`Connection::outlet`]. The frames are those of the server, `Dialect::Json`; see
//! `embed` for a protocol of one's own.

use std::{error::Error, future::poll_fn, net::TcpListener, task::Poll, time::Duration};

use actix::prelude::*;
use actix_presence::{
    Cause, Connection, Dialect, Disconnect, Feed, Forwarded, Heard, IdleStep, IdleWatch,
    PresenceConfig, PresenceError, Publish, RoomName, RoomRegistry, UserId, configure_tcp,
    watch_socket,
};
use actix_web::{
    App, HttpRequest, HttpResponse, HttpServer,
    rt::signal::unix::{SignalKind, signal},
    web,
};
use actix_ws::{CloseCode, Closed, Message, MessageStream, ProtocolError, Session};
use serde_json::json;

/// How often a silent client is pinged, and when it is closed.
const PING_INTERVAL: Duration = Duration::from_secs(25);
const IDLE_LIMIT: Duration = Duration::from_secs(60);

/// The session: joins, reads and writes until one side ends it, and leaves, because `me` is dropped.
async fn chat(
    mut me: Connection,
    room: RoomName,
    user: Option<UserId>,
    mut session: Session,
    mut frames: MessageStream,
) -> Result<(), Closed> {
    let (outlet, mut heard) = me.outlet(256); // who falls further behind loses its place (4003)
    let join = me.join(room.clone(), outlet).user(user).dialect(Dialect::Json(Feed::Full));
    if let Err(refused) = me.enter(join).await {
        return session.close(Some(refused.into())).await;
    }
    let mut idle = IdleWatch::new(PING_INTERVAL, IDLE_LIMIT);
    // The close frame: an order and a refusal are made into one.
    let end = loop {
        let frame = tokio::select! {
            heard = heard.recv() => {
                match heard {
                    // Nothing for the client: it is out of one of several rooms.
                    Some(Heard::Frame(frame)) if matches!(frame.kind, Forwarded::Closed { .. }) => {}
                    // While the client does not read, this waits; what waits behind it is bounded.
                    Some(Heard::Frame(frame)) => session.text(frame.payload).await?,
                    Some(Heard::Close(order)) => break Some(order.into()),
                    None => break Some(PresenceError::Ended.into()),
                }
                continue;
            }
            step = idle.next() => {
                if step == IdleStep::Ping {
                    session.ping(b"").await?;
                    continue;
                }
                me.leave(Cause::Expired);
                break Some(Disconnect { code: 4000, cause: Cause::Expired }.into());
            }
            frame = frames.recv() => frame,
        };
        idle.heard();
        match frame {
            Some(Ok(Message::Text(text))) => {
                // Any text is a sign of life; the literal "heartbeat" is nothing else.
                let Some(text) = me.text(&text) else { continue };
                // The next frame is read when this one is with the room. Who may not speak there any more is told
                // by the order to close.
                let _ = me.publish(Publish::json(room.clone(), json!(text))).await;
            }
            Some(Ok(Message::Ping(bytes))) => {
                me.touch();
                session.pong(&bytes).await?;
            }
            Some(Ok(Message::Pong(_) | Message::Nop)) => me.touch(),
            Some(Ok(Message::Close(reason))) => {
                me.closed_by_client(reason.as_ref());
                break reason;
            }
            Some(Ok(Message::Binary(_) | Message::Continuation(_))) => {
                break Some((CloseCode::Unsupported, "only short lines of text").into());
            }
            Some(Err(ProtocolError::Overflow)) => break Some((CloseCode::Size, "too long").into()),
            Some(Err(_)) | None => return Ok(()), // the connection has broken
        }
    };
    session.close(end).await
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
    let me = Connection::new(registry.get_ref().clone()).watched(&req);
    let (room, user) = (room.into_inner(), who.into_inner().name);
    actix_web::rt::spawn(chat(me, room, user, session, frames));
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
