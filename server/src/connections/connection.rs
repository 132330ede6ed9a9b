//! One connection: what it waits for, since when, and when it has waited too long.

use std::{cell::Cell, time::Duration};

use actix_presence::sockets::{Progress, SocketKey};

/// How long a client may be silent within a head or a body, in seconds.
const SILENCE: u32 = 10;
/// How long a head or a body may take in all.
const REQUEST: u32 = 30;
/// How long a response may be sent without progress.
const UNREAD: u32 = 30;
/// How long a connection may be idle. Actix-web closes idle connections earlier, except where it has
/// taken the beginning of a next request for one.
const IDLE: u32 = super::middleware::KEEP_ALIVE.as_secs() as u32 + 15;
/// The kernel is asked about a connection every so many seconds.
const LOOK: u32 = 4;
/// An empty line after a body is no request (RFC 9112, section 2.2).
const EMPTY_LINE: u64 = 2;

/// What a connection is doing. Times are seconds of the table's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The next request is awaited, or the rest of its head.
    Head,
    /// The server waits for the next part of the body.
    Body,
    /// The server works on the request.
    Service,
    /// A whole response is sent.
    Response,
    /// A response is sent that the server is still writing: it may wait for either side.
    Stream,
    /// The request is answered, but its body has not ended.
    UnreadBody,
    WebSocket,
    /// Shut down, and not yet dropped by actix-web.
    Ended,
}

impl Phase {
    /// Whether the connection waits for its client.
    pub fn waits(self) -> bool {
        matches!(self, Self::Head | Self::Body | Self::Response | Self::UnreadBody)
    }
}

/// Why a connection is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    HalfRequest,
    UnreadResponse,
    Crowded,
}

impl Reason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HalfRequest => "half_request",
            Self::UnreadResponse => "unread_response",
            Self::Crowded => "crowded",
        }
    }
}

#[derive(Debug)]
pub(super) struct Connection {
    pub key: SocketKey,
    /// In the table of its worker.
    pub number: u64,
    pub phase: Cell<Phase>,
    /// Since when it waits. For a body: since the request began.
    pub since: Cell<u32>,
    /// When bytes of the body or the response last moved.
    pub progress: Cell<u32>,
    /// Bytes received when the last request had been read to its end.
    received: Cell<u64>,
    /// Bytes of responses that had been acknowledged at the last look.
    acknowledged: Cell<u64>,
    /// When the beginning of a head was first seen.
    half_head: Cell<Option<u32>>,
    /// Whether the request has a body that has not ended.
    pub body_open: Cell<bool>,
    /// Whether it counts as a WebSocket.
    pub websocket: Cell<bool>,
}

impl Connection {
    pub fn new(key: SocketKey, number: u64, now: u32) -> Self {
        Self {
            key,
            number,
            phase: Cell::new(Phase::Head),
            since: Cell::new(now),
            progress: Cell::new(now),
            received: Cell::new(0),
            acknowledged: Cell::new(0),
            half_head: Cell::new(None),
            body_open: Cell::new(false),
            websocket: Cell::new(false),
        }
    }

    /// A head has been read.
    pub fn begin(&self, now: u32) {
        self.since.set(now);
        self.progress.set(now);
        self.half_head.set(None);
        self.body_open.set(false);
    }

    /// The request has been read to its end: what comes now belongs to the next one.
    pub fn read_to_end(&self) {
        self.body_open.set(false);
        if let Some(progress) = self.key.progress() {
            self.received.set(progress.received);
        }
    }

    /// Why it is to be ended now, if it is.
    pub fn overdue(&self, now: u32, look: impl FnOnce() -> Option<Progress>) -> Option<Reason> {
        let silent = now.wrapping_sub(self.progress.get()) > SILENCE;
        let waited = now.wrapping_sub(self.since.get());
        let looks = waited > 1 && u64::from(now).wrapping_add(self.number) % u64::from(LOOK) == 0;
        match self.phase.get() {
            Phase::Body => (silent || waited > REQUEST).then_some(Reason::HalfRequest),
            Phase::UnreadBody => (waited > SILENCE).then_some(Reason::HalfRequest),
            Phase::Head if looks => self.head_overdue(now, waited, look()),
            Phase::Response | Phase::Stream if looks => self.unread(now, &look()?),
            _ => None,
        }
    }

