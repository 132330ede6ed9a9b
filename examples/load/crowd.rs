//! Many clients in one thread: non-blocking sockets, edge-triggered, one buffer for all reads.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::ControlFlow,
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token, net::TcpStream};
use socket2::{Domain, Protocol, Socket, Type};

use super::frame::{self, Kind};

/// Bytes that are read at once.
const BUFFER: usize = 256 * 1024;
/// An answer to a handshake is not longer than this.
const HEAD: usize = 8 * 1024;
/// Clients with one source address; there are 28,232 ports by default.
const PER_ADDRESS: usize = 25_000;

/// What the clients do.
pub trait Behaviour {
    /// The client sends its handshake now.
    fn asked(&mut self, _id: usize, _now: Instant) {}
    /// The handshake is answered.
    fn opened(&mut self, _: usize, _: &mut Client) {}
    /// A text came.
    fn text(&mut self, id: usize, client: &mut Client, text: &[u8]);
    /// Whether this was all, if so many clients are lost.
    fn done(&self, lost: usize) -> bool;
}

/// One client.
pub struct Client {
    stream: TcpStream,
    state: State,
    /// The beginning of a frame whose end has not come.
    inbox: Vec<u8>,
    /// What the socket has not taken.
    outbox: Vec<u8>,
    read_at: Instant,
    has_list: bool,
    is_leaving: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    Handshaking,
    Open,
    Lost,
}

impl Client {
    /// When the bytes that are handled now were read from the socket.
    pub fn read_at(&self) -> Instant {
        self.read_at
    }

    /// The client has its first list, so another one may connect.
    pub fn got_list(&mut self) {
        self.has_list = true;
    }

    /// Sends the last frames; the connection may end then.
    pub fn leave(&mut self, goodbye: &[u8]) {
        self.is_leaving = true;
        self.send(goodbye);
    }

    fn is_in_flight(&self, until_list: bool) -> bool {
        match self.state {
            State::Connecting | State::Handshaking => true,
            State::Open => until_list && !self.has_list,
            State::Lost => false,
        }
    }

    /// Sends a frame, now or when the socket takes it.
    pub fn send(&mut self, bytes: &[u8]) {
        if !self.outbox.is_empty() {
            return self.outbox.extend(bytes);
        }
        match self.stream.write(bytes) {
            Ok(taken) => self.outbox.extend(&bytes[taken..]),
            Err(error) if is_later(&error) => self.outbox.extend(bytes),
            // What ends the connection is found when it is read.
            Err(_) => {}
        }
    }

    fn send_rest(&mut self) {
        if !self.outbox.is_empty() {
            let rest = std::mem::take(&mut self.outbox);
            self.send(&rest);
        }
    }
}

fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::NotConnected)
}

/// Clients of one server.
pub struct Crowd {
    server: SocketAddr,
    poll: Poll,
    clients: Vec<Client>,
    /// The requests of those who have not connected yet, last one first.
    to_come: Vec<Vec<u8>>,
    requests: Vec<Vec<u8>>,
    in_flight: usize,
    max_in_flight: usize,
    until_list: bool,
    buffer: Vec<u8>,
    lost: usize,
}

impl Crowd {
    /// A crowd of which each will ask for its path, and so many wait for the answer at a time.
    ///
    /// # Errors
    ///
    /// If the system gives no poll.
    pub fn new(server: SocketAddr, paths: Vec<String>, max_in_flight: usize) -> io::Result<Self> {
        let to_come: Vec<_> = paths.iter().map(|path| request(server, path)).rev().collect();
        let (poll, clients, requests) = (Poll::new()?, Vec::with_capacity(to_come.len()), vec![]);
        let (in_flight, lost, buffer, until_list) = (0, 0, vec![0; BUFFER], false);
        Ok(Self {
            server,
            poll,
            clients,
            to_come,
            requests,
            in_flight,
            max_in_flight,
            until_list,
            buffer,
            lost,
        })
    }

    /// Counts a client as waiting until it has [its list](Client::got_list), not only the answer to its
    /// handshake.
    pub fn until_list(mut self, until_list: bool) -> Self {
        self.until_list = until_list;
        self
    }

    /// How many clients there are, with those that are gone: the id of the next one.
    pub fn len(&self) -> usize {
        self.clients.len()
    }

    /// Connects one more client, however many are waiting.
    pub fn add(&mut self, path: &str) {
        self.connect(request(self.server, path));
    }

    /// How many could not connect, or were closed.
    pub fn lost(&self) -> usize {
        self.lost
    }

    pub fn client(&mut self, id: usize) -> Option<&mut Client> {
        self.clients.get_mut(id)
    }

    /// Lets them all do this until it is done. Says whether it was before the deadline.
    ///
    /// # Errors
    ///
    /// If the poll fails; what becomes of one client is counted as [lost](Self::lost).
    pub fn run(&mut self, deadline: Instant, does: &mut impl Behaviour) -> io::Result<bool> {
        let mut events = Events::with_capacity(1024);
        loop {
            while self.in_flight < self.max_in_flight {
                let Some(request) = self.to_come.pop() else { break };
                self.connect(request);
            }
            if does.done(self.lost) {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            match self.poll.poll(&mut events, Some(left.min(Duration::from_millis(100)))) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                polled => polled?,
            }
            for event in &events {
                let id = event.token().0;
                if event.is_writable() {
                    self.writable(id, does);
                }
                if event.is_readable() || event.is_read_closed() || event.is_error() {
                    self.readable(id, does);
                }
            }
        }
    }

