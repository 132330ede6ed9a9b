//! The example that mounts the routes in an app, served on a real socket.

use std::net::{SocketAddr, TcpListener};

use futures_util::StreamExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
};
use tokio_tungstenite::{
    connect_async,
    tungstenite::{Error, Message},
};

use crate::mount as example;

async fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[actix::test]
async fn the_example_serves_its_own_route_the_pages_and_the_rooms_that_its_hook_allows() {
    let presence = example::start().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async { drop(stopped.await) };
    let server = example::serve(presence, listener, stopped).unwrap();
    let serving = actix::spawn(server);

    assert!(get(address, "/lobby").await.ends_with("\r\n0 in the lobby\n"));
    let url = |path: &str| format!("ws://{address}/ws/{path}");
    let (mut ada, _) = connect_async(url("lobby?user=ada")).await.unwrap();
    let list = ada.next().await.unwrap().unwrap();
    assert!(list.to_text().unwrap().contains("ada"), "{list}");
    assert!(get(address, "/lobby").await.ends_with("\r\n1 in the lobby\n"));
    assert!(get(address, "/").await.contains("\"assets/index.js\""));
    assert!(get(address, "/dashboard").await.starts_with("HTTP/1.1 200"));

    connect_async(url("staff?user=ada")).await.unwrap();
    match connect_async(url("staff")).await {
        Err(Error::Http(refused)) => assert_eq!(refused.status(), 403),
        other => panic!("{other:?}"),
    }
    drop(stop);
    let frame = loop {
        if let Message::Close(frame) = ada.next().await.unwrap().unwrap() {
            break frame.unwrap();
        }
    };
    assert_eq!(u16::from(frame.code), 1001, "{frame}");
    serving.await.unwrap().unwrap();
}
