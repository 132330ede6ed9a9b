//! One connection: what it waits for, since when, and when it has waited too long.

use std::{cell::Cell, time::Duration};

use actix_presence::sockets::{Progress, SocketKey};

/// How long a client may be silent within a head or a body, in seconds.
const MAX_SILENCE: u32 = 10;
/// How long a head or a body may take in all.
const MAX_REQUEST: u32 = 30;
/// How long the client may acknowledge nothing of a response.
const MAX_UNREAD: u32 = 30;
/// How much longer than `--keep-alive` a connection may be idle. Actix-web closes idle connections at that
/// time, unless it has read the first bytes of a next request.
const IDLE_MARGIN: Duration = Duration::from_secs(15);
/// How often the kernel is asked about the progress of a connection.
const PROGRESS_INTERVAL: u32 = 4;
/// An empty line after a body does not begin a request (RFC 9112, section 2.2).
const EMPTY_LINE_LEN: u64 = 2;

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It waits for the next request, or for the rest of its head.
    Head,
    /// It waits for the next part of the body.
    Body,
    /// The server handles the request.
    Service,
    /// A response is sent that is complete.
    Response,
    /// A response is sent that the server still writes: it may wait for either side.
    Stream,
    /// The response is sent, but the body of the request has not ended.
    UnreadBody,
    WebSocket,
    /// It is shut down, but actix-web has not dropped it yet.
    Ended,
}

impl Phase {
    /// Whether the connection waits for its client.
    pub fn waits(self) -> bool {
        matches!(self, Self::Head | Self::Body | Self::Response | Self::UnreadBody)
    }
}

/// Why the server ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EndReason {
    HalfRequest,
    UnreadResponse,
    Crowded,
}

impl EndReason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HalfRequest => "half_request",
            Self::UnreadResponse => "unread_response",
            Self::Crowded => "crowded",
        }
    }
}

/// Times are seconds of the table's clock.
#[derive(Debug)]
pub(super) struct Connection {
    pub key: SocketKey,
    /// Unique in its worker.
    pub number: u64,
    pub phase: Cell<Phase>,
    /// When it began to wait; for a body, when the request began.
    pub since: Cell<u32>,
    /// When bytes of the body or the response last moved.
    pub progress: Cell<u32>,
    /// Bytes received until the last request had been read completely.
    received: Cell<u64>,
    /// Bytes of responses that the client had acknowledged when the kernel was last asked.
    acknowledged: Cell<u64>,
    /// When the beginning of a head was first seen.
    half_head: Cell<Option<u32>>,
    /// Whether the request has a body that has not ended.
    pub body_open: Cell<bool>,
    /// Whether it is counted as a WebSocket.
    pub websocket: Cell<bool>,
}

/// For how many seconds a connection may be idle.
pub(super) fn max_idle(keep_alive: Duration) -> u32 {
    u32::try_from((keep_alive + IDLE_MARGIN).as_secs()).unwrap_or(u32::MAX)
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

    /// The request has been read completely: later bytes belong to the next one.
    pub fn read_to_end(&self) {
        self.body_open.set(false);
        if let Some(progress) = self.key.progress() {
            self.received.set(progress.received);
        }
    }

    /// Why it should be ended now, if it should; `look` asks the kernel for its progress.
    pub fn overdue(
        &self,
        now: u32,
        max_idle: u32,
        look: impl FnOnce() -> Option<Progress>,
    ) -> Option<EndReason> {
        let silent = now.wrapping_sub(self.progress.get()) > MAX_SILENCE;
        let waited = now.wrapping_sub(self.since.get());
        let looks = waited > 1
            && u64::from(now).wrapping_add(self.number) % u64::from(PROGRESS_INTERVAL) == 0;
        match self.phase.get() {
            Phase::Body => (silent || waited > MAX_REQUEST).then_some(EndReason::HalfRequest),
            Phase::UnreadBody => (waited > MAX_SILENCE).then_some(EndReason::HalfRequest),
            Phase::Head if looks => self.head_overdue(now, waited > max_idle, look()),
            Phase::Response | Phase::Stream if looks => self.unread(now, &look()?),
            _ => None,
        }
    }

    fn head_overdue(&self, now: u32, idle: bool, progress: Option<Progress>) -> Option<EndReason> {
        let idle = idle.then_some(EndReason::HalfRequest);
        let Some(progress) = progress else { return idle };
        // The end of the last response is still in the buffer of the socket.
        if progress.unsent {
            return self.unread(now, &progress);
        }
        if progress.received <= self.received.get() + EMPTY_LINE_LEN {
            return idle;
        }
        let since = self.half_head.get().unwrap_or(now);
        self.half_head.set(Some(since));
        let overdue = progress.silence >= Duration::from_secs(MAX_SILENCE.into())
            || now.wrapping_sub(since) > MAX_REQUEST;
        overdue.then_some(EndReason::HalfRequest)
    }

    fn unread(&self, now: u32, progress: &Progress) -> Option<EndReason> {
        let before = self.acknowledged.replace(progress.acknowledged);
        if !progress.unsent || progress.acknowledged != before {
            self.progress.set(now);
            return None;
        }
        let since = now.wrapping_sub(self.progress.get());
        (since > MAX_UNREAD).then_some(EndReason::UnreadResponse)
    }
}

