//! Watching who comes and goes: an actor that keeps a board of who is online, by room.
//!
//! ```text
//! cargo run --example observer
//! ```
//!
//! A few simulated sessions come and go, one is kicked, two fall silent and are pruned, and then more
//! happens than the board can follow. It prints each change as the board hears it, and ends by itself.

use std::{collections::HashMap, error::Error, time::Duration};

use actix::prelude::*;
use actix_presence::{
    Change, Connection, GetSnapshot, Kick, Left, Offline, Presence, PresenceChanged,
    PresenceConfig, RoomFilter, RoomName, RoomRegistry, Snapshot, UserId,
    testing::{Heard, ManualClock, Probe},
};
use tokio::sync::{oneshot, watch};

/// Who is online, by room.
struct Board {
    rooms: HashMap<RoomName, Snapshot>,
    /// Up to which change it has followed, and how often it had to start anew from a state.
    followed: watch::Sender<(u64, usize)>,
}

impl Actor for Board {
    type Context = Context<Self>;
}

impl Handler<PresenceChanged> for Board {
    type Result = ();

    fn handle(&mut self, event: PresenceChanged, _: &mut Context<Self>) {
        let (room, state) = (event.room.clone(), event.snapshot.clone());
        let mut resyncs = 0;
        match &event.change {
            Change::Diff(_) => {
                // Connections come and go; a user with two tabs comes once and goes once.
                let joins = event.joins().iter().map(|joined| format!("+{}", name(joined)));
                let leave = |left: &Left| format!("-{} ({})", name(&left.presence), left.cause);
                let online = event.online().iter().map(|user| format!("{user} is online"));
                let gone = |gone: &Offline| format!("{} is offline ({})", gone.user, gone.cause);
                let (leaves, offline) = (event.leaves().iter().map(leave), event.offline().iter());
                let all: Vec<_> =
                    joins.chain(leaves).chain(online).chain(offline.map(gone)).collect();
                println!("{room}, change {}: {}", event.version, all.join(", "));
            }
            Change::Resync => {
                resyncs = 1;
                println!("{room}, up to change {}: more than I could follow", event.version);
            }
            Change::ResyncAll => {
                // In too many rooms at once: an app reads them again, with `ListRooms` and `GetSnapshot`.
                resyncs = 1;
                self.rooms.clear();
                println!("more rooms have changed than I could follow");
            }
        }
        println!("    now {}", line(&state));
        if state.is_empty() {
            self.rooms.remove(&room);
        } else {
            self.rooms.insert(room, state);
        }
        self.followed.send_modify(|followed| *followed = (event.version, followed.1 + resyncs));
    }
}

/// Keeps the board from its work until the other end is dropped.
#[derive(Message)]
#[rtype(result = "()")]
struct Busy(oneshot::Receiver<()>);

impl Handler<Busy> for Board {
    type Result = ();

    fn handle(&mut self, msg: Busy, ctx: &mut Context<Self>) {
        ctx.wait(async { drop(msg.0.await) }.into_actor(self));
    }
}

/// What the board says of a room.
#[derive(Message)]
#[rtype(result = "Option<String>")]
struct WhoIsOnline(RoomName);

impl Handler<WhoIsOnline> for Board {
    type Result = Option<String>;

    fn handle(&mut self, msg: WhoIsOnline, _: &mut Context<Self>) -> Self::Result {
        self.rooms.get(&msg.0).map(line)
    }
}

fn name(presence: &Presence) -> &str {
    presence.user.as_ref().map_or("a guest", UserId::as_str)
}

fn line(room: &Snapshot) -> String {
    let users: Vec<_> = room.users().map(|m| format!("{}×{}", m.id, m.connections)).collect();
    format!("[{}] and {} guests", users.join(" "), room.anonymous_count())
}

/// A client joins the lobby; it leaves when the answer is dropped.
async fn enter(
    registry: &Addr<RoomRegistry>,
    who: Option<&str>,
) -> Result<Connection, Box<dyn Error>> {
    let me = Connection::new(registry.clone());
    let (outlet, _) = Probe::<Heard>::new(); // nobody listens to what it is sent
    let who = who.map(UserId::new).transpose()?;
    registry.send(me.join(RoomName::new("lobby")?, outlet).user(who)).await??;
    Ok(me)
}

/// Waits until the board has heard of all there was; answers how often it had to start anew.
async fn board_is_up_to_date(
    registry: &Addr<RoomRegistry>,
    followed: &mut watch::Receiver<(u64, usize)>,
) -> Result<usize, Box<dyn Error>> {
    let lobby = GetSnapshot { room: RoomName::new("lobby")? };
    let truth = registry.send(lobby).await??.ok_or("the lobby is empty")?;
    let heard_all = followed.wait_for(|(version, _)| *version >= truth.version());
    let (_, resyncs) = *tokio::time::timeout(Duration::from_secs(10), heard_all).await??;
    Ok(resyncs)
}

pub async fn watch_a_room() -> Result<(), Box<dyn Error>> {
    let clock = ManualClock::new();
    let presence = PresenceConfig::new("sqlite::memory:")
        .max_age(Duration::from_secs(60))
        .observer_queue(4) // small, to see what happens when it is full
        .clock(clock.clock())
        .start()?;
    let registry = presence.registry();
    let (followed, mut follows) = watch::channel((0, 0));
    let board = Board { rooms: HashMap::new(), followed }.start();
    presence.subscribe(RoomFilter::Any, board.clone().recipient()).await?;

    let ada = enter(&registry, Some("ada")).await?;
    let tab = enter(&registry, Some("bob")).await?;
    let mut other_tab = enter(&registry, Some("bob")).await?;
    drop(tab); // cut off: bob stays online
    board_is_up_to_date(&registry, &mut follows).await?;
    other_tab.closed_by_client(None);
    drop(other_tab); // and now he has left
    let _eve = enter(&registry, Some("eve")).await?;
    registry.send(Kick::User(UserId::new("eve")?)).await?;
    board_is_up_to_date(&registry, &mut follows).await?;

    let (_cyd, _guest) = (enter(&registry, Some("cyd")).await?, enter(&registry, None).await?);
    clock.advance(Duration::from_secs(40));
    ada.touch(); // the only one who is heard of
    clock.advance(Duration::from_secs(21));
    let resyncs = board_is_up_to_date(&registry, &mut follows).await?;
    assert_eq!(resyncs, 0);

    let (done, busy) = oneshot::channel();
    board.do_send(Busy(busy));
    let mut crowd = Vec::new();
    for n in 1..=9 {
        crowd.push(enter(&registry, Some(&format!("fan-{n}"))).await?);
    }
    drop(done);
    let resyncs = board_is_up_to_date(&registry, &mut follows).await?;
    assert!(resyncs > 0, "nine changes do not fit into a queue of four");

    let lobby = RoomName::new("lobby")?;
    let truth = registry.send(GetSnapshot { room: lobby.clone() }).await??.ok_or("empty")?;
    assert_eq!(truth.occupancy().users, 10);
    assert_eq!(board.send(WhoIsOnline(lobby)).await?, Some(line(&truth)));
    presence.shutdown(Duration::from_secs(5)).await?;
    Ok(())
}

#[actix::main]
async fn main() -> Result<(), Box<dyn Error>> {
    watch_a_room().await
}
