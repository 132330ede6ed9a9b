//! As much of RFC 6455 as a load generator needs, and no more.

use std::ops::Range;

/// What a frame of the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    Ping,
    Close,
    /// A pong.
    Other,
    /// What these servers do not send: fragments, binary frames, masked ones.
    Broken,
}

/// A frame of the server in a buffer.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: Kind,
    /// Where its payload is.
    pub payload: Range<usize>,
}

/// The first frame of the bytes, if all of it is there.
pub fn first(bytes: &[u8]) -> Option<Frame> {
    let [head, len, rest @ ..] = bytes else { return None };
    let (header, len) = match len & 0x7f {
        126 => (4, u64::from(u16::from_be_bytes(*rest.first_chunk()?))),
        127 => (10, u64::from_be_bytes(*rest.first_chunk()?)),
        short => (2, u64::from(short)),
    };
    let masked = bytes[1] & 0x80 != 0;
    let kind = match head {
        _ if masked => Kind::Broken,
        0x81 => Kind::Text,
        0x88 => Kind::Close,
        0x89 => Kind::Ping,
        0x8a => Kind::Other,
        _ => Kind::Broken,
    };
    let end = usize::try_from(len).ok()?.checked_add(header)?;
    (bytes.len() >= end).then_some(Frame { kind, payload: header..end })
}

/// A text frame as a client sends it. Its mask is zero, which costs the server as much as any other
/// and us nothing.
pub fn text(payload: &str) -> Vec<u8> {
    masked(0x81, payload.as_bytes())
}

/// The answer to a ping.
pub fn pong(payload: &[u8]) -> Vec<u8> {
    masked(0x8a, payload)
}

/// A goodbye: close code 1000.
pub fn close() -> Vec<u8> {
    masked(0x88, &1000_u16.to_be_bytes())
}

fn masked(head: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![head];
    match u16::try_from(payload.len()) {
        Ok(short @ 0..126) => bytes.push(0x80 | short as u8),
        Ok(medium) => {
            bytes.push(0x80 | 126);
            bytes.extend(medium.to_be_bytes());
        }
        Err(_) => {
            bytes.push(0x80 | 127);
            bytes.extend((payload.len() as u64).to_be_bytes());
        }
    }
    bytes.extend([0; 4]);
    bytes.extend(payload);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame of a server with a text of this length.
    fn sent(len: usize) -> Vec<u8> {
        let mut bytes = text(&"x".repeat(len));
        bytes[1] &= 0x7f;
        let mask = bytes.len() - len - 4;
        bytes.drain(mask..mask + 4);
        bytes
    }

    #[test]
    fn a_frame_is_found_when_all_of_it_is_there_and_not_before() {
        for len in [0, 1, 125, 126, 65_535, 65_536] {
            let bytes = [sent(len), sent(3)].concat();
            let end = bytes.len() - sent(3).len();
            assert_eq!(first(&bytes[..end - 1]), None, "{len}");
            let frame = first(&bytes).expect("a frame");
            assert_eq!((frame.kind, frame.payload), (Kind::Text, end - len..end));
        }
    }

    #[test]
    fn what_no_server_sends_is_broken() {
        for bytes in [&[0x01, 0][..], &[0x80, 0], &[0x82, 0], &text("")] {
            assert_eq!(first(bytes).map(|frame| frame.kind), Some(Kind::Broken));
        }
    }
}
