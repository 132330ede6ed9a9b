//! When the writer may have the next batch.

use std::time::Duration;

use crate::store::retry_delay;

/// How long the database rests after a commit where nobody waits for it: to commit costs about as
/// much for one row as for a hundred, and a writer that takes each change by itself takes the time
/// of those who make them.
pub(crate) const REST: Duration = Duration::from_millis(50);

/// Whether it is time for a batch.
#[derive(Debug)]
pub(super) struct Pace {
    rest: Duration,
    resting: bool,
    failures: u32,
    waiting: bool,
}

impl Pace {
    /// With rests so long, or none.
    pub fn new(rest: Duration) -> Self {
        Self { rest, resting: false, failures: 0, waiting: false }
    }

    /// Whether a batch may begin; one that is pressing does not wait for the end of a rest.
    pub fn allows(&self, pressing: bool) -> bool {
        !self.waiting && (pressing || !self.resting)
    }

    /// Something was committed. Answers how long the rest is that begins now, if one does: there is
    /// one at a time.
    pub fn rest(&mut self) -> Option<Duration> {
        let begins = !self.rest.is_zero() && !self.resting;
        self.resting |= begins;
        begins.then_some(self.rest)
    }

    /// The rest is over.
    pub fn rested(&mut self) {
        self.resting = false;
    }

    /// The database is not to be asked before somebody says so.
    pub fn wait(&mut self) {
        self.waiting = true;
    }

    /// The same after a failure. Answers how long.
    pub fn wait_after_failure(&mut self) -> Duration {
        self.waiting = true;
        let pause = retry_delay(self.failures);
        self.failures += 1;
        pause
    }

    /// The database may be asked again.
    pub fn wait_no_longer(&mut self) {
        self.waiting = false;
    }

    /// The database works: the next failure is a first one.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use actix::prelude::*;
    use tokio::time::{Instant, sleep};

    use super::*;
    use crate::{
        handle::{PresenceConfig, Ties},
        messages::{Flush, Join},
        mirror::{Goodbye, PruneRoomRows, Renew, Write},
        model::{ConnectionId, Epoch, NodeName, RoomName},
        registry::Inherited,
        store::{Applied, Renewal},
        supervision::Supervisor,
        testing::{Heard, Probe},
    };

    /// A writer that notes when it was to write how many rows.
    struct Notes(Rc<RefCell<Vec<(Duration, usize)>>>, Instant);

    impl Actor for Notes {
        type Context = Context<Self>;
    }

    impl Handler<Write> for Notes {
        type Result = <Write as Message>::Result;
        fn handle(&mut self, write: Write, _: &mut Context<Self>) -> Self::Result {
            self.0.borrow_mut().push((self.1.elapsed(), write.batch.upserts.len()));
            Ok(Applied::default())
        }
    }

    macro_rules! answer {
        ($message:ty, $answer:expr) => {
            impl Handler<$message> for Notes {
                type Result = <$message as Message>::Result;
                fn handle(&mut self, _: $message, _: &mut Context<Self>) -> Self::Result {
                    Ok($answer)
                }
            }
        };
    }
    answer!(Renew, Renewal::Held);
    answer!(PruneRoomRows, 0);
    answer!(Goodbye, 0);

    fn paused() -> tokio::runtime::Runtime {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().start_paused(true).build().unwrap()
    }

    #[test]
    fn a_first_change_is_written_at_once_and_those_after_it_together_unless_somebody_waits() {
        actix::System::with_tokio_rt(paused).block_on(async {
            let notes = Rc::default();
            let writer = Notes(Rc::clone(&notes), Instant::now()).start().into();
            let node = NodeName::new("n").unwrap();
            let (inherited, incarnation) = (Inherited::default(), Epoch::new());
            let supervisor = Supervisor::default();
            let ties = Ties { node, writer, inherited, shared: None, incarnation, supervisor };
            let presence = PresenceConfig::new("").run(ties, &Arbiter::current()).unwrap();
            let registry = presence.registry();
            let (session, _heard) = Probe::<Heard>::new();
            let room = RoomName::new("lobby").unwrap();
            for _ in 0..8 {
                let (id, to) = (ConnectionId::new(), session.clone().recipient());
                registry.send(Join::new(room.clone(), id, to)).await.unwrap().unwrap();
                sleep(REST * 3 / 10).await;
            }
            registry.send(Flush).await.unwrap().unwrap();
            // A timer is a millisecond late.
            let tenths = |at: Duration| at.as_millis() * 10 / REST.as_millis();
            let notes: Vec<_> =
                notes.borrow().iter().map(|(at, rows)| (tenths(*at), *rows)).collect();
            assert_eq!(notes, [(0, 1), (10, 3), (20, 3), (24, 1)]);
        });
    }

    #[test]
    fn what_presses_does_not_wait_for_the_end_of_a_rest_but_for_the_database() {
        let mut pace = Pace::new(REST);
        assert!(pace.allows(false));
        assert_eq!(pace.rest(), Some(REST));
        assert_eq!(pace.rest(), None, "one at a time");
        assert!(!pace.allows(false) && pace.allows(true));
        pace.rested();
        assert!(pace.allows(false));
        assert_eq!(pace.wait_after_failure(), retry_delay(0));
        assert_eq!(pace.wait_after_failure(), 2 * retry_delay(0));
        assert!(!pace.allows(true));
        pace.wait_no_longer();
        assert!(pace.allows(false));
        assert_eq!(Pace::new(Duration::ZERO).rest(), None);
    }
}
