//! The write queue of a session.
//!
//! A `WebsocketContext` encodes everything at once. So frames wait here, and at most [`CHUNK_BYTES`] of
//! them, or one larger frame, are encoded at a time. Each frame keeps its reservation of the backlog until
//! the HTTP dispatcher polls for more, which it does when it has written most of its own buffer.

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

/// How many bytes of frames are encoded at a time, unless one frame has more.
const CHUNK_BYTES: usize = 64 * 1024;
/// An empty queue with a larger capacity gives its memory back.
const KEPT_CAPACITY: usize = 8;

#[derive(Debug)]
struct QueuedFrame {
    message: Message,
    reservation: Option<Reservation>,
}

/// The write queue of a session. A clone is the same queue.
#[derive(Clone, Debug)]
pub(super) struct WriteQueue {
    frames: Rc<RefCell<VecDeque<QueuedFrame>>>,
    input: Input,
}

impl WriteQueue {
    /// An empty queue, whose replies hold back this input.
    pub fn new(input: Input) -> Self {
        Self { frames: Rc::default(), input }
    }

    pub fn is_empty(&self) -> bool {
        self.frames.borrow().is_empty()
    }

    pub fn text(&self, text: impl Into<ByteString>) {
        self.push(Message::Text(text.into()), None);
    }

    /// Queues a delivered text, with its part of the backlog.
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

    pub fn clear(&self) {
        for frame in self.frames.take() {
            self.release(&frame);
        }
    }

    fn push(&self, message: Message, reservation: Option<Reservation>) {
        if reservation.is_none() {
            self.input.hold(size(&message));
        }
        self.frames.borrow_mut().push_back(QueuedFrame { message, reservation });
    }

    fn release(&self, frame: &QueuedFrame) {
        if frame.reservation.is_none() {
            self.input.release(size(&frame.message));
        }
    }

    /// Encodes the next frames, and returns their bytes and reservations.
    fn encode(&self, codec: &mut Codec) -> Result<(BytesMut, Reservations), Error> {
        let mut queue = self.frames.borrow_mut();
        let (mut bytes, mut reservations) = (BytesMut::new(), Reservations::new());
        while let Some(QueuedFrame { message, .. }) = queue.front() {
            if !bytes.is_empty() && bytes.len() + size(message) > CHUNK_BYTES {
                break;
            }
            let Some(frame) = queue.pop_front() else { break };
            self.release(&frame);
            let QueuedFrame { message, reservation } = frame;
            codec.encode(message, &mut bytes)?;
            reservations.extend(reservation);
        }
        if queue.is_empty() && queue.capacity() > KEPT_CAPACITY {
            *queue = VecDeque::new();
        }
        Ok((bytes, reservations))
    }
}

type Reservations = SmallVec<[Reservation; 2]>;

fn size(message: &Message) -> usize {
    match message {
        Message::Text(text) => text.len(),
        Message::Binary(bytes) | Message::Ping(bytes) | Message::Pong(bytes) => bytes.len(),
        _ => 0,
    }
}

/// The body of a session's response: runs the session, and writes its queue.
pub(super) struct SessionBody<S> {
    session: S,
    outgoing: WriteQueue,
    codec: Codec,
    /// Of the frames that were returned last.
    writing: Reservations,
    ended: bool,
    socket: Option<SocketKey>,
}

impl<S> SessionBody<S> {
    pub fn new(session: S, outgoing: WriteQueue, socket: Option<SocketKey>) -> Self {
        let (codec, writing, ended) = (Codec::new(), Reservations::new(), false);
        Self { session, outgoing, codec, writing, ended, socket }
    }
}

impl<S> Stream for SessionBody<S>
where
    S: Stream<Item = Result<Bytes, Error>> + Unpin,
{
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        this.writing.clear();
        if this.outgoing.input.end_turn() {
            // Otherwise the HTTP dispatcher polls while its buffer has room, and other connections starve.
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
        this.writing = reservations;
        if !bytes.is_empty() {
            return Poll::Ready(Some(Ok(bytes.freeze())));
        }
        // The task yields anyway.
        this.outgoing.input.end_turn();
        if !this.ended {
            return Poll::Pending;
        }
        // The connection ends when everything is written.
        if let Some(socket) = this.socket.take() {
            socket.end_reading();
        }
        Poll::Ready(None)
    }
}
