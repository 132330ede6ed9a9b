//! An observer that calls a webhook: who comes online and who goes offline, in order, and without losing the
//! events of the shutdown.
//!
//! ```text
//! cargo run --example webhook
//! ```
//!
//! The program is both ends: an observer that posts, and a server that takes the posts and refuses the first one
//! with 503, to see it repeated. An app posts with its HTTP client in the place of [`post`].

use std::{
    collections::HashMap,
    error::Error,
    io,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use actix::prelude::*;
use actix_presence::{
    Change, Connection, PresenceChanged, PresenceConfig, RoomFilter, RoomName, Snapshot, UserId,
    testing::{Heard, Probe},
};
use actix_web::{App, HttpResponse, HttpServer, web};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// How often an event is posted before it is given up, and how long the pauses are at first.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(50);
const TIMEOUT: Duration = Duration::from_secs(2);

/// Posts changes. One event is in flight at a time, so they arrive in order; while the other end is slow, the
/// library queues the next ones, and combines them when they are too many.
struct Webhook {
    to: SocketAddr,
    /// The rooms as they were last posted, for changes that were combined.
    posted: HashMap<RoomName, Snapshot>,
}

impl Actor for Webhook {
    type Context = Context<Self>;
}

impl Handler<PresenceChanged> for Webhook {
    type Result = ResponseFuture<()>;

    /// The next event comes, and a shutdown returns, when this future is done: so it ends, whatever the other
    /// end does.
    fn handle(&mut self, event: PresenceChanged, _: &mut Self::Context) -> Self::Result {
        let (to, body) = (self.to, self.body_of(event).to_string());
        Box::pin(async move {
            for attempt in 0..ATTEMPTS {
                match tokio::time::timeout(TIMEOUT, post(to, &body)).await {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => eprintln!("attempt {}: {error}", attempt + 1),
                    Err(_) => eprintln!("attempt {}: no answer", attempt + 1),
                }
                actix::clock::sleep(PAUSE * 2_u32.pow(attempt)).await;
            }
            eprintln!("given up: {body}");
        })
    }
}

impl Webhook {
    fn body_of(&mut self, event: PresenceChanged) -> Value {
        let PresenceChanged { room, epoch, version, snapshot, .. } = &event;
        let at = event.at.to_rfc3339();
        let before = self.posted.remove(room);
        let before = before.unwrap_or_else(|| Snapshot::empty(room.clone(), *epoch, 0));
        if !snapshot.is_empty() {
            self.posted.insert(room.clone(), snapshot.clone());
        }
        match &event.change {
            Change::Diff(_) => {
                let offline: Vec<_> = event
                    .offline()
                    .iter()
                    .map(|gone| json!({ "user": gone.user, "cause": gone.cause }))
                    .collect();
                let online = event.online();
                json!({ "room": room, "version": version, "at": at, "online": online, "offline": offline })
            }
            // Why they have left is not known any more.
            Change::Resync | Change::ResyncAll => {
                let changes = snapshot.since(&before);
                let offline: Vec<_> =
                    changes.offline.iter().map(|user| json!({ "user": user })).collect();
                let online = changes.online;
                json!({ "room": room, "version": version, "at": at, "online": online, "offline": offline })
            }
        }
    }
}

/// Posts JSON, and wants a 2xx.
async fn post(to: SocketAddr, body: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect(to).await?;
    let request = format!(
        "POST /hook HTTP/1.1\r\nHost: {to}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let status = answer.split(' ').nth(1).unwrap_or_default();
    if status.starts_with('2') { Ok(()) } else { Err(io::Error::other(format!("answer {status}"))) }
}

/// What the other end has taken.
#[derive(Clone, Default)]
struct Taken {
    events: Arc<Mutex<Vec<Value>>>,
    has_refused: Arc<AtomicBool>,
}

async fn take(event: web::Json<Value>, taken: web::Data<Taken>) -> HttpResponse {
    if !taken.has_refused.swap(true, Relaxed) {
        return HttpResponse::ServiceUnavailable().finish();
    }
    println!("{}", event.0);
    taken.events.lock().unwrap_or_else(PoisonError::into_inner).push(event.0);
    HttpResponse::NoContent().finish()
}

/// Ada and Bob come, and stay until the shutdown. Returns what the other end has taken.
pub async fn call_a_webhook() -> Result<Vec<Value>, Box<dyn Error>> {
    let taken = Taken::default();
    let data = web::Data::new(taken.clone());
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let to = listener.local_addr()?;
    let app = move || App::new().app_data(data.clone()).route("/hook", web::post().to(take));
    let server = HttpServer::new(app).workers(1).disable_signals().listen(listener)?.run();
    let (server, running) = (server.handle(), actix::spawn(server));

    let presence = PresenceConfig::new("sqlite::memory:").start()?;
    let webhook = Webhook { to, posted: HashMap::new() }.start();
    presence.subscribe(RoomFilter::Prefix("team:".to_owned()), webhook.recipient()).await?;
    let mut here = Vec::new();
    for (room, user) in [("team:red", "ada"), ("team:blue", "bob"), ("staff", "eve")] {
        let me = Connection::new(presence.registry());
        let (session, _) = Probe::<Heard>::new(); // nobody listens to what it is sent
        let join = me.join(RoomName::new(room)?, session).user(UserId::new(user)?);
        presence.registry().send(join).await??;
        here.push(me);
    }
    // Most of it is still queued. It is posted before this returns, and so are the leaves.
    presence.shutdown(Duration::from_secs(10)).await?;

    server.stop(true).await;
    running.await??;
    let mut events = taken.events.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(std::mem::take(&mut *events))
}

#[actix::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let events = call_a_webhook().await?;
    println!("{} events were taken", events.len());
    Ok(())
}
