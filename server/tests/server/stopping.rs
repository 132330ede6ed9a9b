//! What a stop looks like from outside: who hears what until when, and what a balancer is told.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{mpsc, watch},
};
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{Server, Ws, until};

/// How many connections are told to close together, of so few.
const BATCH: usize = 64;
/// How long the second signal, or the end of a drain, may take.
const SOON: Duration = Duration::from_secs(10);

/// What a socket of the crowd has heard up to its close frame.
#[derive(Debug, Default)]
struct Heard {
    /// The numbers of the messages.
    numbers: Vec<u64>,
    /// Who has left, and why.
    leaves: Vec<(String, String)>,
    close: Option<u16>,
}

/// Reads a socket to its end; tells of each number that comes.
async fn hear(mut ws: Ws, tell: mpsc::UnboundedSender<u64>) -> Heard {
    let mut heard = Heard::default();
    while let Some(Ok(frame)) = ws.frame().await {
        assert_eq!(heard.close, None, "a frame after the close frame: {frame:?}");
        let text = match frame {
            Message::Text(text) => text,
            Message::Close(close) => {
                heard.close = close.map(|close| close.code.into());
                continue;
            }
            _ => continue,
        };
        let frame: Value = serde_json::from_str(&text).unwrap();
        if frame["type"] == "message" {
            let number = frame["payload"].as_u64().unwrap();
            heard.numbers.push(number);
            let _ = tell.send(number);
        }
        for leave in frame["payload"]["leaves"].as_array().into_iter().flatten() {
            let [id, cause] = ["id", "cause"].map(|key| leave[key].as_str().unwrap().to_owned());
            heard.leaves.push((id, cause));
        }
    }
    heard
}

