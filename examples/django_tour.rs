//! Every call of django-channels-presence's documentation, and its counterpart here.
//!
//! ```text
//! cargo run --example django_tour
//! ```
//!
//! Prints each Python call, the Rust that does the same, and what that answers; ends with an error if
//! one of the answers is not what it should be. A manual clock makes presences age.

use std::{error::Error, time::Duration};

use actix::prelude::*;
use actix_presence::{
    Cause, Connection, Flush, ForwardMessage, Join, Leave, LeaveAll, ListPresences,
    PresenceChanged, PresenceConfig, PrunePresences, PruneRooms, Publish, RoomFilter, RoomName,
    RoomRegistry, Snapshot, Touch, UserId,
    testing::{Heard, ManualClock, Probe, Seen},
};
use serde_json::{Value, json};

/// Prints a Python call, the Rust beside it and its answer, which must be as given.
macro_rules! tour {
    ($python:literal, $rust:expr, $expected:expr) => {{
        let (answer, expected) = ($rust, $expected);
        println!(
            "py    {}
rust  {}
      {answer:?}
",
            $python,
            stringify!($rust)
        );
        if answer != expected {
            return Err(format!("{}: {answer:?} is not {expected:?}", $python).into());
        }
    }};
}

/// A consumer: its connection, and what its `forward_message` sends to the client.
struct Consumer {
    me: Connection,
    outlet: Recipient<ForwardMessage>,
    sent: Seen<Heard>,
}

impl Consumer {
    fn new(rooms: &Addr<RoomRegistry>) -> Self {
        let (outlet, sent) = Probe::<Heard>::new();
        Self { me: Connection::new(rooms.clone()), outlet: outlet.recipient(), sent }
    }

    fn anonymous(&self, room: &RoomName) -> Join {
        Join::new(room.clone(), self.me.id(), self.outlet.clone())
    }

    fn user(&self, room: &RoomName, user: &UserId) -> Join {
        self.anonymous(room).user(user.clone())
    }

    async fn sent(&mut self) -> Result<String, &'static str> {
        match self.sent.next().await {
            Some(Heard::Frame(ForwardMessage { payload, .. })) => Ok(payload.to_string()),
            _ => Err("no frame"),
        }
    }
}

/// The `broadcast_presence` receiver of the documentation.
struct BroadcastPresence(Addr<RoomRegistry>);

impl Actor for BroadcastPresence {
    type Context = Context<Self>;
}

impl Handler<PresenceChanged> for BroadcastPresence {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, event: PresenceChanged, _: &mut Context<Self>) -> Self::Result {
        let rooms = self.0.clone();
        Box::pin(async move {
            let room = event.snapshot;
            let message = json!({
                "type": "presence",
                "payload": {
                    "channel_name": room.room(),
                    "members": users(&room),
                    "lurkers": room.anonymous_count(),
                }
            });
            let _ = rooms.send(Publish::new(event.room, message.to_string())).await;
        })
    }
}

fn users(room: &Snapshot) -> Vec<String> {
    room.users().map(|member| member.id.to_string()).collect()
}

