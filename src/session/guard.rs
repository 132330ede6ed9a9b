//! Refuses a WebSocket message on the header of the frame that makes it too big.
//!
//! The codec buffers a whole frame before it looks at its size, and knows no size of a fragmented
//! message. So the bytes pass through here first, and only frame headers (RFC 6455, section 5.2) are
//! looked at.

use std::{
    cell::Cell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use actix_web::{error::PayloadError, web::Bytes};
use futures_util::{Stream, StreamExt};

/// Set once a message was too big.
#[derive(Clone, Debug, Default)]
pub(super) struct TooBig(Rc<Cell<bool>>);

impl TooBig {
    pub fn get(&self) -> bool {
        self.0.get()
    }
}

/// A stream of a socket's bytes that fails at a message of more than `limit` bytes, and swallows
/// what comes after, so that the peer reads the close frame before its connection ends.
pub(super) struct Guard<S> {
    stream: S,
    limit: u64,
    frames: Frames,
    too_big: TooBig,
}

impl<S> Guard<S> {
    pub fn new(stream: S, limit: usize) -> (Self, TooBig) {
        let too_big = TooBig::default();
        let limit = u64::try_from(limit).unwrap_or(u64::MAX);
        (Self { stream, limit, frames: Frames::default(), too_big: too_big.clone() }, too_big)
    }
}

impl<S> Stream for Guard<S>
where
    S: Stream<Item = Result<Bytes, PayloadError>> + Unpin,
{
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let Some(item) = std::task::ready!(self.stream.poll_next_unpin(cx)) else {
                return Poll::Ready(None);
            };
            let Ok(chunk) = item else { return Poll::Ready(Some(item)) };
            if self.too_big.get() {
                continue;
            }
            let limit = self.limit;
            if self.frames.pass(&chunk, limit) {
                return Poll::Ready(Some(Ok(chunk)));
            }
            self.too_big.0.set(true);
            return Poll::Ready(Some(Err(PayloadError::Overflow)));
        }
    }
}

/// Where in the frames the bytes are.
#[derive(Debug, Default)]
struct Frames {
    /// The header read so far: at most 2 bytes, 8 of length and 4 of mask.
    header: [u8; 14],
    read: usize,
    /// Payload bytes of the frame yet to come.
    payload: u64,
    /// Bytes of the message in the fragments so far.
    message: u64,
}

impl Frames {
    /// Follows the bytes; `false` at a header that makes a message bigger than `limit`.
    fn pass(&mut self, mut bytes: &[u8], limit: u64) -> bool {
        while !bytes.is_empty() {
            if self.payload > 0 {
                let skip = self.payload.min(bytes.len() as u64);
                self.payload -= skip;
                // `skip` is at most the length of the slice.
                bytes = &bytes[skip as usize..];
                continue;
            }
            self.header[self.read] = bytes[0];
            self.read += 1;
            bytes = &bytes[1..];
            if self.read == self.header_len() {
                self.read = 0;
                if !self.begin(limit) {
                    return false;
                }
            }
        }
        true
    }

    fn header_len(&self) -> usize {
        if self.read < 2 {
            return 2;
        }
        let mask = if self.header[1] & 0x80 == 0 { 0 } else { 4 };
        mask + match self.header[1] & 0x7f {
            126 => 4,
            127 => 10,
            _ => 2,
        }
    }

    /// Takes the frame whose header has been read.
    fn begin(&mut self, limit: u64) -> bool {
        let [first, second, rest @ ..] = self.header;
        self.payload = match second & 0x7f {
            126 => u64::from(u16::from_be_bytes([rest[0], rest[1]])),
            127 => {
                let [a, b, c, d, e, f, g, h, ..] = rest;
                u64::from_be_bytes([a, b, c, d, e, f, g, h])
            }
            short => u64::from(short),
        };
        let control = first & 0x08 != 0;
        if control {
            // At most 125 bytes by the RFC, which the codec enforces; no part of a message.
            return self.payload <= limit.max(125);
        }
        let continues = first & 0x0f == 0;
        let before = if continues { self.message } else { 0 };
        self.message = before.saturating_add(self.payload);
        self.message <= limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The header of a masked frame and so many bytes of it.
    fn frame(first: u8, len: usize) -> Vec<u8> {
        let mut bytes = vec![first];
        match u16::try_from(len) {
            Ok(short) if short < 126 => bytes.push(0x80 | short as u8),
            Ok(medium) => {
                bytes.push(0x80 | 126);
                bytes.extend(medium.to_be_bytes());
            }
            Err(_) => {
                bytes.push(0x80 | 127);
                bytes.extend((len as u64).to_be_bytes());
            }
        }
        bytes.extend([0; 4]);
        bytes.extend(vec![0xff; len]);
        bytes
    }

    fn passes(limit: u64, chunk: usize, bytes: &[u8]) -> bool {
        let mut frames = Frames::default();
        bytes.chunks(chunk).all(|bytes| frames.pass(bytes, limit))
    }

    #[test]
    fn a_message_of_the_limit_passes_and_one_byte_more_does_not_however_it_is_cut() {
        for limit in [0, 1, 125, 126, 127, 65_535, 65_536, 70_000] {
            for chunk in [1, 2, 3, 7, 4096] {
                let (whole, more) = (frame(0x81, limit), frame(0x81, limit + 1));
                assert!(passes(limit as u64, chunk, &[whole.clone(), whole].concat()));
                assert!(!passes(limit as u64, chunk, &more[..more.len() - limit]));
            }
        }
    }

    #[test]
    fn fragments_count_together_and_control_frames_between_them_do_not() {
        let fragments =
            |last| [frame(0x01, 40), frame(0x89, 100), frame(0x00, 40), frame(0x80, last)].concat();
        assert!(passes(100, 5, &fragments(20)));
        assert!(!passes(100, 5, &fragments(21)));
        // A new message begins anew.
        assert!(passes(100, 5, &[fragments(20), fragments(20)].concat()));
    }

    #[test]
    fn a_length_that_lies_about_the_future_is_refused_at_its_header() {
        let header = [0x81, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
        assert!(!passes(65_536, 14, &header));
    }
}
