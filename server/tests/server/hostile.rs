//! Clients that break the rules of the protocol: each is told so with the right code.

use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{Server, TEXT, arrival, ending, frame, until};

const BINARY: u8 = 0x82;

#[tokio::test]
async fn broken_frames_are_closed_with_the_code_that_says_why_and_hurt_nobody_else() {
    let server = Server::start(&[]);
    let mut witness = server.ws("/ws/lobby?user=witness&presence=diff").await;
    let long_ping = frame(0x89, true, &[b'x'; 126]);
    let cases: [(&str, u16, Vec<u8>); 12] = [
        ("binary", 1003, frame(BINARY, true, b"\x00\x01")),
        ("an empty binary", 1003, frame(BINARY, true, b"")),
        ("a fragmented binary", 1003, frame(0x02, true, b"\x00")),
        ("text that is not UTF-8", 1007, frame(TEXT, true, b"\xff\xfe")),
        ("a surrogate", 1007, frame(TEXT, true, b"\"\xed\xa0\x80\"")),
        (
            "a fragmented text that is not UTF-8",
            1007,
            [frame(0x01, true, b"\"\xc3"), frame(0x80, true, b"\x28\"")].concat(),
        ),
        ("an unmasked frame", 1002, frame(TEXT, false, b"\"heartbeat\"")),
        ("an opcode that there is not", 1002, frame(0x83, true, b"")),
        ("a control opcode that there is not", 1002, frame(0x8b, true, b"")),
        ("a ping that is too long", 1002, long_ping),
        ("a continuation of nothing", 1002, frame(0x80, true, b"x")),
        (
            "a message within a message",
            1002,
            [frame(0x01, true, b"a"), frame(0x01, true, b"b")].concat(),
        ),
    ];
    for (n, (what, code, bytes)) in cases.into_iter().enumerate() {
        let user = format!("mallory{n}");
        let mut raw = server.raw(&format!("/ws/lobby?user={user}&presence=none")).await;
        arrival(&mut witness, &user).await;
        raw.send(&bytes).await;
        assert_eq!(raw.closed().await, code, "{what}");
        assert_eq!(ending(&mut witness, &user).await, "disconnected", "{what}");
        assert!(raw.ended().await, "{what}");
    }
    witness.message("unharmed").await;
    assert_eq!(witness.next_of("message").await["payload"], "unharmed");
}