pub async fn tour() -> Result<(), Box<dyn Error>> {
    let secs = Duration::from_secs;
    let clock = ManualClock::new();
    println!("py    CHANNELS_PRESENCE_MAX_AGE = 60\nrust  PresenceConfig::max_age(secs(60))\n");
    let presence = PresenceConfig::new("sqlite::memory:")
        .max_age(secs(60))
        .clock(clock.clock_alone())
        .start()?;
    let rooms = presence.registry();
    let (receiver, mut signals) = Probe::new();
    presence.subscribe(RoomFilter::Any, receiver.recipient()).await?;
    let (lobby, ada) = (RoomName::new("lobby")?, UserId::new("ada")?);

    println!("--- Room.objects.add, and what a room knows\n");
    let [mut tab, mut guest] = [Consumer::new(&rooms), Consumer::new(&rooms)];
    let join = tab.user(&lobby, &ada);
    tour!("Room.objects.add('lobby', channel, user)", rooms.send(join).await??.changed, true);
    let signal = signals.next().await.ok_or("no signal")?;
    let added = signal.added().ok_or("nobody added")?;
    tour!("presence_changed: room", signal.room.as_str(), "lobby");
    tour!("presence_changed: added.user", added.user.as_ref(), Some(&ada));
    tour!("presence_changed: removed", signal.removed(), None);
    tour!("presence_changed: bulk_change", signal.bulk_change(), false);
    let room = rooms.send(guest.anonymous(&lobby)).await??.snapshot;
    tour!("room.channel_name", room.room().as_str(), "lobby");
    tour!("room.get_users()", users(&room), ["ada"]);
    tour!("room.get_anonymous_count()", room.anonymous_count(), 1);
    let again = guest.anonymous(&lobby);
    tour!("Room.objects.add(...)  # again", rooms.send(again).await??.changed, false);
    signals.next().await.ok_or("no signal of the guest")?;
    rooms.send(Flush).await??; // the rows are there; see prune_rooms below

    println!("--- Presence\n");
    let list = ListPresences { room: lobby.clone(), after: None, limit: 10 }; // the anonymous first
    let all = rooms.send(list.clone()).await??.ok_or("an empty room")?;
    let presence_of_ada = &all[1].presence;
    tour!("presence.room", list.room.as_str(), "lobby");
    tour!("presence.channel_name", presence_of_ada.connection, tab.me.id());
    tour!("presence.user", presence_of_ada.user.as_ref(), Some(&ada));
    tour!("presence.last_seen", all[1].last_seen, clock.now());
    clock.advance(secs(40));
    let touch = Touch::new(tab.me.id());
    tour!("Presence.objects.touch(channel)", rooms.send(touch).await?, ());
    let all = rooms.send(list).await??.ok_or("an empty room")?;
    tour!("presence.last_seen", all[1].last_seen, clock.now());

    println!("--- The decorator @touch_presence, and messages to the group\n");
    tour!("receive('\"heartbeat\"')  # not called", tab.me.text("\"heartbeat\""), None);
    tour!("receive('hello')", tab.me.text("hello"), Some("hello"));
    let hello = Publish::new(lobby.clone(), "hello");
    tour!("channel_layer.group_send('lobby', ...)", rooms.send(hello).await??, 2);
    tour!("def forward_message(self, event)", guest.sent().await?, "hello");
    tour!("def forward_message(self, event)", tab.sent().await?, "hello");

    println!("--- Pruning, 61 seconds after the guest was last seen\n");
    clock.advance(secs(21));
    let by_max_age = PrunePresences { age: None };
    tour!("Room.objects.prune_presences()", rooms.send(by_max_age).await?.removed(), 1);
    let signal = signals.next().await.ok_or("no signal")?;
    tour!("presence_changed: bulk_change", signal.bulk_change(), true);
    tour!("presence_changed: removed", signal.removed(), None);
    tour!("# not there: who, and why", signal.leaves()[0].cause, Cause::Expired);
    let by_age = PrunePresences { age: Some(secs(5)) };
    tour!("Room.objects.prune_presences(5)", rooms.send(by_age).await?.removed(), 1);
    signals.next().await.ok_or("no signal")?;

    println!("--- Leaving\n");
    let leave = Leave::new(lobby.clone(), tab.me.id());
    rooms.send(tab.user(&lobby, &ada)).await??;
    tour!("Room.objects.remove('lobby', channel)", rooms.send(leave.clone()).await?, true);
    tour!("Room.objects.remove('lobby', channel)  # again", rooms.send(leave).await?, false);
    rooms.send(tab.user(&lobby, &ada)).await??;
    let leave_all = LeaveAll::new(tab.me.id());
    tour!("Presence.objects.leave_all(channel)  # rooms", rooms.send(leave_all).await?, 1);
    rooms.send(tab.user(&lobby, &ada)).await??;
    for _came_went_came_went_came in 0..5 {
        signals.next().await.ok_or("no signal")?;
    }
    tour!("@remove_presence def disconnect(self, close_code)", drop(tab), ());
    let signal = signals.next().await.ok_or("no signal")?;
    let removed = signal.removed().ok_or("nobody removed")?;
    tour!("presence_changed: removed.user", removed.user.as_ref(), Some(&ada));

    println!("--- @receiver(presence_changed) def broadcast_presence(sender, room, **kwargs)\n");
    let receiver = BroadcastPresence(rooms.clone()).start();
    presence.subscribe(RoomFilter::Any, receiver.recipient()).await?;
    let mut member = Consumer::new(&rooms);
    rooms.send(member.user(&lobby, &ada)).await??;
    let sent = member.sent().await?;
    println!("sent  {sent}");
    let payload = json!({"channel_name": "lobby", "members": ["ada"], "lurkers": 0});
    let expected = json!({"type": "presence", "payload": payload});
    tour!("self.send(event['message'])", serde_json::from_str::<Value>(&sent)? == expected, true);

    println!("--- Room.objects.prune_rooms\n");
    rooms.send(LeaveAll::new(member.me.id())).await?;
    tour!("Room.objects.prune_rooms()", rooms.send(PruneRooms).await??, 1);
    presence.shutdown(secs(5)).await?;
    Ok(())
}

#[actix::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tour().await
}
