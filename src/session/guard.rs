//! Lets a session read no faster than it handles frames, and refuses a malformed frame, or a message that
//! is too big, on the header of the frame.
//!
//! actix-web-actors copies all bytes that are there before it decodes one frame; the codec buffers a
//! whole frame before it looks at its size, and knows no size of a fragmented message. So the bytes
//! pass through here first, and only frame headers (RFC 6455, section 5.2) are looked at: a few frames
//! pass at a time, and no more until the session has handled them.

use std::{
    cell::Cell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use actix_web::{error::PayloadError, web::Bytes};
use futures_util::{Stream, StreamExt};

/// How many frames a session handles before other connections of its thread have a turn.
const TURN: u32 = 16;
/// While more bytes of answers than this wait for the socket, no frame is handled that could cause more.
const UNSENT_ANSWERS: usize = 64 * 1024;

/// How far a session has come with its input. A clone is the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Input(Rc<State>);

#[derive(Debug, Default)]
struct State {
    /// Frames that were passed on and not handled yet.
    unhandled: Cell<u32>,
    /// Bytes of frames that wait for the socket and are answers to what was read.
    unsent_answers: Cell<usize>,
    turn_is_over: Cell<bool>,
    refused: Cell<Option<Refused>>,
    /// Whether the session closes, and waits for the close frame of its peer only.
    skips: Cell<bool>,
}

impl Input {
    /// A frame, or what is none, has been handled.
    pub fn handled(&self) {
        self.0.unhandled.set(self.0.unhandled.get().saturating_sub(1));
    }

    /// An answer of so many bytes waits for the socket.
    pub fn answers(&self, bytes: usize) {
        self.0.unsent_answers.set(self.0.unsent_answers.get() + bytes);
    }

    /// An answer of so many bytes waits no longer.
    pub fn answered(&self, bytes: usize) {
        self.0.unsent_answers.set(self.0.unsent_answers.get().saturating_sub(bytes));
    }

    /// What was refused on its header, if anything was.
    pub fn refused(&self) -> Option<Refused> {
        self.0.refused.get()
    }

    /// Has everything skipped up to the peer's close frame, with which the input ends.
    pub fn skip_to_close(&self) {
        self.0.skips.set(true);
    }

    /// Ends a turn that is over, so that another may begin. Says whether one was.
    pub fn end_turn(&self) -> bool {
        self.0.turn_is_over.take()
    }
}

/// A stream of a socket's bytes that passes on a few frames at a time. It fails at a malformed frame and
/// at a message of more than `limit` bytes; then it skips what comes up to the peer's close frame, and
/// ends. After a close frame nothing is passed on.
pub(super) struct Guard<S> {
    stream: S,
    limit: u64,
    frames: Frames,
    /// What has been read and not been passed on.
    unread: Bytes,
    /// Frames passed on in this turn.
    passed: u32,
    input: Input,
}

impl<S> Guard<S> {
    pub fn new(stream: S, limit: usize) -> (Self, Input) {
        let input = Input::default();
        let limit = u64::try_from(limit).unwrap_or(u64::MAX);
        let (frames, unread) = (Frames::default(), Bytes::new());
        (Self { stream, limit, frames, unread, passed: 0, input: input.clone() }, input)
    }

    /// The next bytes to pass on: up to the last frame of this turn, or all there are.
    fn pass(&mut self) -> Result<Bytes, Refused> {
        let (mut end, mut complete) = (0, 0);
        while end < self.unread.len() && self.passed + complete < TURN && !self.frames.closed {
            match self.frames.follow(&self.unread[end..], Some(self.limit)) {
                Ok((bytes, whole)) => {
                    end += bytes;
                    complete += u32::from(whole);
                }
                // What comes before it is handled first.
                Err(_) if complete > 0 => break,
                Err(refused) => return Err(refused),
            }
        }
        self.passed += complete;
        self.input.0.unhandled.set(complete);
        Ok(self.unread.split_to(end))
    }

    /// Skips frames up to the end of a close frame, or all there are.
    fn skip(&mut self) {
        while !self.unread.is_empty() && !self.frames.closed {
            // Without a limit nothing is refused.
            let Ok((bytes, _)) = self.frames.follow(&self.unread, None) else { return };
            drop(self.unread.split_to(bytes));
        }
    }
}

impl<S> Stream for Guard<S>
where
    S: Stream<Item = Result<Bytes, PayloadError>> + Unpin,
{
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        // The decoder asks again after each frame that it takes from what it has; and the writer has the
        // session go on after each time that it has handed over some of the answers.
        let unsent_answers = this.input.0.unsent_answers.get();
        if this.input.0.unhandled.get() > 0 || unsent_answers > UNSENT_ANSWERS {
            return Poll::Pending;
        }
        loop {
            if this.input.0.skips.get() && this.frames.closed {
                return Poll::Ready(None);
            }
            if this.passed >= TURN {
                this.passed = 0;
                this.input.0.turn_is_over.set(true);
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if this.unread.is_empty() {
                match this.stream.poll_next_unpin(cx) {
                    Poll::Ready(Some(Ok(chunk))) => this.unread = chunk,
                    // However the connection ends, it is no broken frame.
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
            return Poll::Ready(Some(this.pass().map_err(|refused| {
                this.input.0.refused.set(Some(refused));
                this.input.skip_to_close();
                PayloadError::Overflow
            })));
        }
    }
}

/// Why a frame is not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// It makes a message of more bytes than are allowed.
    TooBig,
    /// It has reserved bits, an unknown opcode, or no mask. The codec would not get past such a frame.
    Malformed,
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
    /// Whether a whole close frame has been seen.
    closed: bool,
}

impl Frames {
    /// Follows the bytes to the end of a frame, or to their own: how many they were, and whether a frame
    /// has ended. With a limit it fails at a header that is malformed or makes a message bigger than
    /// that, and can be asked again.
    fn follow(&mut self, bytes: &[u8], limit: Option<u64>) -> Result<(usize, bool), Refused> {
        let (mut at, read) = (0, self.read);
        while self.payload == 0 {
            let Some(byte) = bytes.get(at) else { return Ok((at, false)) };
            self.header[self.read] = *byte;
            self.read += 1;
            at += 1;
            // As soon as the codec could find it.
            if self.read == 2 && limit.is_some() && self.is_malformed() {
                self.read = read;
                return Err(Refused::Malformed);
            }
            if self.read < self.header_len() {
                continue;
            }
            self.read = 0;
            if let Err(refused) = self.begin(limit) {
                self.read = read;
                return Err(refused);
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
        first & RESERVED != 0 || second & MASKED == 0 || !OPCODES.contains(&(first & OPCODE))
    }

    /// Takes the frame whose header has been read.
    fn begin(&mut self, limit: Option<u64>) -> Result<(), Refused> {
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
            // At most 125 bytes by the RFC, which the codec enforces; no part of a message.
            if limit.is_some_and(|limit| payload > limit.max(125)) {
                return Err(Refused::TooBig);
            }
        } else {
            let continues = first & OPCODE == 0;
            let before = if continues { self.message } else { 0 };
            let message = before.saturating_add(payload);
            if limit.is_some_and(|limit| message > limit) {
                return Err(Refused::TooBig);
            }
            self.message = message;
        }
        self.payload = payload;
        Ok(())
    }

    /// The frame has ended.
    fn end(&mut self) -> bool {
        self.closed |= self.header[0] & OPCODE == CLOSE;
        true
    }
}

/// The bits of the first two bytes of a header.
const RESERVED: u8 = 0x70;
const OPCODE: u8 = 0x0f;
const MASKED: u8 = 0x80;
/// The opcodes that there are, and that of a close frame.
const OPCODES: [u8; 6] = [0x0, 0x1, 0x2, CLOSE, 0x9, 0xa];
const CLOSE: u8 = 0x8;

#[cfg(test)]
mod tests;
