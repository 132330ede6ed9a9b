//! Lets a session read no faster than it handles frames, and refuses a message on the header of the
//! frame that makes it too big.
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
    too_big: Cell<bool>,
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

    /// Whether a message was too big.
    pub fn is_too_big(&self) -> bool {
        self.0.too_big.get()
    }

    /// Ends a turn that is over, so that another may begin. Says whether one was.
    pub fn end_turn(&self) -> bool {
        self.0.turn_is_over.take()
    }
}

/// A stream of a socket's bytes that passes on a few frames at a time. It fails at a message of more
/// than `limit` bytes, and swallows what comes after, so that the peer reads the close frame before its
/// connection ends. After a close frame nothing is passed on.
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
    fn pass(&mut self) -> Result<Bytes, TooBig> {
        let (mut end, mut complete) = (0, 0);
        while end < self.unread.len() && self.passed + complete < TURN && !self.frames.closed {
            match self.frames.follow(&self.unread[end..], self.limit) {
                Ok((bytes, whole)) => {
                    end += bytes;
                    complete += u32::from(whole);
                }
                // What comes before it is handled first.
                Err(TooBig) if complete > 0 => break,
                Err(TooBig) => return Err(TooBig),
            }
        }
        self.passed += complete;
        self.input.0.unhandled.set(complete);
        Ok(self.unread.split_to(end))
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
            if this.input.is_too_big() || this.frames.closed {
                this.unread.clear();
                continue;
            }
            return Poll::Ready(Some(this.pass().map_err(|TooBig| {
                this.input.0.too_big.set(true);
                PayloadError::Overflow
            })));
        }
    }
}

/// A message has more bytes than are allowed.
#[derive(Debug, PartialEq, Eq)]
struct TooBig;

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
    /// has ended. Fails at a header that makes a message bigger than `limit`, and can be asked again.
    fn follow(&mut self, bytes: &[u8], limit: u64) -> Result<(usize, bool), TooBig> {
        let (mut at, read) = (0, self.read);
        while self.payload == 0 {
            let Some(byte) = bytes.get(at) else { return Ok((at, false)) };
            self.header[self.read] = *byte;
            self.read += 1;
            at += 1;
            if self.read < self.header_len() {
                continue;
            }
            self.read = 0;
            if let Err(too_big) = self.begin(limit) {
                self.read = read;
                return Err(too_big);
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
        let mask = if self.header[1] & 0x80 == 0 { 0 } else { 4 };
        mask + match self.header[1] & 0x7f {
            126 => 4,
            127 => 10,
            _ => 2,
        }
    }

    /// Takes the frame whose header has been read.
    fn begin(&mut self, limit: u64) -> Result<(), TooBig> {
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
            if payload > limit.max(125) {
                return Err(TooBig);
            }
        } else {
            let continues = first & 0x0f == 0;
            let before = if continues { self.message } else { 0 };
            let message = before.saturating_add(payload);
            if message > limit {
                return Err(TooBig);
            }
            self.message = message;
        }
        self.payload = payload;
        Ok(())
    }

    /// The frame has ended.
    fn end(&mut self) -> bool {
        self.closed |= self.header[0] & 0x0f == CLOSE;
        true
    }
}

/// The opcode of a close frame.
const CLOSE: u8 = 0x8;

#[cfg(test)]
mod tests {
    use futures_util::{stream, task::noop_waker};

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
        bytes.chunks(chunk).all(|mut bytes| {
            while !bytes.is_empty() {
                match frames.follow(bytes, limit) {
                    Ok((followed, _)) => bytes = &bytes[followed..],
                    Err(TooBig) => return false,
                }
            }
            true
        })
    }

    type Chunks = stream::Iter<std::vec::IntoIter<Result<Bytes, PayloadError>>>;

    /// A guard of these bytes in chunks.
    fn guard(limit: usize, chunk: usize, bytes: &[u8]) -> (Guard<Chunks>, Input) {
        let chunks = bytes.chunks(chunk).map(|chunk| Ok(Bytes::copy_from_slice(chunk)));
        Guard::new(stream::iter(chunks.collect::<Vec<_>>()), limit)
    }

    fn poll(guard: &mut Guard<Chunks>) -> Poll<Option<Result<Bytes, PayloadError>>> {
        let waker = noop_waker();
        guard.poll_next_unpin(&mut Context::from_waker(&waker))
    }

    /// How many frames are passed on until the next pause, when each is handled at once, and their bytes.
    fn turn(guard: &mut Guard<Chunks>, input: &Input) -> (u32, Vec<u8>) {
        let (mut frames, mut passed) = (0, Vec::new());
        while let Poll::Ready(Some(Ok(bytes))) = poll(guard) {
            passed.extend(bytes);
            frames += input.0.unhandled.get();
            while input.0.unhandled.get() > 0 {
                assert!(
                    poll(guard).is_pending(),
                    "while frames are unhandled nothing is passed on"
                );
                input.handled();
            }
        }
        (frames, passed)
    }

    #[test]
    fn no_more_frames_pass_in_one_turn_than_leave_time_for_others() {
        for chunk in [3, 100, 100_000] {
            let flood: Vec<u8> = (0..100).flat_map(|n| frame(0x81, n)).collect();
            let (mut guard, input) = guard(65_536, chunk, &flood);
            let (mut turns, mut passed) = (0, Vec::new());
            while passed.len() < flood.len() {
                let (frames, bytes) = turn(&mut guard, &input);
                assert!((1..=TURN).contains(&frames));
                assert_eq!(input.end_turn(), passed.len() + bytes.len() < flood.len());
                turns += 1;
                passed.extend(bytes);
            }
            assert_eq!((turns, passed == flood), (100_u32.div_ceil(TURN), true));
        }
    }

    #[test]
    fn nothing_passes_while_many_answers_wait_for_the_socket() {
        let (mut guard, input) = guard(65_536, 100_000, &frame(0x81, 3).repeat(20));
        input.answers(UNSENT_ANSWERS + 1);
        assert!(poll(&mut guard).is_pending());
        input.answered(1);
        assert_eq!(turn(&mut guard, &input).0, TURN);
    }

    #[test]
    fn what_comes_before_a_message_that_is_too_big_is_passed_on() {
        let bytes = [frame(0x81, 10), frame(0x81, 20), frame(0x81, 101), frame(0x81, 1)].concat();
        for chunk in [1, 5, 36, 37, 1000] {
            let (mut guard, input) = guard(100, chunk, &bytes);
            let (frames, passed) = turn(&mut guard, &input);
            assert_eq!(frames, 2);
            assert!(passed.starts_with(&bytes[..16 + 26]) && passed.len() < 16 + 26 + 8);
            assert!(input.is_too_big());
            assert!(matches!(poll(&mut guard), Poll::Ready(None)), "the rest is swallowed");
        }
    }

    #[test]
    fn after_a_close_frame_nothing_is_passed_on() {
        let close = frame(0x88, 2);
        let bytes = [close.clone(), frame(0x81, 3), frame(0x81, 3)].concat();
        for chunk in [1, 7, 1000] {
            let (mut guard, input) = guard(100, chunk, &bytes);
            assert_eq!(turn(&mut guard, &input), (1, close.clone()));
        }
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