    fn head_overdue(&self, now: u32, waited: u32, progress: Option<Progress>) -> Option<Reason> {
        let idle = (waited > IDLE).then_some(Reason::HalfRequest);
        let Some(progress) = progress else { return idle };
        // The end of the last response is in the socket's buffer still.
        if progress.unsent {
            return self.unread(now, &progress);
        }
        if progress.received <= self.received.get() + EMPTY_LINE {
            return idle;
        }
        let since = self.half_head.get().unwrap_or(now);
        self.half_head.set(Some(since));
        let overdue = progress.silence >= Duration::from_secs(SILENCE.into())
            || now.wrapping_sub(since) > REQUEST;
        overdue.then_some(Reason::HalfRequest)
    }

    fn unread(&self, now: u32, progress: &Progress) -> Option<Reason> {
        let before = self.acknowledged.replace(progress.acknowledged);
        if !progress.unsent || progress.acknowledged != before {
            self.progress.set(now);
            return None;
        }
        let since = now.wrapping_sub(self.progress.get());
        (since > UNREAD).then_some(Reason::UnreadResponse)
    }
}

#[cfg(test)]
mod tests {
    use actix_web::rt::net::{TcpListener, TcpStream};

    use super::*;

    async fn connection() -> Connection {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut extensions = actix_web::dev::Extensions::new();
        actix_presence::sockets::watch_socket(&stream, &mut extensions);
        Connection::new(actix_presence::sockets::key_in(&extensions).unwrap(), 0, 0)
    }

    fn progress(received: u64, silence: u64, acknowledged: u64, unsent: bool) -> Progress {
        let silence = Duration::from_secs(silence);
        Progress { received, silence, acknowledged, unsent }
    }

    /// The second in which it is ended, and why.
    fn ended(
        connection: &Connection,
        look: impl Fn(u32) -> Progress,
    ) -> Option<(u32, Option<Reason>)> {
        let why = |now| connection.overdue(now, || Some(look(now)));
        (1..=200).map(|now| (now, why(now))).find(|(_, why)| why.is_some())
    }

    fn half(at: u32) -> Option<(u32, Option<Reason>)> {
        Some((at, Some(Reason::HalfRequest)))
    }

    #[actix_web::test]
    async fn a_head_that_stops_ends_after_ten_seconds_and_one_that_goes_on_after_thirty() {
        let one = connection().await;
        let stopped = |now: u32| progress(100, u64::from(now), 0, false);
        assert_eq!(ended(&one, stopped), half(12), "looked at every fourth second");
        let dripped = ended(&connection().await, |now| progress(now.into(), 1, 0, false));
        assert_eq!(dripped, half(36));
    }

    #[actix_web::test]
    async fn an_idle_connection_is_left_to_keep_alive_also_after_an_empty_line() {
        for received in [0, EMPTY_LINE] {
            let idle = |now: u32| progress(received, now.into(), 0, false);
            let (end, _) = ended(&connection().await, idle).unwrap();
            assert!(end > IDLE && end <= IDLE + LOOK, "{end}");
        }
    }

    #[actix_web::test]
    async fn a_body_ends_after_ten_seconds_of_silence_and_thirty_in_all() {
        let nothing = |_| progress(0, 0, 0, false);
        let one = connection().await;
        one.phase.set(Phase::Body);
        assert_eq!(ended(&one, nothing), half(11));
        let one = connection().await;
        one.phase.set(Phase::Body);
        let dripped = |now| {
            one.progress.set(now);
            one.overdue(now, || None).map(|why| (now, Some(why)))
        };
        assert_eq!((1..100).find_map(dripped), half(31));
        let one = connection().await;
        one.phase.set(Phase::UnreadBody);
        assert_eq!(ended(&one, nothing), half(11));
    }

    #[actix_web::test]
    async fn a_response_ends_after_thirty_seconds_without_progress() {
        for phase in [Phase::Response, Phase::Stream, Phase::Head] {
            let one = connection().await;
            one.phase.set(phase);
            // The first look sees the first bytes, four seconds later than they went.
            let stuck = ended(&one, |_| progress(0, 0, 1000, true));
            assert_eq!(stuck, Some((36, Some(Reason::UnreadResponse))), "{phase:?}");
        }
        for phase in [Phase::Response, Phase::Stream] {
            let one = connection().await;
            one.phase.set(phase);
            assert_eq!(ended(&one, |now| progress(0, 0, now.into(), true)), None, "slow");
            assert_eq!(ended(&one, |_| progress(0, 0, 1000, false)), None, "nothing to send");
        }
    }

    #[actix_web::test]
    async fn who_waits_for_the_server_and_who_carries_a_websocket_is_not_ended() {
        for phase in [Phase::Service, Phase::WebSocket, Phase::Ended] {
            let one = connection().await;
            one.phase.set(phase);
            assert_eq!(ended(&one, |_| progress(1000, 1000, 0, true)), None);
        }
    }
}
