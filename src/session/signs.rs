//! Signs of life on their way to the registry: those of a thread's sessions together, because to wake
//! the registry costs more than what it does with one.

use std::{cell::RefCell, time::Duration};

use actix::prelude::*;

use crate::{
    messages::{Touch, Touches},
    registry::RoomRegistry,
};

/// How long a sign of life is on its way.
const UNDERWAY: Duration = Duration::from_millis(20);
/// How many go together at most.
const TOGETHER: usize = 1024;

thread_local! {
    static WAITING: RefCell<Vec<(Addr<RoomRegistry>, Vec<Touch>)>> = const { RefCell::new(Vec::new()) };
}

/// Has a sign of life told. One that meets a full mailbox is lost; the next one repairs it.
pub(super) fn tell(registry: &Addr<RoomRegistry>, touch: Touch) {
    WAITING.with_borrow_mut(|waiting| {
        if let Some((_, touches)) = waiting.iter_mut().find(|(to, _)| to == registry) {
            touches.push(touch);
            if touches.len() >= TOGETHER {
                let _ = registry.try_send(Touches(std::mem::take(touches)));
            }
        } else if Arbiter::try_current().is_some() {
            waiting.push((registry.clone(), vec![touch]));
            actix::spawn(async {
                actix::clock::sleep(UNDERWAY).await;
                go();
            });
        } else {
            // Nobody here would send it later.
            let _ = registry.try_send(touch);
        }
    });
}

/// Sends what waits on this thread: before anything that must not overtake it.
pub(super) fn go() {
    for (registry, touches) in WAITING.take() {
        if !touches.is_empty() {
            let _ = registry.try_send(Touches(touches));
        }
    }
}