    fn connect(&mut self, request: Vec<u8>) {
        let id = self.clients.len();
        match open(self.server, id).and_then(|mut stream| {
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut stream, Token(id), interest)?;
            Ok(stream)
        }) {
            Ok(stream) => {
                self.clients.push(Client {
                    stream,
                    state: State::Connecting,
                    inbox: Vec::new(),
                    outbox: Vec::new(),
                    read_at: Instant::now(),
                    has_list: false,
                    is_leaving: false,
                });
                self.requests.push(request);
                self.in_flight += 1;
            }
            Err(error) => {
                eprintln!("no connection: {error}");
                self.lost += 1;
            }
        }
    }

    fn writable(&mut self, id: usize, does: &mut impl Behaviour) {
        let client = &mut self.clients[id];
        if client.state == State::Connecting {
            client.state = State::Handshaking;
            does.asked(id, Instant::now());
            client.send(&std::mem::take(&mut self.requests[id]));
        } else {
            client.send_rest();
        }
    }

    fn readable(&mut self, id: usize, does: &mut impl Behaviour) {
        let mut buffer = std::mem::take(&mut self.buffer);
        let client = &mut self.clients[id];
        let (was, was_in_flight) = (client.state, client.is_in_flight(self.until_list));
        while client.state != State::Lost {
            match client.stream.read(&mut buffer) {
                Ok(0) => client.state = State::Lost,
                Ok(count) => {
                    client.read_at = Instant::now();
                    if take(id, client, &buffer[..count], does).is_break() {
                        client.state = State::Lost;
                    }
                    // A stream socket that gives less than there was room for is empty: epoll(7).
                    if count < buffer.len() {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if is_later(&error) => break,
                Err(_) => client.state = State::Lost,
            }
        }
        self.buffer = buffer;
        if was_in_flight && !client.is_in_flight(self.until_list) {
            self.in_flight -= 1;
        }
        if was != State::Lost && client.state == State::Lost && !client.is_leaving {
            self.lost += 1;
        }
    }

    /// Says goodbye for all of them.
    pub fn leave(mut self) {
        let goodbye = frame::close();
        for client in &mut self.clients {
            client.send(&goodbye);
        }
    }
}

/// The handshake that asks for a path.
fn request(server: SocketAddr, path: &str) -> Vec<u8> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    request.into_bytes()
}

/// Handles bytes of the server; breaks if the client is lost with them.
fn take(
    id: usize,
    client: &mut Client,
    bytes: &[u8],
    does: &mut impl Behaviour,
) -> ControlFlow<()> {
    if client.inbox.is_empty() {
        let used = frames(id, client, bytes, does)?;
        client.inbox.extend(&bytes[used..]);
        return ControlFlow::Continue(());
    }
    let mut inbox = std::mem::take(&mut client.inbox);
    inbox.extend(bytes);
    let used = frames(id, client, &inbox, does)?;
    inbox.drain(..used);
    if !inbox.is_empty() {
        client.inbox = inbox;
    }
    ControlFlow::Continue(())
}

/// Handles all that is complete, and says how many bytes that was.
fn frames(
    id: usize,
    client: &mut Client,
    bytes: &[u8],
    does: &mut impl Behaviour,
) -> ControlFlow<(), usize> {
    let mut used = 0;
    if client.state == State::Handshaking {
        match head(bytes)? {
            0 => return ControlFlow::Continue(0),
            head => used = head,
        }
        client.state = State::Open;
        does.opened(id, client);
    }
    while let Some(frame) = frame::first(&bytes[used..]) {
        let payload = &bytes[used..][frame.payload.clone()];
        match frame.kind {
            Kind::Text => does.text(id, client, payload),
            Kind::Ping => client.send(&frame::pong(payload)),
            Kind::Other => {}
            Kind::Close | Kind::Broken => return ControlFlow::Break(()),
        }
        used += frame.payload.end;
    }
    ControlFlow::Continue(used)
}

/// The length of the answer to a handshake, 0 if it is not all there; breaks if it is a refusal.
fn head(bytes: &[u8]) -> ControlFlow<(), usize> {
    let Some(end) = bytes.windows(4).position(|end| end == b"\r\n\r\n") else {
        return if bytes.len() > HEAD { ControlFlow::Break(()) } else { ControlFlow::Continue(0) };
    };
    if bytes.starts_with(b"HTTP/1.1 101 ") {
        return ControlFlow::Continue(end + 4);
    }
    let status = bytes.split(|byte| *byte == b'\r').next().unwrap_or_default();
    eprintln!("refused: {}", String::from_utf8_lossy(status));
    ControlFlow::Break(())
}

/// Begins to connect.
fn open(server: SocketAddr, id: usize) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(server), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    let address = u8::try_from(id / PER_ADDRESS).unwrap_or(u8::MAX);
    if address > 0 && server.ip() == IpAddr::V4(Ipv4Addr::LOCALHOST) {
        let source = Ipv4Addr::new(127, 0, 1, address);
        socket.bind(&SocketAddr::from((source, 0)).into())?;
    }
    match socket.connect(&server.into()) {
        Ok(()) => {}
        Err(error) if is_later(&error) || is_in_progress(&error) => {}
        Err(error) => return Err(error),
    }
    Ok(TcpStream::from_std(socket.into()))
}

#[cfg(unix)]
fn is_in_progress(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error())
}

#[cfg(not(unix))]
fn is_in_progress(error: &io::Error) -> bool {
    error.kind() == ErrorKind::WouldBlock
}
