//! One socket that floods, pauses, breaks off and reads as it pleases, in a room with others: memory
//! stays within bounds, and the others go on.
//!
//! Takes a minute, or `FUZZ_SECONDS`; `FUZZ_SEED` repeats a run. Prints how long the heartbeats of the
//! others took, which is for people to look at.

use std::{
    env,
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};

use crate::{
    floods::{MOST, PHOENIX, texts},
    harness::{Server, Ws, frame},
};

/// What the socket does next.
#[derive(Debug)]
enum Step {
    /// Sends this over and over, so many bytes in all, as long as the server takes them.
    Flood {
        bytes: Vec<u8>,
        total: usize,
    },
    /// Sends the beginning of something, and nothing of the rest.
    Half(Vec<u8>),
    /// Reads at most so many bytes.
    Read(usize),
    Pause(Duration),
    /// Ends the connection, with a close frame or without one, and opens another.
    Reconnect {
        close: bool,
        path: &'static str,
    },
}

const PATHS: [&str; 4] = [
    "/ws/room?presence=full",
    "/ws/room?presence=diff&session=fuzz",
    "/ws/room?presence=none",
    PHOENIX,
];

fn step(random: &mut fastrand::Rng) -> Step {
    match random.u8(..10) {
        0..5 => Step::Flood { bytes: flood(random), total: random.usize(1..4_000_000) },
        5 => {
            let bytes = flood(random);
            Step::Half(bytes[..random.usize(..bytes.len())].to_vec())
        }
        6 | 7 => Step::Read(random.usize(1..2_000_000)),
        8 => Step::Pause(Duration::from_millis(random.u64(..300))),
        _ => Step::Reconnect { close: random.bool(), path: random.choice(PATHS).unwrap() },
    }
}

/// Something to send often.
fn flood(random: &mut fastrand::Rng) -> Vec<u8> {
    let text = |text: &str| texts(text, 1);
    let size = [1, 100, 4000, 60_000, 70_000][random.usize(..5)];
    let long = "x".repeat(size);
    let topic = random.u8(..200);
    match random.u8(..15) {
        0 => text(&json!({"type": "message", "payload": long}).to_string()),
        1 => text(&json!({"type": "update", "info": {"x": random.u32(..)}}).to_string()),
        2 => text("\"heartbeat\""),
        3 => text(&long),
        4 => frame(0x89, true, &long.as_bytes()[..size.min(125)]),
        5 => frame(0x8a, true, b""),
        6 => frame(random.u8(0..2), true, b""),
        7 => text(&json!([topic, "1", format!("topic {topic}"), "phx_join", {}]).to_string()),
        8 => text(&json!([topic, "2", "room", "shout", {"x": long}]).to_string()),
        9 => text(&json!([null, "3", "phoenix", "heartbeat", {}]).to_string()),
        10 => text(&json!([topic, "4", format!("topic {topic}"), "phx_leave", {}]).to_string()),
        11 => text(&json!([long, long, "room", "phx_join", {}]).to_string()),
        12 => text(&json!([null, null, long, "shout", {}]).to_string()),
        13 => (0..size).map(|_| random.u8(..)).collect(),
        _ => frame(0x82, true, long.as_bytes()),
    }
}

/// Does the step; `false` when the server has ended the connection.
async fn take(stream: &mut TcpStream, step: &Step) -> bool {
    const WAIT: Duration = Duration::from_millis(100);
    match step {
        Step::Flood { bytes, total } => {
            let mut sent = 0;
            while sent < *total {
                match timeout(WAIT, stream.write(&bytes[sent % bytes.len()..])).await {
                    Ok(Ok(written)) => sent += written,
                    Ok(Err(_)) => return false,
                    Err(_) => break,
                }
            }
        }
        Step::Half(bytes) => drop(timeout(WAIT, stream.write(bytes)).await),
        Step::Read(bytes) => {
            let (mut buffer, mut read) = (vec![0; 65_536], 0);
            while read < *bytes {
                let ready = timeout(WAIT, stream.readable()).await;
                match (ready, stream.try_read(&mut buffer)) {
                    (Ok(_), Ok(0)) => return false,
                    (_, Ok(some)) => read += some,
                    (Ok(_), Err(error)) if error.kind() != std::io::ErrorKind::WouldBlock => {
                        return false;
                    }
                    (_, Err(_)) => break,
                }
            }
        }
        Step::Pause(pause) => tokio::time::sleep(*pause).await,
        Step::Reconnect { .. } => return false,
    }
    true
}