#[cfg(test)]
mod tests {
    use actix_web::rt::net::{TcpListener, TcpStream};

    use super::*;

    const MAX_IDLE: u32 = 20;

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

    /// In which second it is ended, and why.
    fn ended(
        connection: &Connection,
        look: impl Fn(u32) -> Progress,
    ) -> Option<(u32, Option<EndReason>)> {
        let why = |now| connection.overdue(now, MAX_IDLE, || Some(look(now)));
        (1..=200).map(|now| (now, why(now))).find(|(_, why)| why.is_some())
    }

    fn half(at: u32) -> Option<(u32, Option<EndReason>)> {
        Some((at, Some(EndReason::HalfRequest)))
    }

    #[actix_web::test]
    async fn a_silent_half_head_ends_after_ten_seconds_and_a_slow_one_after_thirty() {
        let one = connection().await;
        let stopped = |now: u32| progress(100, u64::from(now), 0, false);
        assert_eq!(ended(&one, stopped), half(12), "asked every fourth second");
        let dripped = ended(&connection().await, |now| progress(now.into(), 1, 0, false));
        assert_eq!(dripped, half(36));
    }

    #[actix_web::test]
    async fn an_idle_connection_is_left_to_keep_alive_even_after_an_empty_line() {
        for received in [0, EMPTY_LINE_LEN] {
            let idle = |now: u32| progress(received, now.into(), 0, false);
            let (end, _) = ended(&connection().await, idle).unwrap();
            assert!(end > MAX_IDLE && end <= MAX_IDLE + PROGRESS_INTERVAL, "{end}");
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
            one.overdue(now, MAX_IDLE, || None).map(|why| (now, Some(why)))
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
            // The kernel is first asked four seconds after the first bytes were sent.
            let stuck = ended(&one, |_| progress(0, 0, 1000, true));
            assert_eq!(stuck, Some((36, Some(EndReason::UnreadResponse))), "{phase:?}");
        }
        for phase in [Phase::Response, Phase::Stream] {
            let one = connection().await;
            one.phase.set(phase);
            assert_eq!(ended(&one, |now| progress(0, 0, now.into(), true)), None, "slow");
            assert_eq!(ended(&one, |_| progress(0, 0, 1000, false)), None, "nothing to send");
        }
    }

    #[actix_web::test]
    async fn connections_that_wait_for_the_server_and_websockets_are_not_ended() {
        for phase in [Phase::Service, Phase::WebSocket, Phase::Ended] {
            let one = connection().await;
            one.phase.set(phase);
            assert_eq!(ended(&one, |_| progress(1000, 1000, 0, true)), None);
        }
    }

    #[test]
    fn every_reason_is_known_to_the_metrics() {
        for reason in [EndReason::HalfRequest, EndReason::UnreadResponse, EndReason::Crowded] {
            assert!(crate::metrics::END_REASONS.contains(&reason.as_str()), "{reason:?}");
        }
    }
}
