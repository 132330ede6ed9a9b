//! An app of your own as one of several nodes.
//!
//! ```text
//! DATABASE_URL=postgres://presence@127.0.0.1/presence REDIS_URL=redis://127.0.0.1 NODE=app \
//!     cargo run --example cluster --features postgres,redis
//! ```
//!
//! Whatever has the same database and the same Redis is one presence system: this app twice (with
//! another `NODE` and `BIND`), and plain `presence` nodes as well. Somebody at
//! `ws://127.0.0.1:8090/ws/lobby?user=ada` and somebody at a node's page are in one room. This app
//! prints who comes and goes on whatever node. `examples/cluster/run` starts three nodes, and prints
//! the two addresses that this needs.

use std::{error::Error, net::TcpListener, time::Duration};

use actix::prelude::*;
use actix_presence::{
    Feed, ListRooms, PresenceChanged, PresenceConfig, RoomFilter, RoomName, RoomRegistry, Scope,
    SessionKey, Subscribe, UserId, WsSession, WsSessionError, configure_tcp, watch_socket,
};
use actix_web::{
    App, HttpRequest, HttpResponse, HttpServer,
    error::{ErrorBadRequest, ErrorForbidden, ErrorServiceUnavailable},
    web,
};

/// Prints who comes and goes anywhere.
///
/// An observer that *acts* on changes (counts them, sends a mail) leaves out `scope`: with
/// [`Scope::Node`] each change is heard once in the whole cluster, by the observer on the node of
/// those who came or went, or on the one that noticed the end of their node.
struct Porter;

impl Actor for Porter {
    type Context = Context<Self>;
}

impl Handler<PresenceChanged> for Porter {
    type Result = ();

    fn handle(&mut self, event: PresenceChanged, _: &mut Context<Self>) {
        let (room, node) = (&event.room, &event.node);
        for user in event.online() {
            println!("{room}: {user} came, on {node}");
        }
        for gone in event.offline() {
            println!("{room}: {} went, from {node} ({})", gone.user, gone.cause);
        }
        if event.diff().is_none() {
            let here = event.snapshot.occupancy().users;
            println!("{room}: more happened than could be followed; {here} users are there now");
        }
    }
}

#[derive(serde::Deserialize)]
struct Who {
    user: Option<UserId>, // a real app asks its login
    session: Option<SessionKey>,
}

/// The ready-made session, here on this node.
async fn enter(
    req: HttpRequest,
    body: web::Payload,
    room: web::Path<RoomName>,
    who: web::Query<Who>,
    registry: web::Data<Addr<RoomRegistry>>,
) -> actix_web::Result<HttpResponse> {
    let Who { user, session } = who.into_inner();
    let stay = WsSession::new(registry.get_ref().clone(), room.into_inner());
    let started = stay.user(user).session(session).feed(Feed::Diff).start(&req, body).await;
    started.map_err(|error| match error {
        WsSessionError::Handshake(_) => ErrorBadRequest(error),
        WsSessionError::Join(_) => ErrorForbidden(error),
        _ => ErrorServiceUnavailable(error),
    })
}

/// Where the node is at home.
#[derive(Clone, Debug)]
pub struct Home {
    pub database: String,
    pub redis: String,
    pub node: String,
}

/// Serves until told to stop.
pub async fn serve(
    listener: TcpListener,
    home: Home,
    stop: impl Future<Output = ()> + 'static,
) -> Result<(), Box<dyn Error>> {
    let presence = PresenceConfig::new(home.database)
        .redis(home.redis)
        .node(home.node) // the same after a restart, so that nobody has to wait for the old lease
        .lease(Duration::from_secs(15)) // the same on all nodes
        .grace(Duration::from_secs(10)) // for clients with a session key, to change nodes unnoticed
        .start()?;
    let porter = Subscribe::new(RoomFilter::Any, Porter.start().recipient()).scope(Scope::Cluster);
    presence.registry().send(porter).await?;
    let first = presence.registry().send(ListRooms { after: None, limit: 10 }).await??;
    for there in first {
        println!("{}: {} are there already", there.room, there.occupancy.connections);
    }

    let registry = web::Data::new(presence.registry());
    let app =
        move || App::new().app_data(registry.clone()).route("/ws/{room}", web::get().to(enter));
    let server = HttpServer::new(app)
        .on_connect(|io, extensions| {
            configure_tcp(io);
            watch_socket(io, extensions);
        })
        .disable_signals()
        .shutdown_timeout(5)
        .listen(listener)?
        .run();

    let running = server.handle();
    let closing = actix_web::rt::spawn(async move {
        stop.await;
        // Everybody is told to come back (1012), to another node, if there is one.
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
    let variable = |name: &str, example: &str| {
        std::env::var(name).map_err(|_| format!("{name} is not set; it is such as {example}"))
    };
    let home = Home {
        database: variable("DATABASE_URL", "postgres://presence@127.0.0.1/presence")?,
        redis: variable("REDIS_URL", "redis://127.0.0.1")?,
        node: variable("NODE", "app")?,
    };
    let bind = std::env::var("BIND").unwrap_or_else(|_| "127.0.0.1:8090".to_owned());
    let listener = TcpListener::bind(&bind)?;
    println!("node {} at ws://{bind}/ws/ROOM?user=NAME; Ctrl-C ends it", home.node);
    serve(listener, home, told_to_stop()).await
}

/// Ctrl-C, or what a service manager sends.
async fn told_to_stop() {
    use actix_web::rt::signal::{
        ctrl_c,
        unix::{SignalKind, signal},
    };
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return drop(ctrl_c().await) };
    tokio::select! {
        _ = ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}
