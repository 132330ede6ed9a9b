use std::{future::poll_fn, io, task::Poll, time::Duration};

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

#[actix_web::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let presence = PresenceConfig::new("sqlite://presence.db").start()?;
    let client = presence.client();
    let stop = stop_signal()?;
    HttpServer::new(move || {
        App::new().app_data(client.clone()).route("/ws/{room}", web::get().to(enter))
    })
    .on_connect(|io, extensions| {
        configure_tcp(io);
        watch_socket(io, extensions);
    })
    .shutdown_timeout(5)
    .shutdown_signal(async move {
        stop.await;
        // The server waits for open sockets, so they close first.
        if let Err(error) = presence.shutdown(Duration::from_secs(5)).await {
            eprintln!("{error}");
        }
    })
    .bind(("127.0.0.1", 0))?
    .run()
    .await?;
    Ok(())
}

/// Ends when the process is asked to stop: SIGINT (Ctrl-C) or SIGTERM.
fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(poll_fn(move |cx| match (interrupt.poll_recv(cx), terminate.poll_recv(cx)) {
        (Poll::Pending, Poll::Pending) => Poll::Pending,
        _ => Poll::Ready(()),
    }))
}
