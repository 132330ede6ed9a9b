//! The support desk: who may enter where, who talks with whom, and what its observers know.

use std::time::Duration;

use diesel::prelude::*;
use futures_util::SinkExt;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::{
    desk,
    process::{Process, SOON, close, connect, next},
};

const ADA: &str = "desk=ada";
const BOB: &str = "desk=bob";

async fn get(port: u16, path: &str, cookie: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nCookie: {cookie}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(SOON, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

fn body(answer: &str) -> Value {
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

/// The status with which a handshake is refused.
async fn refusal(port: u16, path: &str, cookie: &str) -> u16 {
    match connect(port, path, cookie).await {
        Err(Error::Http(answer)) => answer.status().as_u16(),
        other => panic!("{other:?}"),
    }
}

/// Waits until a question has this answer.
async fn until<T: PartialEq + std::fmt::Debug>(expected: T, ask: impl AsyncFn() -> T) {
    let mut last = None;
    let in_time = timeout(SOON, async {
        while last.as_ref() != Some(&expected) {
            last = Some(ask().await);
            sleep(Duration::from_millis(10)).await;
        }
    });
    let in_time = in_time.await.is_ok();
    assert!(in_time, "{expected:?} in time, not {last:?}");
}

/// Who did what, as the journal has it.
fn visits(app: &Process) -> Vec<(String, String)> {
    use desk::tables::visits;
    let path = app.directory.path().join("desk.db");
    let mut database = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    let rows = visits::table.order(visits::id).select((visits::name, visits::event));
    rows.load(&mut database).unwrap()
}

fn text(frame: &str) -> Value {
    let frame: Value = serde_json::from_str(frame).unwrap();
    json!([frame["from"]["id"], frame["payload"]["text"]])
}

#[actix::test]
async fn agents_and_customers_meet_in_a_ticket_whatever_their_session() {
    let app = Process::start("desk");
    let port = app.port().await;
    let waiting = async || body(&get(port, "/waiting", ADA).await);
    let (mut bob, list) = connect(port, "/realtime/ws/ticket:1?presence=diff", BOB).await.unwrap();
    assert!(list.contains(r#"{"id":"bob","info":{"agent":false},"connections":1}"#), "{list}");
    until(json!({"ticket:1": 1}), waiting).await;

    let (mut ada, hello) = connect(port, "/agent/ticket:1", ADA).await.unwrap();
    assert_eq!(hello, "* 2 here");
    until(json!({}), waiting).await;
    let came = next(&mut bob).await;
    assert!(came.contains(r#""joins":[{"id":"ada","info":{"agent":true}"#), "{came}");

    let (mut listener, list) = connect(port, "/listen/ticket:1", ADA).await.unwrap();
    assert!(list.contains(r#"{"id":"ada","info":{"agent":true},"connections":2}"#), "{list}");
    ada.send(Message::text("how can I help?")).await.unwrap();
    assert_eq!(next(&mut ada).await, "ada: how can I help?");
    let heard = loop {
        let frame = next(&mut bob).await;
        if frame.contains("help") {
            break frame;
        }
    };
    assert_eq!(text(&heard), json!(["ada", "how can I help?"]));
    let answer = r#"{"type":"message","payload":{"text":"it burns"}}"#;
    bob.send(Message::text(answer)).await.unwrap();
    assert_eq!(next(&mut ada).await, "bob: it burns");
    for said in ["how can I help?", "it burns"] {
        assert_eq!(text(&next(&mut listener).await)[1], said);
    }

    // Each kind of session answers a close with its code, and leaves at once.
    close(listener).await;
    close(ada).await;
    until(json!({"ticket:1": 1}), waiting).await;
    close(bob).await;
    let event = |name: &str, event: &str| (name.to_owned(), event.to_owned());
    let visits = async || visits(&app);
    let expected = [("bob", "joined"), ("ada", "joined"), ("ada", "joined"), ("ada", "left")];
    let expected = expected.into_iter().chain([("ada", "left"), ("bob", "left")]);
    until(expected.map(|(name, what)| event(name, what)).collect(), visits).await;
}

#[actix::test]
async fn nobody_enters_without_a_login_or_somebody_elses_ticket() {
    let app = Process::start("desk");
    let port = app.port().await;
    for route in ["/agent", "/listen", "/realtime/ws"] {
        for cookie in ["", "desk=eve", "other=ada"] {
            let path = format!("{route}/ticket:1?user=ada");
            assert_eq!(refusal(port, &path, cookie).await, 401, "{route} {cookie}");
        }
    }
    for route in ["/agent", "/listen", "/realtime/ws"] {
        assert_eq!(refusal(port, &format!("{route}/ticket:2"), BOB).await, 403, "{route}");
        assert_eq!(refusal(port, &format!("{route}/staff"), BOB).await, 403, "{route}");
    }
    // Who waits is for agents.
    for (cookie, status) in [("", 401), ("desk=eve", 401), (BOB, 403), (ADA, 200)] {
        let answer = get(port, "/waiting", cookie).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{cookie}: {answer}");
    }
    // The agents' protocol is for agents, in the customer's own ticket, too.
    assert_eq!(refusal(port, "/agent/ticket:1", BOB).await, 403);
    let (ada, _) = connect(port, "/realtime/ws/ticket:2", ADA).await.unwrap();
    close(ada).await;
}

#[actix::test]
async fn the_desk_keeps_its_own_addresses_and_logs_people_in() {
    let app = Process::start("desk");
    let port = app.port().await;
    assert!(get(port, "/", "").await.ends_with("\r\n\r\nthe desk"));
    for nobodys in ["/healthz", "/metrics", "/nope", "/realtime/nope"] {
        assert!(get(port, nobodys, "").await.starts_with("HTTP/1.1 404"), "{nobodys}");
    }
    let login = get(port, "/login/ada", "").await;
    for header in ["\r\nlocation: /realtime/#ticket:1\r\n", "desk=ada; HttpOnly; SameSite=Strict"] {
        assert!(login.contains(header), "{login}");
    }
    for nobodys in ["eve", "%00", "ada%3B%20Domain=example.com", "%C3%A9"] {
        let refused = get(port, &format!("/login/{nobodys}"), "").await;
        assert!(refused.starts_with("HTTP/1.1 401 "), "{nobodys}: {refused}");
        assert!(!refused.contains("set-cookie"), "{nobodys}: {refused}");
    }
    let page = get(port, "/realtime/", ADA).await;
    assert!(page.contains("\"assets/index.js\""));
    assert!(get(port, "/realtime/assets/index.js", "").await.starts_with("HTTP/1.1 200"));
    assert!(get(port, "/realtime/healthz", "").await.ends_with(r#"{"status":"ok"}"#));
}
