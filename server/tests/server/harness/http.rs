//! One request on a connection of its own.

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{Server, soon};

/// A request to a server.
pub struct Ask<'a> {
    server: &'a Server,
    method: &'a str,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

/// What it was answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: String,
}

impl Server {
    pub fn ask<'a>(&'a self, method: &'a str, path: &str) -> Ask<'a> {
        let (path, headers, body) = (path.to_owned(), Vec::new(), Vec::new());
        Ask { server: self, method, path, headers, body }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path).send().await
    }

    /// The JSON at an address that must be there.
    pub async fn json(&self, path: &str) -> Value {
        let answer = self.get(path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        answer.json()
    }

    /// The WebSocket handshake at an address that refuses it.
    pub fn enter<'a>(&'a self, path: &str) -> Ask<'a> {
        self.ask("GET", path)
            .header("Upgrade", "websocket")
            .header("Connection", "Upgrade")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
    }
}

impl Ask<'_> {
    /// Adds a header; `Host` replaces the one that is sent otherwise.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub async fn send(self) -> Answer {
        soon("an answer", self.ask()).await
    }

    async fn ask(self) -> Answer {
        let address = self.server.address();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let has = |name: &str| self.headers.iter().any(|(given, _)| given == name);
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.path);
        if !has("Host") {
            head += &format!("Host: {address}\r\n");
        }
        if !has("Connection") {
            head += "Connection: close\r\n";
        }
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("Content-Length: {}\r\n\r\n", self.body.len());
        let request = [head.as_bytes(), &self.body].concat();
        // The server may refuse a body before it has been sent.
        let _ = stream.write_all(&request).await;
        read_answer(&mut stream, self.method == "HEAD").await
    }
}

/// Reads one answer with its body.
async fn read_answer(stream: &mut TcpStream, bodiless: bool) -> Answer {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        let n = stream.read_buf(&mut bytes).await.unwrap();
        assert!(n > 0, "no answer but {}", String::from_utf8_lossy(&bytes));
    };
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let header = |line: &str| {
        let (name, value) = line.split_once(':').unwrap();
        (name.to_ascii_lowercase(), value.trim().to_owned())
    };
    let mut answer = Answer { status, headers: lines.map(header).collect(), body: String::new() };
    let len: usize = answer.header("content-length").map_or(0, |len| len.parse().unwrap());
    let mut body = bytes.split_off(end + 4);
    while !bodiless && body.len() < len {
        assert!(stream.read_buf(&mut body).await.unwrap() > 0, "the answer ends early");
    }
    answer.body = String::from_utf8(body).unwrap();
    answer
}

impl Answer {
    /// A header, its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        serde_json::from_str(&self.body).unwrap()
    }

    /// The code of an error, whose answer must have the shape of one.
    pub fn error(&self) -> (u16, String) {
        let error = &self.json()["error"];
        assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()), "{self:?}");
        (self.status, error["code"].as_str().unwrap().to_owned())
    }
}
