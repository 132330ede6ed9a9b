//! Sessions on threads of their own.

use std::sync::Arc;

use actix::prelude::*;
use actix_presence::{
    testing::{Heard, Probe, Seen},
    *,
};
use bytestring::ByteString;

use crate::common::{Harness, dispatched, on, room, secs};

/// Where a session runs.
#[derive(Clone)]
pub enum Place {
    Thread(ArbiterHandle),
    /// On the test's thread, where its joins are made by hand.
    Here,
    /// The same, but its joins are made where no arbiter runs, so the registry's thread delivers.
    NoArbiter,
}

/// A session.
pub struct Guest {
    pub place: Place,
    pub dialect: Dialect,
    pub connection: Arc<Connection>,
    addr: Addr<Probe<Heard>>,
    heard: Seen<Heard>,
}

impl Guest {
    pub async fn new(t: &Harness, place: Place, dialect: Dialect) -> Self {
        let (addr, heard) = match &place {
            Place::Thread(thread) => on(thread, Probe::new).await,
            Place::Here | Place::NoArbiter => Probe::new(),
        };
        let connection = Arc::new(Connection::new(t.registry.clone()));
        Self { place, dialect, connection, addr, heard }
    }

    pub fn id(&self) -> ConnectionId {
        self.connection.id()
    }

    /// So many joins, made where its session runs.
    pub async fn joins(&self, name: &str, count: usize) -> Vec<Join> {
        let (name, dialect, addr) = (room(name), self.dialect, self.addr.clone());
        let (connection, id) = (self.connection.clone(), self.id());
        let by_hand = {
            let (name, addr) = (name.clone(), addr.clone());
            move || Join::new(name.clone(), id, addr.clone().recipient()).dialect(dialect)
        };
        match &self.place {
            Place::Thread(thread) => {
                let join = move || connection.join(name.clone(), addr.clone()).dialect(dialect);
                on(thread, move || (0..count).map(|_| join()).collect()).await
            }
            Place::Here => (0..count).map(|_| by_hand()).collect(),
            Place::NoArbiter => {
                let joins = move || (0..count).map(|_| by_hand()).collect();
                std::thread::spawn(joins).join().unwrap()
            }
        }
    }

    /// Joins as the user of this name.
    pub async fn join(&self, t: &Harness, name: &str, user: &str) {
        let join = self.joins(name, 1).await.remove(0).user(UserId::new(user).unwrap());
        t.registry.send(join).await.unwrap().unwrap();
    }

    pub async fn leave(&self, t: &Harness, name: &str) {
        assert!(t.registry.send(Leave::new(room(name), self.id())).await.unwrap());
    }

    /// Publishes to a room, without waiting for the answer.
    pub fn say(&self, t: &Harness, name: &str, text: &str) {
        t.registry.do_send(Publish::new(room(name), text.to_owned()).sent_by(self.id()));
    }

    /// The frames since the last call.
    pub async fn frames(&mut self) -> Vec<ForwardMessage> {
        dispatched().await;
        let payload = ByteString::from_static("marker");
        let marker = ForwardMessage::new(room("-"), Forwarded::Message, payload);
        // The mailbox is a queue: what was sent before is handled before.
        self.addr.send(marker).await.unwrap();
        let heard = std::iter::from_fn(|| self.heard.now());
        let frames = heard.filter_map(|heard| match heard {
            Heard::Frame(frame) if frame.room != "-" => Some(frame),
            _ => None,
        });
        frames.collect()
    }

    /// The next frame, waiting for it.
    pub async fn next(&mut self) -> ForwardMessage {
        match self.heard.next().await {
            Some(Heard::Frame(frame)) => frame,
            other => panic!("no frame but {other:?}"),
        }
    }
}

/// Threads, each with a session in a room of its own, which shows that earlier orders were carried out.
pub struct Threads {
    pub handles: Vec<ArbiterHandle>,
    pilots: Vec<Guest>,
}

const APART: &str = "apart";

fn pilot() -> UserId {
    UserId::new("pilot").unwrap()
}

impl Threads {
    pub async fn new(t: &Harness, count: usize) -> Self {
        let handles: Vec<_> = (0..count).map(|_| Arbiter::new().handle()).collect();
        let mut pilots = Vec::new();
        for handle in &handles {
            let pilot = Guest::new(t, Place::Thread(handle.clone()), Dialect::Raw).await;
            pilot.join(t, APART, "pilot").await;
            pilots.push(pilot);
        }
        Self { handles, pilots }
    }

    /// Waits until the registry has ended its turn, and each thread has carried out its orders.
    pub async fn sync(&mut self, t: &Harness) {
        let again = self.pilots[0].joins(APART, 1).await.remove(0).user(pilot());
        t.registry.send(again).await.unwrap().unwrap();
        t.registry.do_send(Publish::new(room(APART), "marker"));
        for pilot in &mut self.pilots {
            pilot.next().await;
        }
    }

    /// Lets time pass until everything that waits is sent.
    pub async fn settle(&mut self, t: &Harness) {
        for _ in 0..3 {
            t.clock.advance(secs(2));
            self.sync(t).await;
            self.sync(t).await;
        }
    }
}
