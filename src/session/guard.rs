//! Backpressure for the input of a session, and limits that are checked on frame headers.
//!
//! actix-web-actors copies all available bytes before it decodes one frame; the codec buffers a whole frame
//! before it looks at its size, and does not limit a fragmented message. So the bytes pass through here
//! first, and the frame headers (RFC 6455, section 5.2) are read: a few frames pass at a time, and no more
//! until the session has handled them. Malformed and too big frames do not pass.

use std::{
    cell::Cell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use actix_web::{error::PayloadError, web::Bytes};
use futures_util::{Stream, StreamExt};

/// How many frames a session handles before other connections of its thread have a turn.
const FRAMES_PER_TURN: u32 = 16;
/// While more bytes than this wait, replies for the socket and frames for joins, no frame passes that could cause more.
const MAX_WAITING: usize = 64 * 1024;

/// How far a session has come with its input. A clone shares it.
#[derive(Clone, Debug, Default)]
pub(super) struct Input(Rc<InputState>);

#[derive(Debug, Default)]
struct InputState {
    /// Frames that have passed and are not handled yet.
    unhandled: Cell<u32>,
    /// Bytes of replies that wait for the socket, and of frames that wait for joins.
    waiting: Cell<usize>,
    turn_is_over: Cell<bool>,
    error: Cell<Option<FrameError>>,
    /// Whether the session is closing, and waits only for the close frame of its peer.
    skips: Cell<bool>,
}

impl Input {
    pub fn handled(&self) {
        self.0.unhandled.set(self.0.unhandled.get().saturating_sub(1));
    }

    /// Holds the input back by so many bytes that wait.
    pub fn hold(&self, bytes: usize) {
        self.0.waiting.set(self.0.waiting.get() + bytes);
    }

    pub fn release(&self, bytes: usize) {
        self.0.waiting.set(self.0.waiting.get().saturating_sub(bytes));
    }

    /// The error in a frame header, if there was one.
    pub fn error(&self) -> Option<FrameError> {
        self.0.error.get()
    }

    /// Skips everything up to the peer's close frame, after which the input ends.
    pub fn skip_to_close(&self) {
        self.0.skips.set(true);
    }

    /// Begins another turn if one is over; returns whether that was so.
    pub fn end_turn(&self) -> bool {
        self.0.turn_is_over.take()
    }
}

/// A stream of a socket's bytes that passes a few frames at a time. It fails at a malformed frame, and at a
/// message of more than `limit` bytes; then it skips everything up to the peer's close frame, and ends.
/// Nothing passes after a close frame.
pub(super) struct FrameGuard<S> {
    stream: S,
    limit: u64,
    frames: Frames,
    unread: Bytes,
    /// Frames that have passed in this turn.
    passed: u32,
    input: Input,
}

impl<S> FrameGuard<S> {
    pub fn new(stream: S, limit: usize) -> (Self, Input) {
        let input = Input::default();
        let limit = u64::try_from(limit).unwrap_or(u64::MAX);
        let (frames, unread) = (Frames::default(), Bytes::new());
        (Self { stream, limit, frames, unread, passed: 0, input: input.clone() }, input)
    }

    /// The next bytes that pass: up to the last frame of this turn, or all there are.
    fn pass(&mut self) -> Result<Bytes, FrameError> {
        let (mut end, mut complete) = (0, 0);
        while end < self.unread.len()
            && self.passed + complete < FRAMES_PER_TURN
            && !self.frames.closed
        {
            match self.frames.follow(&self.unread[end..], Some(self.limit)) {
                Ok((bytes, whole)) => {
                    end += bytes;
                    complete += u32::from(whole);
                }
                // The frames before it are handled first.
                Err(_) if complete > 0 => break,
                Err(error) => return Err(error),
            }
        }
        self.passed += complete;
        self.input.0.unhandled.set(complete);
        Ok(self.unread.split_to(end))
    }

    /// Skips frames up to the end of a close frame, or all bytes there are.
    fn skip(&mut self) {
        while !self.unread.is_empty() && !self.frames.closed {
            // There are no errors without a limit.
            let Ok((bytes, _)) = self.frames.follow(&self.unread, None) else { return };
            drop(self.unread.split_to(bytes));
        }
    }
}

impl<S> Stream for FrameGuard<S>
where
    S: Stream<Item = Result<Bytes, PayloadError>> + Unpin,
{
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        // No waker is needed: the decoder polls again after each frame, and the writer after it has written
        // replies.
        let waiting = this.input.0.waiting.get();
        if this.input.0.unhandled.get() > 0 || waiting > MAX_WAITING {
            return Poll::Pending;
        }
        loop {
            if this.input.0.skips.get() && this.frames.closed {
                return Poll::Ready(None);
            }
            if this.passed >= FRAMES_PER_TURN {
                this.passed = 0;
                this.input.0.turn_is_over.set(true);
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if this.unread.is_empty() {
                match this.stream.poll_next_unpin(cx) {
                    Poll::Ready(Some(Ok(chunk))) => this.unread = chunk,
                    // However the connection ends, that is no malformed frame.
                    Poll::Ready(_) => return Poll::Ready(None),
                    Poll::Pending => {
                        this.passed = 0;
                        return Poll::Pending;
                    }
                }
            }
            if this.input.0.skips.get() {
                this.skip();
                continue;
            }
            if this.frames.closed {
                this.unread.clear();
                continue;
            }
            return Poll::Ready(Some(this.pass().map_err(|error| {
                this.input.0.error.set(Some(error));
                this.input.skip_to_close();
                PayloadError::Overflow
            })));
        }
    }
}

/// Why a frame does not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FrameError {
    /// It makes a message larger than allowed.
    TooBig,
    /// It has reserved bits, an unknown opcode, or no mask: the codec would not get past it.
    Malformed,
}

