//! How long the heartbeats of others take while one client sends as fast as it can.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use clap::ValueEnum;

use super::{
    crowd::{Behaviour, Client, Crowd},
    dialect::{heartbeat, is_answer},
    frame,
};

/// How far apart the heartbeats are that are measured.
const APART: Duration = Duration::from_millis(5);
/// How many frames the flooding client hands to its socket at a time.
const FRAMES: usize = 100;

/// What the flooding client sends, alone in its room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Flood {
    /// Nothing: there is no such client.
    None,
    /// Heartbeats of the JSON dialect, which nobody answers.
    Heartbeats,
    /// Messages to its room.
    Messages,
    /// Texts that are not JSON, each answered with an error.
    Invalid,
    /// Pushes to a Phoenix topic that it has not joined, each refused.
    Unjoined,
}

impl Flood {
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Heartbeats => "heartbeats",
            Self::Messages => "messages",
            Self::Invalid => "invalid",
            Self::Unjoined => "unjoined",
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::Unjoined => "/socket/websocket?vsn=2.0.0",
            _ => "/ws/flood?presence=none",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Unjoined => r#"["1","2","flood","shout",{}]"#,
            Self::Messages => r#"{"type":"message","payload":1}"#,
            Self::Invalid => "{",
            Self::None | Self::Heartbeats => "\"heartbeat\"",
        }
    }

    /// Starts the client.
    pub fn start(self, server: SocketAddr) -> io::Result<Option<Flooding>> {
        if self == Self::None {
            return Ok(None);
        }
        let mut stream = TcpStream::connect(server)?;
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: {server}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            self.path()
        );
        stream.write_all(request.as_bytes())?;
        stream.set_nonblocking(true)?;
        let (stop, frames) = (Arc::new(AtomicBool::new(false)), frame::text(self.text()));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || flood(stream, &frames.repeat(FRAMES), &stopped));
        Ok(Some(Flooding { stop, thread }))
    }
}

/// A client that floods.
pub struct Flooding {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<u64>>,
}

impl Flooding {
    /// Stops it. Says how many bytes it has sent.
    ///
    /// # Errors
    ///
    /// If its connection has ended before.
    pub fn stop(self) -> io::Result<u64> {
        self.stop.store(true, Relaxed);
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the flooding client panicked")))
    }
}

fn flood(mut stream: TcpStream, frames: &[u8], stop: &AtomicBool) -> io::Result<u64> {
    let (mut sent, mut buffer) = (0, vec![0; 256 * 1024]);
    let later = |error: &io::Error| error.kind() == ErrorKind::WouldBlock;
    while !stop.load(Relaxed) {
        let at = usize::try_from(sent % frames.len() as u64).unwrap_or_default();
        let taken = match stream.write(&frames[at..]) {
            Err(error) if later(&error) => 0,
            taken => taken?,
        };
        let read = match stream.read(&mut buffer) {
            Err(error) if later(&error) => 0,
            Ok(0) => return Err(io::Error::other("the server has closed the connection")),
            read => read?,
        };
        sent += taken as u64;
        if taken + read == 0 {
            thread::sleep(Duration::from_micros(100));
        }
    }
    Ok(sent)
}

/// One heartbeat is on its way.
struct Beat(bool);

impl Behaviour for Beat {
    fn text(&mut self, _: usize, _: &mut Client, text: &[u8]) {
        self.0 |= is_answer(text);
    }

    fn done(&self, lost: usize) -> bool {
        self.0 || lost > 0
    }
}

/// How long heartbeats took in seconds, sorted: of one client after the other, for so long.
pub fn heartbeats(crowd: &mut Crowd, clients: usize, time: Duration) -> io::Result<Vec<f64>> {
    let (begun, beat, mut took) = (Instant::now(), heartbeat(), Vec::new());
    while begun.elapsed() < time && crowd.lost() == 0 {
        let sent = Instant::now();
        if let Some(client) = crowd.client(took.len() % clients) {
            client.send(&beat);
        }
        let mut answer = Beat(false);
        crowd.run(sent + time, &mut answer)?;
        took.push(sent.elapsed().as_secs_f64());
        thread::sleep(APART.saturating_sub(sent.elapsed()));
    }
    took.sort_unstable_by(f64::total_cmp);
    Ok(took)
}
