//! What a session writes: frames that wait until its socket takes them.
//!
//! A `WebsocketContext` encodes everything that it is given at once. So frames wait here instead, and at
//! most [`HANDED_OVER`] bytes of them, or one larger frame, are encoded at a time. Each frame keeps its
//! reservation of the connection's backlog until the HTTP dispatcher asks for more, which it does when
//! it has written what it had but for a part of its own buffer.

use std::{
    cell::RefCell,
    collections::VecDeque,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use actix_http::ws::{CloseReason, Codec, Message};
use actix_web::{
    Error,
    web::{Bytes, BytesMut},
};
use bytestring::ByteString;
use futures_util::Stream;
use smallvec::SmallVec;
use tokio_util::codec::Encoder;

use super::guard::Input;
use crate::{messages::Reservation, sockets::SocketKey};

/// How many bytes of frames are encoded at a time, unless one alone has more.
const HANDED_OVER: usize = 64 * 1024;
/// A queue that had more frames than this gives its memory back when it is empty.
const KEPT: usize = 8;

#[derive(Debug)]
struct Frame {
    message: Message,
    reservation: Option<Reservation>,
}

/// The frames that wait for a socket. A clone is the same queue.
#[derive(Clone, Debug)]
pub(super) struct Outgoing {
    frames: Rc<RefCell<VecDeque<Frame>>>,
    input: Input,
}

impl Outgoing {
    /// A queue of the answers to this input, and of what else is sent.
    pub fn new(input: Input) -> Self {
        Self { frames: Rc::default(), input }
    }

    pub fn is_empty(&self) -> bool {
        self.frames.borrow().is_empty()
    }

    /// Queues a text.
    pub fn text(&self, text: impl Into<ByteString>) {
        self.push(Message::Text(text.into()), None);
    }

    /// Queues the text of something that was delivered, with its part of the backlog.
    pub fn forward(&self, text: impl Into<ByteString>, reservation: Option<Reservation>) {
        self.push(Message::Text(text.into()), reservation);
    }

    pub fn ping(&self) {
        self.push(Message::Ping(Bytes::new()), None);
    }

    pub fn pong(&self, payload: Bytes) {
        self.push(Message::Pong(payload), None);
    }

    pub fn close(&self, reason: Option<CloseReason>) {
        self.push(Message::Close(reason), None);
    }

    /// Drops what waits.
    pub fn clear(&self) {
        for frame in self.frames.take() {
            self.taken(&frame);
        }
    }

    fn push(&self, message: Message, reservation: Option<Reservation>) {
        if reservation.is_none() {
            self.input.answers(size(&message));
        }
        self.frames.borrow_mut().push_back(Frame { message, reservation });
    }

    fn taken(&self, frame: &Frame) {
        if frame.reservation.is_none() {
            self.input.answered(size(&frame.message));
        }
    }

    /// Encodes the next frames. Gives their bytes, and their reservations.
    fn encode(&self, codec: &mut Codec) -> Result<(BytesMut, Reservations), Error> {
        let mut queue = self.frames.borrow_mut();
        let (mut bytes, mut reservations) = (BytesMut::new(), Reservations::new());
        while let Some(Frame { message, .. }) = queue.front() {
            if !bytes.is_empty() && bytes.len() + size(message) > HANDED_OVER {
                break;
            }
            let Some(frame) = queue.pop_front() else { break };
            self.taken(&frame);
            let Frame { message, reservation } = frame;
            codec.encode(message, &mut bytes)?;
            reservations.extend(reservation);
        }
        if queue.is_empty() && queue.capacity() > KEPT {
            *queue = VecDeque::new();
        }
        Ok((bytes, reservations))
    }
}

type Reservations = SmallVec<[Reservation; 2]>;

/// The bytes of a message without its header.
fn size(message: &Message) -> usize {
    match message {
        Message::Text(text) => text.len(),
        Message::Binary(bytes) | Message::Ping(bytes) | Message::Pong(bytes) => bytes.len(),
        _ => 0,
    }
}

/// The body of a session's response: runs the session, and gives what it has queued.
pub(super) struct Writer<S> {
    session: S,
    outgoing: Outgoing,
    codec: Codec,
    /// Those of the frames that were given last.
    given: Reservations,
    ended: bool,
    /// Where it is written to, if that is watched.
    socket: Option<SocketKey>,
}

impl<S> Writer<S> {
    pub fn new(session: S, outgoing: Outgoing, socket: Option<SocketKey>) -> Self {
        let (codec, given, ended) = (Codec::new(), Reservations::new(), false);
        Self { session, outgoing, codec, given, ended, socket }
    }

    /// Everything has been given: the connection ends when it has been written.
    fn end(&mut self) {
        if let Some(socket) = self.socket.take() {
            socket.end_reading();
        }
    }
}

impl<S> Stream for Writer<S>
where
    S: Stream<Item = Result<Bytes, Error>> + Unpin,
{
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        this.given.clear();
        if this.outgoing.input.end_turn() {
            // The dispatcher goes on asking while it has room, without a turn for other connections.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if !this.ended {
            match Pin::new(&mut this.session).poll_next(cx) {
                // Nothing is written through the context.
                Poll::Ready(Some(written)) => return Poll::Ready(Some(written)),
                Poll::Ready(None) => this.ended = true,
                Poll::Pending => {}
            }
        }
        let (bytes, reservations) = this.outgoing.encode(&mut this.codec)?;
        this.given = reservations;
        if !bytes.is_empty() {
            return Poll::Ready(Some(Ok(bytes.freeze())));
        }
        // The task yields by itself now.
        this.outgoing.input.end_turn();
        if !this.ended {
            return Poll::Pending;
        }
        this.end();
        Poll::Ready(None)
    }
}
