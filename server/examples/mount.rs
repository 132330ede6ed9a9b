//! Mounts the routes and pages of the presence server in an app, next to a route of the app's own.
//!
//! `cargo run -p presence-server --example mount`, then open <http://127.0.0.1:8080/> in two windows, and
//! <http://127.0.0.1:8080/lobby>.

use std::{error::Error, future::poll_fn, io, net::TcpListener, task::Poll, time::Duration};

use actix_presence::{
    Decision, PresenceClient, PresenceConfig, PresenceHandle, RoomName, StartError, configure_tcp,
    watch_socket,
};
use actix_web::{
    App, HttpServer, Responder,
    dev::Server,
    rt::signal::unix::{SignalKind, signal},
    web,
};
use presence_server::{ServerOptions, ServerState, configure};

/// The app's own route: how many connections are in the lobby.
async fn lobby(presence: PresenceClient) -> actix_web::Result<impl Responder> {
    let lobby = RoomName::new("lobby")?;
    Ok(format!("{} in the lobby\n", presence.occupancy(&lobby).await?.connections))
}

/// Starts the presence system. Anonymous clients may enter every room but `staff`.
pub fn start() -> Result<PresenceHandle, StartError> {
    PresenceConfig::new("sqlite::memory:")
        .authorize(|room, user, _| match (room.as_str(), user) {
            ("staff", None) => Decision::deny("log in first"),
            _ => Decision::Allow,
        })
        .start()
}

/// Serves the app until told to stop.
pub fn serve(
    presence: PresenceHandle,
    listener: TcpListener,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<Server> {
    let options = ServerOptions {
        // Trusts `?user=`, because only this machine can connect; elsewhere set `secrets`.
        believe_query: listener.local_addr()?.ip().is_loopback(),
        max_connections: Some(10_000),
        ..ServerOptions::default()
    };
    // Made once, so that all workers count their connections together.
    let state = ServerState::new(&presence, options);
    let client = presence.client();
    let app = move || {
        App::new()
            .app_data(client.clone())
            .route("/lobby", web::get().to(lobby))
            .configure(configure(state.clone()))
    };
    let server = HttpServer::new(app).on_connect(|io, extensions| {
        configure_tcp(io);
        watch_socket(io, extensions);
    });
    let stop = async move {
        stop.await;
        // The server waits for open sockets, so they close first.
        if let Err(error) = presence.shutdown(Duration::from_secs(5)).await {
            eprintln!("{error}");
        }
    };
    let server = server.shutdown_signal(stop).shutdown_timeout(3);
    Ok(server.workers(2).listen(listener)?.run())
}

/// Serves until the process is asked to stop: SIGINT (Ctrl-C) or SIGTERM.
pub async fn run(listener: TcpListener) -> Result<(), Box<dyn Error>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = poll_fn(move |cx| match (interrupt.poll_recv(cx), terminate.poll_recv(cx)) {
        (Poll::Pending, Poll::Pending) => Poll::Pending,
        _ => Poll::Ready(()),
    });
    Ok(serve(start()?, listener, stop)?.await?)
}

#[actix_web::main]
async fn main() -> Result<(), Box<dyn Error>> {
    run(TcpListener::bind("127.0.0.1:8080")?).await
}
