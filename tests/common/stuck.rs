//! Threads that stand still, and actors that block theirs, as sessions and observers with a fault do.

use std::sync::mpsc::{Receiver, Sender, channel};

use actix::prelude::*;

/// A session or an observer that is stuck in its handler until it is let go.
pub struct Stuck<M: Send + 'static> {
    entered: Sender<M>,
    go: Receiver<()>,
}

impl<M: Send + Unpin + 'static> Actor for Stuck<M> {
    type Context = Context<Self>;
}

impl<M: Message<Result = ()> + Send + Unpin + 'static> Handler<M> for Stuck<M> {
    type Result = ();
    fn handle(&mut self, msg: M, _: &mut Context<Self>) {
        // The test may have ended.
        let _ = self.entered.send(msg);
        let _ = self.go.recv();
    }
}

/// Starts a stuck actor on a thread of its own. Returns it, what enters its handler, and what lets it go: once
/// for each unit sent, and for good when dropped.
pub fn stuck<M: Message<Result = ()> + Send + Unpin + 'static>()
-> (Addr<Stuck<M>>, Receiver<M>, Sender<()>) {
    stuck_on(&Arbiter::new())
}

/// As [`stuck`], on the thread of this arbiter.
pub fn stuck_on<M: Message<Result = ()> + Send + Unpin + 'static>(
    arbiter: &Arbiter,
) -> (Addr<Stuck<M>>, Receiver<M>, Sender<()>) {
    let ((entered, seen), (let_go, go)) = (channel(), channel());
    let start = move |_: &mut Context<Stuck<M>>| Stuck { entered, go };
    (Stuck::start_in_arbiter(&arbiter.handle(), start), seen, let_go)
}

/// Has a thread stand still until what this answers is dropped.
pub async fn stall(thread: &ArbiterHandle) -> Sender<()> {
    let (let_go, go) = channel();
    let (stands, still) = tokio::sync::oneshot::channel();
    assert!(thread.spawn_fn(move || {
        _ = stands.send(());
        _ = go.recv();
    }));
    still.await.unwrap();
    let_go
}