#[derive(Debug, Default)]
struct Frames {
    /// The header so far: at most 2 bytes, 8 of length and 4 of mask.
    header: [u8; 14],
    read: usize,
    /// Payload bytes of the frame yet to come.
    payload: u64,
    /// Bytes of the message in the fragments so far.
    message: u64,
    /// Whether a whole close frame has been seen.
    closed: bool,
}

impl Frames {
    /// Advances to the end of a frame, or of the bytes. Returns how many bytes that took, and whether a frame
    /// has ended. With a limit, it fails at the header of a malformed or too big frame, and does not advance.
    fn follow(&mut self, bytes: &[u8], limit: Option<u64>) -> Result<(usize, bool), FrameError> {
        let (mut at, read) = (0, self.read);
        while self.payload == 0 {
            let Some(byte) = bytes.get(at) else { return Ok((at, false)) };
            self.header[self.read] = *byte;
            self.read += 1;
            at += 1;
            // As early as the codec would fail.
            if self.read == 2 && limit.is_some() && self.is_malformed() {
                self.read = read;
                return Err(FrameError::Malformed);
            }
            if self.read < self.header_len() {
                continue;
            }
            self.read = 0;
            if let Err(error) = self.begin(limit) {
                self.read = read;
                return Err(error);
            }
            if self.payload == 0 {
                return Ok((at, self.end()));
            }
        }
        let skip = self.payload.min((bytes.len() - at) as u64);
        self.payload -= skip;
        // `skip` is at most the length of the slice.
        at += skip as usize;
        Ok((at, self.payload == 0 && self.end()))
    }

    fn header_len(&self) -> usize {
        if self.read < 2 {
            return 2;
        }
        let mask = if self.header[1] & MASKED == 0 { 0 } else { 4 };
        mask + match self.header[1] & 0x7f {
            126 => 4,
            127 => 10,
            _ => 2,
        }
    }

    /// Whether the codec would not get past this frame.
    fn is_malformed(&self) -> bool {
        let [first, second, ..] = self.header;
        first & RESERVED_BITS != 0 || second & MASKED == 0 || !OPCODES.contains(&(first & OPCODE))
    }

    fn begin(&mut self, limit: Option<u64>) -> Result<(), FrameError> {
        let [first, second, rest @ ..] = self.header;
        let payload = match second & 0x7f {
            126 => u64::from(u16::from_be_bytes([rest[0], rest[1]])),
            127 => {
                let [a, b, c, d, e, f, g, h, ..] = rest;
                u64::from_be_bytes([a, b, c, d, e, f, g, h])
            }
            short => u64::from(short),
        };
        let control = first & 0x08 != 0;
        if control {
            // At most 125 bytes by the RFC, which the codec checks; not part of a message.
            if limit.is_some_and(|limit| payload > limit.max(125)) {
                return Err(FrameError::TooBig);
            }
        } else {
            let continues = first & OPCODE == 0;
            let before = if continues { self.message } else { 0 };
            let message = before.saturating_add(payload);
            if limit.is_some_and(|limit| message > limit) {
                return Err(FrameError::TooBig);
            }
            self.message = message;
        }
        self.payload = payload;
        Ok(())
    }

    /// Ends the frame; always `true`.
    fn end(&mut self) -> bool {
        self.closed |= self.header[0] & OPCODE == CLOSE;
        true
    }
}

/// The bits of the first two bytes of a header.
const RESERVED_BITS: u8 = 0x70;
const OPCODE: u8 = 0x0f;
const MASKED: u8 = 0x80;
/// The opcodes that there are, and that of a close frame.
const OPCODES: [u8; 6] = [0x0, 0x1, 0x2, CLOSE, 0x9, 0xa];
const CLOSE: u8 = 0x8;

#[cfg(test)]
#[path = "guard_tests.rs"]
mod tests;
