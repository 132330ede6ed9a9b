use std::{error::Error, process::ExitCode, time::Duration};

use actix_presence::{
    PresenceClient, PresenceConfig, RoomName, WsSession, WsSessionError, configure_tcp, watch_socket,
};
use actix_web::rt::signal::unix::{SignalKind, signal};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};

async fn enter(
    req: HttpRequest,
    body: web::Payload,
    room: web::Path<RoomName>,
    presence: PresenceClient,
) -> Result<HttpResponse, WsSessionError> {
    WsSession::new(presence.registry(), room.into_inner()).start(&req, body).await
}

async fn run() -> Result<(), Box<dyn Error>> {
    let presence = PresenceConfig::new("sqlite://presence.db").start()?;
    let (client, stopping) = (presence.client(), presence.clone());
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    HttpServer::new(move || {
        App::new().app_data(client.clone()).route("/ws/{room}", web::get().to(enter))
    })
    .on_connect(|io, extensions| {
        configure_tcp(io);
        watch_socket(io, extensions);
    })
    .shutdown_timeout(5)
    .shutdown_signal(async move {
        tokio::select! {
            _ = interrupt.recv() => {} // Ctrl-C
            _ = terminate.recv() => {}
            _ = stopping.closed() => {} // a part of it has crashed
        }
        // The server waits for open sockets, so they close first.
        if let Err(error) = stopping.shutdown(Duration::from_secs(5)).await {
            eprintln!("{error}");
        }
    })
    .bind(("127.0.0.1", 0))?
    .run()
    .await?;
    presence.crashed().map_or(Ok(()), |part| Err(part.into()))
}

#[actix_web::main]
async fn main() -> ExitCode {
    let Err(error) = run().await else { return ExitCode::SUCCESS };
    eprintln!("{error}");
    ExitCode::FAILURE
}