/// A member that reads everything, and measures how long its heartbeats take until `end`.
async fn measure(mut member: Ws, end: Instant) -> Vec<Duration> {
    let mut took = Vec::new();
    while Instant::now() < end {
        let sent = Instant::now();
        member.json(json!([null, "beat", "phoenix", "heartbeat", {}])).await;
        member.until(|frame| frame[1] == "beat").await;
        took.push(sent.elapsed());
        let pause = async { while member.frame().await.is_some() {} };
        let _ = timeout(Duration::from_millis(5), pause).await;
    }
    took.sort_unstable();
    took
}

/// A member that says something large now and then, and hears itself, until `end`.
async fn talk(mut member: Ws, end: Instant) {
    for n in 0_u64.. {
        let info = json!({"x": "x".repeat(3000), "n": n});
        member.json(json!({"type": "update", "info": info})).await;
        member.message(json!({"n": n, "x": "x".repeat(20_000)})).await;
        member.until(|frame| frame["payload"]["n"] == n).await;
        // Reads on meanwhile, as others may say a lot.
        let pause = async { while member.frame().await.is_some() {} };
        let _ = timeout(Duration::from_millis(20), pause).await;
        if Instant::now() > end {
            return;
        }
    }
}

#[tokio::test]
async fn whatever_one_socket_does_memory_stays_in_bounds_and_the_others_go_on() {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse().ok());
    let seed = number("FUZZ_SEED").unwrap_or_else(|| fastrand::u64(..));
    let mut random = fastrand::Rng::with_seed(seed);
    let end = Instant::now() + Duration::from_secs(number("FUZZ_SECONDS").unwrap_or(60));
    println!("FUZZ_SEED={seed}");

    let server = Server::start(&[]);
    let mut neighbour = server.ws(PHOENIX).await;
    neighbour.json(json!(["1", "1", "room", "phx_join", {}])).await;
    let others = (
        tokio::spawn(measure(neighbour, end)),
        tokio::spawn(talk(server.ws("/ws/room?presence=full&user=talker").await, end)),
    );
    let (mut stream, mut most) = (server.raw(PATHS[0]).await.into_stream(), 0);
    while Instant::now() < end {
        let step = step(&mut random);
        let goes_on = take(&mut stream, &step).await;
        most = most.max(server.memory());
        assert!(most < MOST, "FUZZ_SEED={seed}: {most} KiB after {step:.100?}");
        if goes_on {
            continue;
        }
        let (close, path) = match step {
            Step::Reconnect { close, path } => (close, path),
            _ => (false, random.choice(PATHS).unwrap()),
        };
        if close {
            let _ =
                timeout(Duration::from_millis(100), stream.write(&frame(0x88, true, &[3, 232])))
                    .await;
        } else {
            stream.set_zero_linger().unwrap();
        }
        stream = server.raw(path).await.into_stream();
    }
    let took = others.0.await.expect("the others' heartbeats are answered");
    others.1.await.expect("the others hear one another");
    let at = |part: usize| took[(took.len() * part / 1000).min(took.len() - 1)];
    println!(
        "{most} KiB at most; {} heartbeats of a neighbour: p50 {:?}, p99 {:?}, most {:?}",
        took.len(),
        at(500),
        at(990),
        at(1000)
    );
}
