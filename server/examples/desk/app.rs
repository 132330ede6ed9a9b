//! The start, the routes, and the stop.

use std::{error::Error, net::TcpListener, time::Duration};

use actix::prelude::*;
use actix_presence::{PresenceConfig, RoomFilter, configure_tcp, watch_socket};
use actix_web::{App, HttpServer, rt::signal::unix, web};
use presence_server::{ServerOptions, ServerState, configure};

use super::{access, agent, journal::Journal, listen, login, tables::Database, waiting};

/// Serves until the process is asked to stop, by SIGINT (Ctrl-C) or SIGTERM, or presence has crashed.
pub async fn run(listener: TcpListener, db: Database, url: &str) -> Result<(), Box<dyn Error>> {
    let mut interrupt = unix::signal(unix::SignalKind::interrupt())?;
    let mut terminate = unix::signal(unix::SignalKind::terminate())?;
    let (tables, visits) = (db.clone(), db.clone());
    let presence = PresenceConfig::new(url)
        .authorize_async(move |join| access::decide(tables.clone(), join))
        .start()?;
    let waiting = waiting::Waiting::default();
    presence.subscribe(RoomFilter::Any, waiting.clone().start().recipient()).await?;
    let journal = SyncArbiter::start(1, move || Journal(visits.clone()));
    presence.subscribe(RoomFilter::Any, journal.recipient()).await?;

    let (identity, ping_interval) = (Some(login::hook()), Some(Duration::from_secs(25)));
    let options = ServerOptions { identity, ping_interval, ..ServerOptions::default() };
    // Made once, outside of the closure that makes an app for each worker.
    let state = ServerState::new(&presence, options);
    let ended = presence.clone();
    let (client, waiting) = (presence.client(), web::Data::new(waiting));
    let app = move || {
        App::new()
            .app_data(client.clone())
            .app_data(db.clone())
            .app_data(waiting.clone())
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
        tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} _ = presence.closed() => {} }
        // The server waits for open sockets, so they close first.
        let stopped = presence.shutdown(Duration::from_secs(5)).await;
        stopped.unwrap_or_else(|error| eprintln!("{error}"));
    });
    server.listen(listener)?.run().await?;
    ended.crashed().map_or(Ok(()), |part| Err(part.into()))
}
