//! When a session pings its client, and when the client has been silent for too long.

use std::time::Duration;

use actix::clock::{self, Instant};

/// Says when a session has to ping its client, and when it has to close, because the client was silent.
///
/// The registry judges by [`max_age`](crate::PresenceConfig::max_age) whether a connection in a room is there; this
/// is for the socket itself, also in no room. A client is pinged when nothing has come from it for the interval,
/// and client libraries answer pings by themselves. A task waits with [`next`](Self::next):
///
/// ```
/// use std::time::Duration;
///
/// use actix_presence::{IdleStep, IdleWatch};
///
/// # actix::System::new().block_on(async {
/// # tokio::time::pause(); // the minutes of this example take no time
/// let mut idle = IdleWatch::new(Duration::from_secs(20), Duration::from_secs(50));
/// assert_eq!(idle.next().await, IdleStep::Ping);
/// idle.heard(); // for every frame of the client, pongs included
/// assert_eq!(idle.next().await, IdleStep::Ping);
/// assert_eq!(idle.next().await, IdleStep::Ping);
/// assert_eq!(idle.next().await, IdleStep::Close);
/// # });
/// ```
///
/// An actor has itself woken:
///
/// ```
/// # use actix::prelude::*;
/// # use actix_presence::{IdleStep, IdleWatch};
/// # use actix_web_actors::ws;
/// struct Session {
///     idle: IdleWatch,
/// }
///
/// impl Session {
///     /// To be called once, in `started`.
///     fn watch(&self, ctx: &mut ws::WebsocketContext<Self>) {
///         ctx.run_later(self.idle.wait(), |session, ctx| {
///             match session.idle.step() {
///                 Some(IdleStep::Ping) => ctx.ping(b""),
///                 Some(IdleStep::Close) => return ctx.stop(),
///                 None => {}
///             }
///             session.watch(ctx);
///         });
///     }
/// }
/// # impl Actor for Session { type Context = ws::WebsocketContext<Self>; }
/// ```
#[derive(Clone, Debug)]
pub struct IdleWatch {
    ping_interval: Option<Duration>,
    idle_limit: Duration,
    heard: Instant,
    /// When the client was pinged last, if it was silent since.
    pinged: Option<Instant>,
}

/// What a session has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdleStep {
    /// Ping the client.
    Ping,
    /// Close: the client was silent for the idle limit.
    Close,
}

impl IdleWatch {
    /// A client that is pinged after so much silence, each time again, and closed after `idle_limit` of it. Without
    /// an interval it is not pinged; one of zero counts as a millisecond.
    #[must_use]
    pub fn new(ping_interval: impl Into<Option<Duration>>, idle_limit: Duration) -> Self {
        let ping_interval = ping_interval.into().map(|it| it.max(Duration::from_millis(1)));
        Self { ping_interval, idle_limit, heard: Instant::now(), pinged: None }
    }

    /// Notes a frame of the client.
    pub fn heard(&mut self) {
        (self.heard, self.pinged) = (Instant::now(), None);
    }

    /// How long until the next step, if the client stays silent.
    #[must_use]
    pub fn wait(&self) -> Duration {
        let close = self.idle_limit.saturating_sub(self.heard.elapsed());
        let since = self.pinged.unwrap_or(self.heard).elapsed();
        let ping = self.ping_interval.map(|interval| interval.saturating_sub(since));
        ping.map_or(close, |ping| ping.min(close))
    }

    /// What is due now, if anything; a ping counts as sent then.
    pub fn step(&mut self) -> Option<IdleStep> {
        if self.heard.elapsed() >= self.idle_limit {
            return Some(IdleStep::Close);
        }
        let since = self.pinged.unwrap_or(self.heard).elapsed();
        if self.ping_interval.is_none_or(|interval| since < interval) {
            return None;
        }
        self.pinged = Some(Instant::now());
        Some(IdleStep::Ping)
    }

    /// Waits for the next step. May be dropped while it waits, as `select!` does.
    pub async fn next(&mut self) -> IdleStep {
        loop {
            clock::sleep(self.wait()).await;
            if let Some(step) = self.step() {
                return step;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_pinged_again_and_again_and_closed_at_the_limit() {
        let (start, mut idle) = (Instant::now(), IdleWatch::new(secs(20), secs(50)));
        for (step, at) in [(IdleStep::Ping, 20), (IdleStep::Ping, 40), (IdleStep::Close, 50)] {
            assert_eq!((idle.next().await, start.elapsed().as_secs()), (step, at));
        }
        assert_eq!(idle.step(), Some(IdleStep::Close), "until it is heard");
        idle.heard();
        assert_eq!((idle.step(), idle.wait()), (None, secs(20)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_is_heard_is_not_pinged() {
        let mut idle = IdleWatch::new(secs(20), secs(50));
        for _ in 0..10 {
            tokio::time::advance(secs(19)).await;
            assert_eq!(idle.step(), None);
            idle.heard();
        }
        assert_eq!(idle.wait(), secs(20));
        let mut silent = IdleWatch::new(None, secs(50));
        assert_eq!((silent.wait(), silent.step()), (secs(50), None));
        assert_eq!(silent.next().await, IdleStep::Close);
    }
}
