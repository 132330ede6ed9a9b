//! Clients with session keys that come back by themselves, as the documents say.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    time::{self, Instant},
};
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite::Message};

use super::record::Record;

/// How often a client speaks that does.
const PACE: Duration = Duration::from_millis(50);
/// How long a connection may take until the client tries another node.
const OPENING: Duration = Duration::from_secs(20);
/// What a closed socket means that is to come back at once.
const RESTARTING: u16 = 1012;

/// Who a client is.
#[derive(Clone, Debug)]
pub struct Plan {
    pub number: usize,
    pub room: usize,
    /// Hears who comes and goes.
    pub watches: bool,
    pub speaks: bool,
}

impl Plan {
    pub fn user(&self) -> String {
        format!("u{}", self.number)
    }

    fn path(&self) -> String {
        let Self { number, room, watches, .. } = self;
        let feed = if *watches { "diff" } else { "none" };
        format!("/ws/room{room}?presence={feed}&user=u{number}&session=key{number}")
    }
}

/// Lives for ever, on one node after the other.
pub async fn live(plan: Plan, record: Arc<Record>) {
    let mut rng = fastrand::Rng::with_seed(plan.number as u64);
    loop {
        // Not a node that the client has just come from: no balancer sends anybody there.
        let Some((node, address)) = record.any_node(&mut rng) else {
            time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let pause_over = Instant::now();
        let code = match time::timeout(OPENING, open(address, &plan.path())).await {
            Ok(Some(ws)) => {
                let socket = record.opened(&plan, &node, pause_over.elapsed());
                let code = stay(ws, &plan, socket, &record).await;
                record.closed(socket, code);
                code
            }
            _ => None,
        };
        if code != Some(RESTARTING) {
            time::sleep(Duration::from_millis(rng.u64(50..250))).await;
        }
    }
}

async fn open(address: SocketAddr, path: &str) -> Option<WebSocketStream<TcpStream>> {
    let stream = TcpStream::connect(address).await.ok()?;
    let (ws, _) = client_async(format!("ws://{address}{path}"), stream).await.ok()?;
    Some(ws)
}

/// Hears and speaks until the socket ends. Answers the close code, if there was one.
async fn stay(
    mut ws: WebSocketStream<TcpStream>,
    plan: &Plan,
    socket: u64,
    record: &Record,
) -> Option<u16> {
    let mut pace = time::interval(PACE);
    let mut said = 0;
    loop {
        tokio::select! {
            frame = ws.next() => match frame {
                Some(Ok(Message::Text(text))) => {
                    let frame: Value = serde_json::from_str(&text).unwrap();
                    record.heard(plan, socket, &frame);
                }
                Some(Ok(Message::Close(close))) => {
                    let code = close.map(|close| close.code.into());
                    // Answers it, and waits for the end.
                    while let Some(Ok(_)) = ws.next().await {}
                    return code;
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return None,
            },
            _ = pace.tick(), if plan.speaks => {
                said += 1;
                let message = json!({"type": "message", "payload": [socket, said]});
                record.says(socket, said);
                if ws.send(Message::text(message.to_string())).await.is_err() {
                    // The reason is read next.
                    said -= 1;
                }
            }
        }
    }
}