/// Speaks until it is told to close: the next number as soon as it has heard the last one, and a little
/// later. Answers what it has heard.
async fn speak(mut ws: Ws, said: watch::Sender<u64>) -> Heard {
    let mut heard = Heard::default();
    let mut pace = tokio::time::interval(Duration::from_millis(10));
    loop {
        let number = heard.numbers.len() as u64 + 1;
        pace.tick().await;
        ws.message(number).await;
        said.send_replace(number);
        while heard.numbers.last() != Some(&number) {
            match ws.frame().await {
                Some(Ok(Message::Text(text))) => {
                    let frame: Value = serde_json::from_str(&text).unwrap();
                    assert_eq!(frame["type"], "message", "{frame}");
                    heard.numbers.push(frame["payload"].as_u64().unwrap());
                }
                Some(Ok(Message::Close(close))) => {
                    heard.close = close.map(|close| close.code.into());
                    return heard;
                }
                Some(Ok(_)) => {}
                other => panic!("no close frame but {other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn a_thousand_sockets_hear_and_speak_and_are_seen_until_their_own_close_frames() {
    const CROWD: usize = 1000;
    let mut server = Server::start(&[]);
    let (tell, mut told) = mpsc::unbounded_channel();
    let mut crowd = Vec::new();
    // One after the other: who came first is told first.
    for n in 0..CROWD {
        let ws = server.ws(&format!("/ws/room?presence=none&user=u{n}")).await;
        crowd.push(tokio::spawn(hear(ws, tell.clone())));
    }
    let witness = server.ws("/ws/room?presence=diff&user=witness").await;
    let witness = tokio::spawn(hear(witness, tell.clone()));
    let speaker = server.ws("/ws/room?presence=none&user=speaker").await;
    let (said, _) = watch::channel(0);
    let speaker = tokio::spawn(speak(speaker, said.clone()));
    drop(tell);
    for _ in 0..=CROWD {
        told.recv().await.expect("the speaker is heard");
    }
    let before = *said.borrow();
    server.signal("TERM");

    let crowd: Vec<Heard> = join_all(crowd).await.into_iter().map(Result::unwrap).collect();
    let (witness, speaker) = (witness.await.unwrap(), speaker.await.unwrap());
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    let all: Vec<&Heard> = crowd.iter().chain([&witness, &speaker]).collect();
    for heard in &all {
        assert_eq!(heard.close, Some(1001));
        let whole: Vec<u64> = (1..=heard.numbers.len() as u64).collect();
        assert_eq!(heard.numbers, whole, "nothing is missing before the close frame");
    }
    // Whoever is told together has heard the same, and those who are told later no less.
    let batches: Vec<Vec<usize>> = all
        .chunks(BATCH)
        .map(|batch| batch.iter().map(|heard| heard.numbers.len()).collect())
        .collect();
    for batch in &batches {
        assert!(batch.iter().all(|count| *count == batch[0]), "{batches:?}");
    }
    let counts: Vec<usize> = batches.iter().map(|batch| batch[0]).collect();
    assert!(counts.is_sorted(), "{counts:?}");
    // The room goes on while it gets smaller, for those who speak as for those who hear.
    let last = speaker.numbers.len();
    assert!(last > counts[0] && last > before as usize, "{last} of {before}: {counts:?}");
    // Nobody is seen to leave before its own close frame.
    assert!(!witness.leaves.is_empty());
    for (user, cause) in &witness.leaves {
        let number: usize = user.strip_prefix('u').unwrap().parse().unwrap();
        assert!(number / BATCH < CROWD / BATCH, "{user}");
        assert_eq!(cause, "shutdown");
    }
    assert!(!server.log().contains("ERROR"), "{}", server.log());
}

/// A connection that asks more than once.
struct Kept(TcpStream);

impl Kept {
    async fn new(server: &Server) -> Self {
        Self(TcpStream::connect(server.address()).await.unwrap())
    }

    /// The status and the body; `None` once the server has closed the connection.
    async fn get(&mut self, path: &str) -> Option<(u16, String)> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        self.0.write_all(request.as_bytes()).await.ok()?;
        let mut bytes = Vec::new();
        loop {
            if let Some(answer) = whole(&bytes) {
                return Some(answer);
            }
            if self.0.read_buf(&mut bytes).await.ok()? == 0 {
                assert!(bytes.is_empty(), "half an answer");
                return None;
            }
        }
    }
}

/// The status and the body of an answer that is there to its end.
fn whole(bytes: &[u8]) -> Option<(u16, String)> {
    let text = std::str::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n")?;
    let len = head.lines().find_map(|line| line.strip_prefix("content-length: "))?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    (body.len() == len.parse::<usize>().unwrap()).then(|| (status, body.to_owned()))
}

fn status_of(body: &str) -> Value {
    let body: Value = serde_json::from_str(body).unwrap();
    body["status"].clone()
}

#[tokio::test]
async fn while_it_drains_a_server_is_not_ready_and_everything_goes_on() {
    let mut server = Server::start(&["--drain", "2s"]);
    let mut old = server.ws("/ws/lobby?user=old").await;
    let mut kept = Kept::new(&server).await;
    assert_eq!(kept.get("/readyz").await.unwrap().0, 200);
    let sent = Instant::now();
    server.signal("TERM");
    until("it is not ready", async || (server.get("/readyz").await.status == 503).then_some(()))
        .await;
    assert_eq!(status_of(&server.get("/readyz").await.body), "closing");
    assert_eq!(status_of(&kept.get("/readyz").await.unwrap().1), "closing");
    assert_eq!(server.get("/healthz").await.status, 200);
    let mut new = server.ws("/ws/lobby?user=new").await;
    old.sees(&["new", "old"], 0).await;
    new.message("hello").await;
    assert_eq!(old.next_of("message").await["payload"], "hello");
    assert_eq!(old.closed().await.0, 1001);
    assert_eq!(new.closed().await.0, 1001);
    assert!(sent.elapsed() >= Duration::from_secs(2), "{:?}", sent.elapsed());
    drop((old, new));
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    assert!(sent.elapsed() < Duration::from_secs(2) + SOON, "{:?}", sent.elapsed());
}

#[tokio::test]
async fn a_kept_connection_is_told_503_for_as_long_as_the_stop_lasts() {
    let mut server = Server::start(&[]);
    let mut sockets = Vec::new();
    for n in 0..BATCH * 4 {
        sockets.push(server.ws(&format!("/ws/room?presence=none&user=u{n}")).await);
    }
    let mut kept = Kept::new(&server).await;
    assert_eq!(kept.get("/readyz").await.unwrap().0, 200);
    server.signal("TERM");
    let reading = join_all(sockets.into_iter().map(async |mut socket| {
        assert_eq!(socket.closed().await.0, 1001);
        socket.ended().await;
    }));
    let asking = async {
        let mut answers = Vec::new();
        while let Some((status, body)) = kept.get("/readyz").await {
            answers.push((status, status_of(&body)));
        }
        answers
    };
    let (_, mut answers) = tokio::join!(reading, asking);
    let signal_is_handled = answers.iter().position(|(status, _)| *status == 503).unwrap();
    let stopping = answers.split_off(signal_is_handled);
    assert!(stopping.iter().all(|answer| *answer == (503, "closing".into())), "{stopping:?}");
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
}

#[tokio::test]
async fn a_second_signal_ends_a_drain_at_once() {
    let mut server = Server::start(&["--drain", "1h"]);
    server.signal("TERM");
    until("it drains", async || server.log().contains("draining").then_some(())).await;
    let sent = Instant::now();
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(1), "{}", server.log());
    assert!(sent.elapsed() < SOON, "{:?}", sent.elapsed());
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn once_the_goodbyes_have_begun_new_connections_are_refused() {
    let server = Server::start(&[]);
    // Its close frame is not answered, so the stop lasts.
    let mut raw = server.raw("/ws/lobby").await;
    server.signal("TERM");
    assert_eq!(raw.closed().await, 1001);
    let refused = until("a refusal", async || TcpStream::connect(server.address()).await.err());
    let error = tokio::select! {
        error = refused => error,
        _ = raw.ended() => panic!("only the end of the stop refuses"),
    };
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}
