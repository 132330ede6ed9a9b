//! The handle of a running presence system.

use std::{ops::Deref, time::Duration};

use actix::prelude::*;

use super::PresenceClient;
use crate::{
    messages::{FlushError, GetStatus, Shutdown},
    model::NodeName,
    registry::{DrainObservers, Pruner},
    supervision::{Crashed, Supervisor},
};

/// How long the actors may take to stop after a shutdown.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// A handle of a running presence system: its [`client`](Self::client), and what ends it. A clone is a handle
/// of the same system.
///
/// It has the methods of [`PresenceClient`], too. Dropping a handle, or all of them, stops nothing: the actors go on until
/// [`shutdown`](Self::shutdown), or until the actix system ends.
#[derive(Clone, Debug)]
pub struct PresenceHandle {
    pub(super) client: PresenceClient,
    pub(super) pruner: Addr<Pruner>,
    pub(super) arbiter: ArbiterHandle,
    pub(super) node: NodeName,
    pub(super) supervisor: Supervisor,
}

impl PresenceHandle {
    /// A client of the registry, for handlers and whatever else is no actor.
    #[must_use]
    pub fn client(&self) -> PresenceClient {
        self.client.clone()
    }

    /// The pruner.
    #[must_use]
    pub fn pruner(&self) -> Addr<Pruner> {
        self.pruner.clone()
    }

    /// The name of this node.
    #[must_use]
    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// Waits until the system has ended: `Ok` once a [`shutdown`](Self::shutdown) has returned, an error
    /// as soon as a part of it has crashed.
    ///
    /// A crashed part is not restarted; end the process, so that its supervisor restarts it:
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use actix_presence::PresenceConfig;
    /// # actix::System::new().block_on(async {
    /// let presence = PresenceConfig::new("sqlite::memory:").start()?;
    /// let watched = presence.clone();
    /// actix::spawn(async move {
    ///     if let Err(error) = watched.closed().await {
    ///         eprintln!("{error}");
    ///         std::process::exit(70);
    ///     }
    /// });
    /// presence.shutdown(Duration::from_secs(5)).await?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// [`Crashed`] is the part.
    pub async fn closed(&self) -> Result<(), Crashed> {
        self.supervisor.closed().await
    }

    /// The part that has crashed, if one has; [`closed`](Self::closed) waits for that.
    #[must_use]
    pub fn crashed(&self) -> Option<Crashed> {
        self.supervisor.crashed()
    }

    /// How long the registry has not answered. It is asked every second, so up to a second is normal.
    #[must_use]
    pub fn registry_silence(&self) -> Duration {
        self.supervisor.silence()
    }

    /// Shuts the system down, see [`Shutdown`], within the timeout: when it returns, the rows are written and the
    /// observers have handled all events, the leaves of the shutdown among them.
    ///
    /// Rows are first: while an observer takes its time, they are written already. Calls on several clones are one
    /// shutdown, which ends with the first timeout that is over.
    ///
    /// # Errors
    ///
    /// [`FlushError`] if the rows could not be written in time, and the next start removes them; or if they are
    /// written, and observers had not handled all events in time ([`FlushError::Unobserved`]).
    pub async fn shutdown(self, timeout: Duration) -> Result<(), FlushError> {
        let mut written = None;
        let in_order = async {
            written = Some(self.registry().send(Shutdown).await);
            let observed = self.registry().send(DrainObservers).await;
            // The last report of the gauges.
            let _ = self.registry().send(GetStatus).await;
            observed
        };
        let observed = matches!(tokio::time::timeout(timeout, in_order).await, Ok(Ok(())));
        self.supervisor.stopping();
        self.arbiter.stop();
        // The registry must not be reachable any more when this returns.
        let stopped = async {
            while self.registry().connected() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        if tokio::time::timeout(STOP_TIMEOUT, stopped).await.is_err() {
            tracing::warn!("the registry did not stop in time: it stops when it is idle");
        }
        self.supervisor.stopped();
        match written {
            Some(Ok(Ok(()))) if !observed => Err(FlushError::Unobserved),
            Some(Ok(written)) => written,
            Some(Err(_)) => Err(FlushError::Closed),
            None => Err(FlushError::Timeout),
        }
    }
}

impl Deref for PresenceHandle {
    type Target = PresenceClient;

    fn deref(&self) -> &PresenceClient {
        &self.client
    }
}
