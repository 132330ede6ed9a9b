//! A WebSocket of bytes, for clients that break the rules.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{Server, soon};

/// The first byte of a text in one frame.
pub const TEXT: u8 = 0x81;

/// A WebSocket after the handshake, frame by frame.
pub struct Raw {
    stream: TcpStream,
    bytes: Vec<u8>,
}

/// A frame with this first byte, masked with zeros or not at all.
pub fn frame(first: u8, masked: bool, payload: &[u8]) -> Vec<u8> {
    let mask = if masked { 0x80 } else { 0 };
    let mut frame = vec![first];
    match payload.len() {
        short @ ..126 => frame.push(mask | u8::try_from(short).unwrap()),
        medium @ ..65_536 => {
            frame.push(mask | 126);
            frame.extend(u16::try_from(medium).unwrap().to_be_bytes());
        }
        long => {
            frame.push(mask | 127);
            frame.extend((long as u64).to_be_bytes());
        }
    }
    if masked {
        frame.extend([0; 4]);
    }
    frame.extend(payload);
    frame
}

impl Server {
    pub async fn raw(&self, path: &str) -> Raw {
        let mut stream = TcpStream::connect(self.address()).await.unwrap();
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            self.address()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        // What follows the head is frames, and at once.
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(soon("the handshake", stream.read_u8()).await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
        Raw { stream, bytes: Vec::new() }
    }
}

impl Raw {
    /// The connection itself, of which nothing but the handshake has been read.
    pub fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// Sends bytes; that the server has stopped to read them is no failure.
    pub async fn send(&mut self, bytes: &[u8]) -> bool {
        soon("sent bytes", self.stream.write_all(bytes)).await.is_ok()
    }

    async fn read(&mut self, len: usize) -> Option<Vec<u8>> {
        while self.bytes.len() < len {
            match soon("bytes", self.stream.read_buf(&mut self.bytes)).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
        Some(self.bytes.drain(..len).collect())
    }

    /// The next frame: its opcode and payload; `None` at the end of the connection.
    pub async fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        let head = self.read(2).await?;
        assert_eq!(head[1] & 0x80, 0, "a server does not mask");
        let len = match head[1] {
            126 => u64::from(u16::from_be_bytes(self.read(2).await?.try_into().unwrap())),
            127 => u64::from_be_bytes(self.read(8).await?.try_into().unwrap()),
            short => u64::from(short),
        };
        let payload = self.read(usize::try_from(len).unwrap()).await?;
        Some((head[0] & 0x0f, payload))
    }

    /// The next text.
    pub async fn text(&mut self) -> String {
        loop {
            match self.next().await {
                Some((1, payload)) => return String::from_utf8(payload).unwrap(),
                Some((8, payload)) => panic!("closed: {payload:?}"),
                Some(_) => {}
                None => panic!("the connection has ended"),
            }
        }
    }

    /// The code of the server's close frame; other frames are passed over.
    pub async fn closed(&mut self) -> u16 {
        loop {
            match self.next().await {
                Some((8, payload)) => return u16::from_be_bytes([payload[0], payload[1]]),
                Some(_) => {}
                None => panic!("the connection ended without a close frame"),
            }
        }
    }

    /// Whether nothing comes any more, and the connection ends.
    pub async fn ended(&mut self) -> bool {
        self.next().await.is_none()
    }
}
