//! People who come between two lists: they know the room at once, and cause no list for the others.

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::harness::{Dialect, Listener, Server, Ws};

/// In so many attempts the server gets to hear what is wanted within one window at least once, however
/// busy the machine is.
const ATTEMPTS: usize = 200;

/// Somebody who does not listen.
async fn silent(server: &Server, user: &str) -> Ws {
    server.ws(&format!("/ws/room?presence=none&user={user}")).await
}

/// Opens the window: a list has just gone out when this returns.
async fn list_goes_out(server: &Server, listener: &mut Listener, user: &str) -> Ws {
    let walker = silent(server, user).await;
    listener.until(|room| room.knows(user)).await;
    walker
}

/// Has something change, so that there is a list after whatever was before, and waits for it.
async fn next_list(walker: &mut Ws, user: &str, listeners: &mut [&mut Listener]) {
    walker.json(json!({"type": "update", "info": {"last": true}})).await;
    let is_last = |entry: &Value| entry["last"] == true || entry["info"]["last"] == true;
    for listener in listeners {
        listener.until(|room| room.entry(user).is_some_and(is_last)).await;
    }
}

async fn a_state_comes_while_a_window_is_open(dialect: Dialect) {
    let server = Server::start(&[]);
    let mut witness = Listener::enter(&server, Dialect::Diff, "room", "witness").await;
    let mut members = Vec::new();
    for attempt in 0..ATTEMPTS {
        let (user, newcomer) = (format!("walker{attempt}"), format!("newcomer{attempt}"));
        let mut walker = list_goes_out(&server, &mut witness, &user).await;
        let before = witness.version.unwrap();
        let mut entered = Listener::enter(&server, dialect, "room", &newcomer).await;
        let state = entered.version.unwrap_or(before + 1);
        assert_eq!(state, before + 1);
        if dialect == Dialect::Count {
            assert_eq!(entered.users, 2 * attempt as u64 + 3);
        } else {
            assert!(entered.knows(&newcomer) && entered.knows(&user), "{:?}", entered.frames);
        }

        let read = witness.frames.len();
        next_list(&mut walker, &user, &mut [&mut witness]).await;
        let first = &witness.frames[read];
        assert!(witness.knows(&newcomer));
        // The version of the newcomer's state was listed to nobody else.
        let is_covered = witness.span(first).unwrap() == (before, before + 2);
        if dialect == Dialect::Phoenix && is_covered {
            let diff = entered.next().await;
            assert_eq!(entered.span(&diff), Some((state, state + 1)), "from the newcomer's state");
        }
        if is_covered {
            return;
        }
        members.push((walker, entered));
    }
    panic!("a list went out for each newcomer");
}

#[tokio::test]
async fn the_first_frame_of_a_diff_listener_is_the_state_while_others_wait_for_a_list() {
    a_state_comes_while_a_window_is_open(Dialect::Diff).await;
}

#[tokio::test]
async fn the_first_frame_of_a_count_listener_is_the_count_while_others_wait_for_a_list() {
    a_state_comes_while_a_window_is_open(Dialect::Count).await;
}

#[tokio::test]
async fn the_first_frame_of_a_full_listener_has_it_in_the_list_while_others_wait_for_one() {
    a_state_comes_while_a_window_is_open(Dialect::Full).await;
}

#[tokio::test]
async fn the_state_of_a_phoenix_client_follows_the_reply_while_others_wait_for_a_list() {
    a_state_comes_while_a_window_is_open(Dialect::Phoenix).await;
}

async fn nobody_stays_who_came_and_went_between_two_lists(dialect: Dialect) {
    let server = Server::start(&[]);
    let mut witness = Listener::enter(&server, Dialect::Diff, "room", "witness").await;
    let mut members = Vec::new();
    for attempt in 0..ATTEMPTS {
        let [user, passer, newcomer] =
            ["walker", "passer", "newcomer"].map(|name| format!("{name}{attempt}"));
        let mut walker = list_goes_out(&server, &mut witness, &user).await;
        let read = witness.frames.len();
        let passing = silent(&server, &passer).await;
        let mut entered = Listener::enter(&server, dialect, "room", &newcomer).await;
        assert!(entered.knows(&passer), "its state has whoever came before");
        passing.close(Some(1000)).await;
        next_list(&mut walker, &user, &mut [&mut witness, &mut entered]).await;

        let rest = server.json("/api/rooms/room").await;
        let rest = rest["users"].as_array().unwrap().iter();
        let rest = rest.map(|user| (user["id"].as_str().unwrap(), user["connections"].as_u64()));
        let rest = rest.map(|(user, connections)| (user, connections.unwrap())).collect();
        assert_eq!(witness.connections(), rest);
        assert_eq!(entered.connections(), rest);
        assert!(!entered.knows(&passer));
        let heard =
            |frames: &[Value]| frames.iter().any(|frame| frame.to_string().contains(&passer));
        if !heard(&witness.frames[read..]) {
            // Nobody else has heard of it at all.
            assert!(heard(&entered.frames[1..]), "the newcomer has to hear that it has left");
            return;
        }
        members.push((walker, entered));
    }
    panic!("a list went out for whoever passed");
}

#[tokio::test]
async fn nobody_stays_with_a_diff_listener_who_came_before_its_state_and_went_before_the_next_list()
{
    nobody_stays_who_came_and_went_between_two_lists(Dialect::Diff).await;
}

#[tokio::test]
async fn nobody_stays_with_a_phoenix_client_who_came_before_its_state_and_went_before_the_next_list()
 {
    nobody_stays_who_came_and_went_between_two_lists(Dialect::Phoenix).await;
}

#[tokio::test]
async fn four_hundred_that_come_at_once_end_with_the_same_view_in_forty_frames_at_most() {
    const CLIENTS: usize = 400;
    const FRAMES: usize = 40;
    let server = Server::start(&[]);
    let enter = async |n: usize| {
        let dialect = Dialect::ALL[n % Dialect::ALL.len()];
        (dialect, Listener::open(&server, dialect, "room", &format!("u{n:03}")).await)
    };
    // Nobody takes the time to understand a frame before all have come: they would come later.
    let mut clients = join_all((0..CLIENTS).map(enter)).await;
    for (_, client) in &mut clients {
        client.until(|room| room.users == CLIENTS as u64).await;
    }
    let (_, first) = &clients[0];
    assert_eq!(first.connections().len(), CLIENTS);
    for (dialect, client) in &clients {
        assert_ne!(client.kind(&client.frames[0]), "presence_diff");
        let frames = client.frames.len();
        assert!(frames <= FRAMES, "{frames} frames for one of {dialect:?}");
        let version = client.version.unwrap_or(CLIENTS as u64);
        assert_eq!(version, CLIENTS as u64, "one for each join");
        if *dialect != Dialect::Count {
            assert_eq!(client.connections(), first.connections(), "{dialect:?}");
        }
    }
}
