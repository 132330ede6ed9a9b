//! A Redis of a test's own.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::{
    io::{self, BufRead, BufReader, ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// Nothing that is to happen takes longer.
const MOST_WAIT: Duration = Duration::from_secs(30);

/// A `redis-server` on a free port, which keeps nothing. It ends when it is dropped.
pub struct Redis {
    port: u16,
    flags: Vec<String>,
    directory: TempDir,
    server: Option<Child>,
}

impl Redis {
    /// Starts one.
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// Starts one with further flags.
    pub fn with(flags: &[&str]) -> Self {
        let flags = flags.iter().map(|&flag| flag.to_owned()).collect();
        let directory = tempfile::tempdir().unwrap();
        let mut redis = Self { port: 0, flags, directory, server: None };
        // Somebody else may take the port meanwhile.
        for _ in 0..10 {
            redis.port = free_port();
            if redis.try_start() {
                return redis;
            }
        }
        panic!("redis-server does not start");
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Stops it at once, if it runs.
    pub fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().unwrap();
            server.wait().unwrap();
        }
    }

    /// Starts it again on the same port.
    pub fn start_again(&mut self) {
        self.stop();
        let until = Instant::now() + MOST_WAIT;
        while !self.try_start() {
            assert!(Instant::now() < until, "redis-server does not start again");
        }
    }

    /// Lets it hang.
    pub fn pause(&self) {
        self.signal("STOP");
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal("CONT");
    }

    /// Sends it a command in one line, and gives the answer.
    pub fn command(&self, line: &str) -> String {
        self.bulk(&words(line))
    }

    /// As [`command`](Self::command), with a password.
    pub fn command_with(&self, password: &str, line: &str) -> String {
        let answer = self.try_command_with(password, line);
        answer.unwrap_or_else(|error| panic!("redis does not answer: {error}"))
    }

    /// As [`command_with`](Self::command_with), where it may refuse the connection.
    pub fn try_command_with(&self, password: &str, line: &str) -> io::Result<String> {
        self.ask(&[vec![b"AUTH".as_slice(), password.as_bytes()], words(line)])
    }

    /// Sends it a command of arbitrary bytes, and gives the answer.
    pub fn bulk(&self, words: &[&[u8]]) -> String {
        self.ask(&[words.to_vec()]).unwrap_or_else(|error| panic!("redis does not answer: {error}"))
    }

    /// What is published to a channel from now on.
    pub fn listen_to(&self, channel: &str) -> Published {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(MOST_WAIT)).unwrap();
        stream.write_all(format!("SUBSCRIBE {channel}\r\n").as_bytes()).unwrap();
        let mut published = Published(BufReader::new(stream));
        assert_eq!(published.message().first().map(Vec::as_slice), Some(b"subscribe".as_slice()));
        published
    }

    /// Sends commands, and gives the last answer.
    fn ask(&self, commands: &[Vec<&[u8]>]) -> io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(MOST_WAIT))?;
        let mut bytes = Vec::new();
        for words in commands {
            bytes.extend(format!("*{}\r\n", words.len()).bytes());
            for word in words {
                bytes.extend(format!("${}\r\n", word.len()).bytes());
                bytes.extend(*word);
                bytes.extend(b"\r\n");
            }
        }
        stream.write_all(&bytes)?;
        let mut reader = BufReader::new(stream);
        let mut answer = String::new();
        for _ in commands {
            answer = read_answer(&mut reader)?;
        }
        Ok(answer)
    }

    /// Starts the server; whether it runs then.
    fn try_start(&mut self) -> bool {
        let server = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--daemonize", "no"])
            .arg("--dir")
            .arg(self.directory.path())
            .args(&self.flags)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let mut server = server.unwrap_or_else(|error| match error.kind() {
            ErrorKind::NotFound => {
                panic!("no redis-server in PATH: install the package redis-server")
            }
            _ => panic!("redis-server: {error}"),
        });
        let until = Instant::now() + MOST_WAIT;
        // One that wants a password answers too.
        while self.ask(&[vec![b"PING"]]).is_err() {
            if server.try_wait().unwrap().is_some() {
                return false;
            }
            assert!(Instant::now() < until, "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(5));
        }
        // If another Redis has the port, that one has answered.
        let ours = server.try_wait().unwrap().is_none();
        self.server = Some(server);
        ours
    }

    fn signal(&self, signal: &str) {
        let server = self.server.as_ref().expect("a redis that runs");
        let sent =
            Command::new("kill").args([format!("-{signal}"), server.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }
}

/// A connection that has subscribed to a channel.
pub struct Published(BufReader<TcpStream>);

impl Published {
    /// The content of the next thing that is published.
    pub fn next(&mut self) -> Vec<u8> {
        self.message().pop().unwrap()
    }

    /// The parts of the next message of Redis; numbers as they are written.
    fn message(&mut self) -> Vec<Vec<u8>> {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        let parts: usize = line.trim_end().strip_prefix('*').unwrap().parse().unwrap();
        (0..parts)
            .map(|_| {
                let mut line = String::new();
                self.0.read_line(&mut line).unwrap();
                let Some(length) = line.trim_end().strip_prefix('$') else {
                    return line.trim_end().into();
                };
                let mut part = vec![0; length.parse::<usize>().unwrap() + 2];
                self.0.read_exact(&mut part).unwrap();
                part.truncate(part.len() - 2);
                part
            })
            .collect()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.stop();
    }
}

fn words(line: &str) -> Vec<&[u8]> {
    line.split(' ').map(str::as_bytes).collect()
}

/// An answer as text; of a list, the elements with spaces between them.
fn read_answer(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    let line = line.trim_end();
    let (kind, rest) = line.split_at(1);
    let length = || rest.parse::<usize>().unwrap_or(0);
    match kind {
        "$" => {
            let mut bytes = vec![0; length() + 2];
            reader.read_exact(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
        }
        "*" => {
            let elements: io::Result<Vec<_>> = (0..length()).map(|_| read_answer(reader)).collect();
            Ok(elements?.join(" "))
        }
        _ => Ok(rest.to_owned()),
    }
}

fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}
