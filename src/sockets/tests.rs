//! Sockets of an actix server on this thread, with peers on threads of their own.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use actix_web::{App, HttpRequest, HttpResponse, HttpServer, rt, web};
use futures_util::stream;
use socket2::{Domain, SockRef, Socket, Type};

use super::{
    KEEPALIVE_INTERVAL, KEEPALIVE_TIME, SocketKey, USER_TIMEOUT, configure_tcp, end_within, key_of,
    watch_socket,
};

/// When the sockets of the tests are shut down.
const END_TIMEOUT: Duration = Duration::from_secs(2);
/// How long everything else may take.
const TEST_TIMEOUT: Duration = Duration::from_secs(20);

/// Writes for ever.
async fn endless(req: HttpRequest) -> HttpResponse {
    end_within(key_of(&req).unwrap(), END_TIMEOUT);
    let chunks =
        stream::repeat_with(|| Ok::<_, actix_web::Error>(web::Bytes::from_static(&[b'x'; 65_536])));
    HttpResponse::Ok().streaming(chunks)
}

/// Writes 200 KB, which the kernel takes at once, and closes.
async fn long(req: HttpRequest) -> HttpResponse {
    end_within(key_of(&req).unwrap(), END_TIMEOUT);
    HttpResponse::Ok().force_close().body(vec![b'x'; 200_000])
}

async fn serve() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let app =
        || App::new().route("/endless", web::get().to(endless)).route("/long", web::get().to(long));
    let server = HttpServer::new(app).on_connect(watch_socket).workers(1).disable_signals();
    rt::spawn(server.listen(listener).unwrap().run());
    address
}

/// Asks for a page with a window of a few kilobytes.
fn ask(address: SocketAddr, path: &str) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&address.into()).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    stream
}

/// Whether the kernel still has the server's end of the connection, in whatever state.
fn is_there(addresses: [SocketAddr; 2]) -> bool {
    let port = |address: SocketAddr| format!("0100007F:{:04X}", address.port());
    let [server, client] = addresses.map(port);
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().any(|line| {
        let mut words = line.split_whitespace().skip(1);
        words.next() == Some(&server) && words.next() == Some(&client)
    })
}

/// Repeats something until the server's end of the connection is gone, and returns how long that took.
fn until_gone(client: &TcpStream, mut again: impl FnMut()) -> Duration {
    let addresses = [client.peer_addr().unwrap(), client.local_addr().unwrap()];
    let start = Instant::now();
    while is_there(addresses) {
        assert!(start.elapsed() < TEST_TIMEOUT, "the socket stays");
        again();
        thread::sleep(Duration::from_millis(20));
    }
    start.elapsed()
}

/// Runs a peer on a thread of its own.
async fn peer<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    rt::task::spawn_blocking(run).await.unwrap()
}

#[actix_web::test]
async fn a_socket_whose_peer_reads_nothing_is_closed_in_time() {
    let address = serve().await;
    let after = peer(move || {
        let client = ask(address, "/endless");
        until_gone(&client, || ())
    });
    assert!(after.await >= END_TIMEOUT / 2, "before its time");
}

#[actix_web::test]
async fn a_socket_whose_peer_reads_a_byte_at_a_time_is_closed_in_time() {
    let address = serve().await;
    peer(move || {
        let client = ask(address, "/endless");
        until_gone(&client, || {
            let _ = (&client).read(&mut [0]);
        });
    })
    .await;
}

#[actix_web::test]
async fn unsent_bytes_do_not_keep_a_closed_socket_for_longer() {
    let address = serve().await;
    let after = peer(move || {
        let client = ask(address, "/long");
        until_gone(&client, || {
            let _ = (&client).read(&mut [0]);
        })
    });
    assert!(after.await >= END_TIMEOUT / 2, "the last bytes had no time");
}

#[actix_web::test]
async fn a_peer_that_reads_gets_everything_and_the_end_at_once() {
    let address = serve().await;
    peer(move || {
        let start = Instant::now();
        let mut client = ask(address, "/long");
        let mut all = Vec::new();
        client.read_to_end(&mut all).unwrap();
        assert!(all.len() > 200_000);
        assert!(all.ends_with(b"xxx"));
        // The FIN comes with the last byte, not with the deadline.
        assert!(start.elapsed() < END_TIMEOUT, "{:?}", start.elapsed());
    })
    .await;
}

#[actix_web::test]
async fn a_key_does_not_refer_to_the_next_socket_with_its_descriptor() {
    use actix_web::rt::net::TcpStream;

    let listener = actix_web::rt::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let first = TcpStream::connect(address).await.unwrap();
    let key = SocketKey::of(&first).unwrap();
    assert!(key.with(|_| ()).is_some());
    // Other tests open descriptors, too: until one gets this number.
    drop(first);
    for _ in 0..1000 {
        let next = TcpStream::connect(address).await.unwrap();
        // So that the backlog of the listener does not fill.
        let _accepted = listener.accept().await.unwrap();
        let again = SocketKey::of(&next).unwrap();
        assert_ne!(again, key);
        assert!(!key.end());
        assert_eq!(next.try_read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
        if again.descriptor == key.descriptor {
            return;
        }
    }
}

#[actix_web::test]
async fn a_socket_of_another_thread_is_left_alone() {
    let listener = actix_web::rt::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let stream =
        actix_web::rt::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let key = SocketKey::of(&stream).unwrap();
    let ended = peer(move || {
        end_within(key, Duration::ZERO);
        key.end()
    });
    assert!(!ended.await);
    assert!(key.with(|_| ()).is_some());
    assert!(key.end(), "on its own thread it is ended");
    stream.readable().await.unwrap();
    assert_eq!(stream.try_read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_connection_inherits_the_configuration_of_its_listener() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    configure_tcp(&listener);
    let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    let socket = SockRef::from(&accepted);
    assert!(socket.tcp_nodelay().unwrap());
    assert!(socket.keepalive().unwrap());
    assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_TIME);
    assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE_INTERVAL);
    assert_eq!(socket.tcp_user_timeout().unwrap(), Some(USER_TIMEOUT));
}