#[tokio::test]
async fn fragments_and_a_character_cut_in_two_are_put_together() {
    let server = Server::start(&[]);
    let mut raw = server.raw("/ws/lobby?presence=none").await;
    let text = r#"{"type":"message","payload":"é"}"#.as_bytes();
    let cut = text.len() - 3;
    assert_eq!(text[cut - 1], 0xc3);
    let frames = [
        frame(0x01, true, &text[..5]),
        frame(0x89, true, b"between"),
        frame(0x00, true, &text[5..cut]),
        frame(0x80, true, &text[cut..]),
    ];
    for byte in frames.concat() {
        raw.send(&[byte]).await;
    }
    assert_eq!(raw.next().await, Some((10, b"between".to_vec())));
    assert!(raw.text().await.contains(r#""payload":"é""#));
}

#[tokio::test]
async fn a_message_of_the_limit_is_taken_and_one_byte_more_is_closed_with_1009() {
    let server = Server::start(&["--max-frame-size", "1000"]);
    let message = |len: usize| {
        let empty = json!({"type": "message", "payload": ""}).to_string();
        json!({"type": "message", "payload": "x".repeat(len - empty.len())}).to_string()
    };
    let mut witness = server.ws("/ws/lobby?user=witness&presence=diff").await;
    let mut ada = server.ws("/ws/lobby?user=ada&presence=none").await;
    arrival(&mut witness, "ada").await;
    ada.text(&message(1000)).await;
    assert_eq!(ada.next().await["type"], "message");
    ada.text(&message(1001)).await;
    assert_eq!(ada.closed().await.0, 1009);
    assert_eq!(ending(&mut witness, "ada").await, "disconnected");

    let text = message(1002);
    let fragments = [
        frame(0x01, true, &text.as_bytes()[..500]),
        frame(0x00, true, &text.as_bytes()[500..900]),
        frame(0x80, true, &text.as_bytes()[900..]),
    ];
    let mut bob = server.raw("/ws/lobby?user=bob&presence=none").await;
    bob.send(&fragments.concat()).await;
    assert_eq!(bob.closed().await, 1009);
    let answer = server.ask("POST", "/api/rooms/lobby/messages").body(vec![b'1'; 1001]);
    assert_eq!(answer.send().await.error(), (413, "too_large".to_owned()));
}

#[tokio::test]
async fn a_frame_that_is_much_too_big_is_refused_and_the_close_frame_arrives() {
    let server = Server::start(&[]);
    let mut sender = server.raw("/ws/lobby?presence=none").await;
    // More than all buffers on the way hold: a server that stopped to read would reset.
    let sent = sender.send(&frame(TEXT, true, &vec![b'x'; 32 * 1024 * 1024])).await;
    assert_eq!(sender.closed().await, 1009, "everything sent: {sent}");

    let mut liar = server.raw("/ws/lobby?presence=none").await;
    liar.send(&[TEXT, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]).await;
    assert_eq!(liar.closed().await, 1009);
    let mut default = server.ws("/ws/lobby?presence=none").await;
    default.text(&"x".repeat(65_536)).await;
    assert_eq!(default.next().await["payload"]["code"], "not_json");
}

#[tokio::test]
async fn what_is_no_handshake_is_refused_and_says_why() {
    let server = Server::start(&[]);
    assert_eq!(server.get("/ws/lobby").await.error(), (400, "handshake".to_owned()));
    let old = server.ask("GET", "/ws/lobby");
    let old = old.header("Upgrade", "websocket").header("Connection", "Upgrade");
    let old = old.header("Sec-WebSocket-Version", "9").header("Sec-WebSocket-Key", "x");
    let refused = old.send().await;
    assert_eq!(refused.error(), (400, "handshake".to_owned()));
    assert_eq!(refused.header("sec-websocket-version"), Some("13"));
    assert_eq!(server.ask("POST", "/ws/lobby").send().await.error().0, 405);
    assert_eq!(server.get("/ws/a/b").await.error().0, 404);
    assert_eq!(server.get("/api/rooms").await.json()["rooms"], json!([]), "nobody came");
}

#[tokio::test]
async fn names_are_decoded_strictly() {
    let server = Server::start(&[]);
    let long = "é".repeat(255);
    for (path, name) in [
        ("/ws/a%2Fb", "a/b"),
        ("/ws/caf%C3%A9", "café"),
        ("/ws/%25%3F%23+%20", "%?#+ "),
        ("/ws/Abc", "Abc"),
        ("/ws/abc", "abc"),
        ("/ws/a:b!~", "a:b!~"),
        (&format!("/ws/{}", long.replace('é', "%c3%a9")), &long),
    ] {
        let mut ada = server.ws(path).await;
        assert_eq!(ada.next().await["payload"]["channel_name"], name);
        let shown = server.json(&path.replace("/ws/", "/api/rooms/")).await;
        assert_eq!(shown["channel_name"], name);
    }
    let too_long = format!("/ws/{}", "x".repeat(256));
    for path in ["/ws/", "/ws/%0A", "/ws/a%00", "/ws/%ff", "/ws/%", "/ws/%zz", "/ws/%C3", &too_long]
    {
        let refused = server.enter(path).send().await;
        assert_eq!(refused.error(), (400, "bad_room_name".to_owned()), "{path}");
        let refused = server.get(&path.replace("/ws/", "/api/rooms/")).await;
        assert_eq!(refused.error(), (400, "bad_room_name".to_owned()), "{path}");
    }
    for query in ["user=%ff", "user=%", "user=&user=", "info=%zz"] {
        let refused = server.enter(&format!("/ws/lobby?{query}")).send().await;
        assert_eq!(refused.error(), (400, "bad_query".to_owned()), "{query}");
    }
    for user in ["", "%0A", "__proto__", "constructor", "prototype", &"x".repeat(256)] {
        let refused = server.enter(&format!("/ws/lobby?user={user}")).send().await;
        assert_eq!(refused.error(), (400, "bad_user_id".to_owned()), "{user}");
    }
    for info in ["nonsense", "[]", "1", &format!("%7B%22a%22%3A%22{}%22%7D", "x".repeat(5000))] {
        let refused = server.enter(&format!("/ws/lobby?user=ada&info={info}")).send().await;
        assert_eq!(refused.error(), (400, "bad_info".to_owned()), "{info}");
    }
}

#[tokio::test]
async fn who_breaks_the_rules_leaves_the_room_before_the_close_frame_is_answered() {
    let server = Server::start(&[]);
    let mut raw = server.raw("/ws/lobby?user=ada&presence=none").await;
    server.json("/api/rooms/lobby").await;
    raw.send(&frame(BINARY, true, b"x")).await;
    assert_eq!(raw.closed().await, 1003);
    // The presence is gone although the client has not answered the close frame.
    until("the room is empty", async || {
        (server.get("/api/rooms/lobby").await.status == 404).then_some(())
    })
    .await;
    let mut library = server.ws("/ws/lobby?presence=none").await;
    library.say(Message::binary(vec![1])).await;
    assert_eq!(library.closed().await.0, 1003);
}
