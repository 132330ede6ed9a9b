//! A client as a good one is: it gives signs of life, and comes back by itself.

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{net::TcpStream, sync::mpsc::UnboundedReceiver, time};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{
        Message,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

use super::belief::{Belief, Dialect};

const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long a connection may take until the client tries the next node.
const OPENING: Duration = Duration::from_secs(20);

/// Where clients may go.
#[derive(Debug, Default)]
pub struct Directory {
    nodes: Mutex<Nodes>,
}

#[derive(Debug, Default)]
struct Nodes {
    living: Vec<(String, SocketAddr)>,
    /// Those that may close connections, because they stop or die.
    over: HashSet<SocketAddr>,
}

impl Directory {
    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn add(&self, name: &str, address: SocketAddr) {
        self.nodes().living.push((name.to_owned(), address));
    }

    /// Nobody goes there from now on.
    pub fn avoid(&self, name: &str) {
        self.nodes().living.retain(|(known, _)| known != name);
    }

    /// Nobody goes there, and its connections may end.
    pub fn give_up(&self, name: &str, address: SocketAddr) {
        self.avoid(name);
        self.nodes().over.insert(address);
    }

    fn any(&self, rng: &mut fastrand::Rng) -> Option<(String, SocketAddr)> {
        rng.choice(&self.nodes().living).cloned()
    }

    fn may_end(&self, address: SocketAddr) -> bool {
        self.nodes().over.contains(&address)
    }
}

/// Who a client is.
#[derive(Clone, Debug)]
pub struct Plan {
    pub number: usize,
    pub room: String,
    pub user: Option<String>,
    pub has_key: bool,
    pub dialect: Dialect,
}

/// What a client is told to do.
#[derive(Clone, Copy, Debug)]
pub enum Order {
    /// Lose the connection, and come back.
    Drop,
    /// Say goodbye, and come again.
    Leave,
    /// Another info.
    Update,
}

/// How things are with a client.
#[derive(Debug)]
pub struct State {
    /// The node it is connected to.
    pub node: Option<(String, SocketAddr)>,
    pub belief: Belief,
    /// How often it has changed its info.
    pub mood: u32,
    pub faults: Vec<String>,
}

type Socket = WebSocketStream<TcpStream>;

pub struct Client {
    plan: Plan,
    state: Arc<Mutex<State>>,
    directory: Arc<Directory>,
    orders: UnboundedReceiver<Order>,
    rng: fastrand::Rng,
}

/// Why a connection is no more.
enum End {
    /// The client wanted it.
    Own,
    /// The server, or the network.
    Other(String),
}

/// What a client attaches to its presence.
pub fn info(number: usize, mood: u32) -> Value {
    json!({"n": number, "mood": mood})
}

fn update(number: usize, mood: u32) -> Message {
    Message::text(json!({"type": "update", "info": info(number, mood)}).to_string())
}

impl Client {
    pub fn new(
        plan: Plan,
        state: Arc<Mutex<State>>,
        directory: Arc<Directory>,
        orders: UnboundedReceiver<Order>,
    ) -> Self {
        let rng = fastrand::Rng::with_seed(plan.number as u64);
        Self { plan, state, directory, orders, rng }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lives until its runtime ends.
    pub async fn live(mut self) {
        loop {
            let pause = Duration::from_millis(self.rng.u64(20..300));
            time::sleep(pause).await;
            let Some((name, address)) = self.directory.any(&mut self.rng) else { continue };
            // What was ordered before cannot be meant for the new connection.
            while self.orders.try_recv().is_ok() {}
            self.state().belief = Belief::new(self.plan.dialect);
            let Ok(Some(socket)) = time::timeout(OPENING, self.open(address)).await else {
                continue;
            };
            let end = self.talk(socket, &name, address).await;
            let mut state = self.state();
            state.node = None;
            let faults = std::mem::take(&mut state.belief.faults);
            state.faults.extend(faults);
            if let End::Other(why) = end
                && !self.directory.may_end(address)
            {
                state.faults.push(format!("its connection to {name} ended: {why}"));
            }
        }
    }

    async fn open(&self, address: SocketAddr) -> Option<Socket> {
        let Plan { number, room, user, has_key, dialect } = &self.plan;
        let mood = self.state().mood;
        let info = info(*number, mood);
        let user = user.as_ref().map(|user| format!("&user={user}")).unwrap_or_default();
        let key = if *has_key { format!("&session=tab{number}") } else { String::new() };
        let encoded: String = info.to_string().bytes().map(|byte| format!("%{byte:02X}")).collect();
        let path = match dialect {
            Dialect::Phoenix => format!("socket/websocket?vsn=2.0.0{user}{key}"),
            Dialect::Full => format!("ws/{room}?presence=full&info={encoded}{user}{key}"),
            Dialect::Diff => format!("ws/{room}?presence=diff&info={encoded}{user}{key}"),
            Dialect::Count => format!("ws/{room}?presence=count&info={encoded}{user}{key}"),
        };
        let stream = TcpStream::connect(address).await.ok()?;
        let (mut socket, _) = client_async(format!("ws://{address}/{path}"), stream).await.ok()?;
        if *dialect == Dialect::Phoenix {
            let join = json!(["1", "1", room, "phx_join", {"info": info}]);
            socket.send(Message::text(join.to_string())).await.ok()?;
        } else if *has_key && mood > 0 {
            // A session that is resumed keeps its info: an update may have been lost with the socket.
            socket.send(update(*number, mood)).await.ok()?;
        }
        Some(socket)
    }

    async fn talk(&mut self, mut socket: Socket, name: &str, address: SocketAddr) -> End {
        let first = time::Instant::now() + HEARTBEAT.mul_f32(self.rng.f32());
        let mut heartbeat = time::interval_at(first, HEARTBEAT);
        loop {
            let sent = tokio::select! {
                frame = socket.next() => match frame {
                    Some(Ok(Message::Text(text))) => {
                        let mut state = self.state();
                        state.belief.hear(&serde_json::from_str(&text).unwrap());
                        if state.belief.joined {
                            state.node = Some((name.to_owned(), address));
                        }
                        Ok(())
                    }
                    Some(Ok(Message::Close(close))) => {
                        return End::Other(format!("{close:?}"));
                    }
                    Some(Ok(_)) => Ok(()),
                    Some(Err(error)) => return End::Other(error.to_string()),
                    None => return End::Other("without a word".to_owned()),
                },
                _ = heartbeat.tick() => socket.send(self.heartbeat()).await,
                order = self.orders.recv() => match order {
                    Some(Order::Drop) => return End::Own,
                    Some(Order::Leave) => {
                        leave(socket).await;
                        return End::Own;
                    }
                    Some(Order::Update) if self.plan.dialect != Dialect::Phoenix => {
                        let mood = {
                            let mut state = self.state();
                            state.mood += 1;
                            state.mood
                        };
                        socket.send(update(self.plan.number, mood)).await
                    }
                    _ => Ok(()),
                },
            };
            if let Err(error) = sent {
                return End::Other(error.to_string());
            }
        }
    }

    fn heartbeat(&self) -> Message {
        match self.plan.dialect {
            Dialect::Phoenix => Message::text(r#"[null,"h","phoenix","heartbeat",{}]"#),
            _ => Message::text("\"heartbeat\""),
        }
    }
}

/// Says goodbye, and waits for the answer.
async fn leave(mut socket: Socket) {
    let close = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    let goodbye = async {
        if socket.send(Message::Close(Some(close))).await.is_ok() {
            while let Some(Ok(_)) = socket.next().await {}
        }
    };
    let _ = time::timeout(OPENING, goodbye).await;
}
