//! The start, the routes, and the stop.

use std::{error::Error, net::TcpListener, pin::pin, time::Duration};

use actix::prelude::*;
use actix_presence::{PresenceConfig, RoomFilter, RoomRegistry, configure_tcp, watch_socket};
use actix_web::rt::signal::unix::{SignalKind, signal};
use actix_web::{App, HttpServer, web};
use futures_util::future::select;
use presence_server::{ServerOptions, ServerState, configure};

use super::{
    access::Access, agent, journal::Journal, listen, login, login::Logins, tables::Database,
    waiting, waiting::Waiting,
};

/// What the handlers share.
pub struct Desk {
    pub registry: Addr<RoomRegistry>,
    pub logins: Logins,
    pub waiting: Waiting,
}

/// Serves until the process is asked to stop: SIGINT (Ctrl-C) or SIGTERM.
pub async fn run(listener: TcpListener, db: Database, url: &str) -> Result<(), Box<dyn Error>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let access = Access::default();
    let logins = Logins { database: db.clone(), access: access.clone() };
    let presence = PresenceConfig::new(url)
        .authorize(move |room, user, _| access.decide(room, user))
        .start()?;
    let waiting = Waiting::default();
    presence.subscribe(RoomFilter::Any, waiting.clone().start().recipient()).await?;
    let journal = SyncArbiter::start(1, move || Journal(db.clone()));
    presence.subscribe(RoomFilter::Any, journal.recipient()).await?;

    let identity = Some(logins.clone().hook());
    let ping_interval = Some(Duration::from_secs(25));
    let options = ServerOptions { identity, ping_interval, ..ServerOptions::default() };
    // Made once, outside of the closure that makes an app for each worker.
    let state = ServerState::new(&presence, options);
    let stopping = state.clone();
    let desk = web::Data::new(Desk { registry: presence.registry(), logins, waiting });
    let app = move || {
        App::new()
            .app_data(desk.clone())
            .route("/", web::get().to(async || "the desk"))
            .route("/login/{name}", web::get().to(login::log_in))
            .route("/agent/{room}", web::get().to(agent::enter))
            .route("/listen/{room}", web::get().to(listen::enter))
            .route("/waiting", web::get().to(waiting::show))
            .service(web::scope("/realtime").configure(configure(state.clone())))
    };
    let server = HttpServer::new(app).on_connect(|io, extensions| {
        configure_tcp(io);
        watch_socket(io, extensions);
    });
    let server = server.shutdown_timeout(5).shutdown_signal(async move {
        select(pin!(interrupt.recv()), pin!(terminate.recv())).await;
        // The server waits for open sockets, so they close first: those in no room, then those in
        // rooms, whose rows are written.
        stopping.close();
        if let Err(error) = presence.shutdown(Duration::from_secs(5)).await {
            eprintln!("{error}");
        }
    });
    Ok(server.listen(listener)?.run().await?)
}
