//! Who somebody is: the query of a newcomer, tokens, nobody.

use std::sync::Arc;

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use crate::harness::{Server, presence, success, until};

fn token(claims: &Value, secret: &str, algorithm: Algorithm) -> String {
    let key = EncodingKey::from_secret(secret.as_bytes());
    jsonwebtoken::encode(&Header::new(algorithm), claims, &key).unwrap()
}

fn signed(claims: &Value) -> String {
    token(claims, "s3cret", Algorithm::HS256)
}

fn in_an_hour() -> i64 {
    chrono::Utc::now().timestamp() + 3600
}

#[tokio::test]
async fn the_query_is_believed_of_this_machine_only() {
    let server = Server::start(&[]);
    let mut ada = server.ws("/ws/lobby?user=ada&info=%7B%22n%22%3A%22A%22%7D").await;
    let list = ada.sees(&["ada"], 0).await;
    assert_eq!(list["payload"]["members"][0]["info"], json!({"n": "A"}));
    let proxied = [("X-Forwarded-For", "127.0.0.1")];
    let _proxied = server.ws_with("/ws/lobby?user=eve", &proxied).await;
    ada.sees(&["ada"], 1).await;
    let _rebound = server.ws_with("/ws/lobby?user=eve", &[("Host", "evil.example")]).await;
    ada.sees(&["ada"], 2).await;
    let refused = server.enter("/ws/lobby?token=x").send().await;
    assert_eq!(refused.error(), (401, "no_secret".to_owned()));
}

#[tokio::test]
async fn a_server_that_others_can_reach_believes_no_query() {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let mut command = presence(&["serve", "--bind", "0.0.0.0:0"]);
    command.current_dir(directory.path());
    let server = Server::spawn(directory, command);
    server.logs("all clients are anonymous");
    let host = format!("127.0.0.1:{}", server.address().port());
    let mut ada = server.ws_with("/ws/lobby?user=ada&info=%7B%7D", &[("Host", &host)]).await;
    ada.sees(&[], 1).await;
    let local = server.ask("GET", "/api/rooms").header("Host", &host).send().await;
    assert_eq!(local.status, 200);
}

#[tokio::test]
async fn a_token_says_who_somebody_is_in_the_query_and_in_the_header() {
    let server = Server::start(&["--secret", "s3cret"]);
    let good = signed(&json!({"sub": "ada", "exp": in_an_hour(), "info": {"role": "boss"}}));
    let mut ada = server.ws(&format!("/ws/lobby?token={good}")).await;
    let list = ada.sees(&["ada"], 0).await;
    assert_eq!(list["payload"]["members"][0]["info"], json!({"role": "boss"}));
    let bearer = format!("Bearer {good}");
    let _again = server.ws_with("/ws/lobby", &[("Authorization", &bearer)]).await;
    ada.until(|frame| frame["payload"]["members"][0]["connections"] == 2).await;
    // The query's own word counts for nothing beside a token.
    let both = format!("/ws/other?token={good}&user=eve&info=%7B%7D");
    server.ws(&both).await.sees(&["ada"], 0).await;
    let anonymous = signed(&json!({"exp": in_an_hour()}));
    server.ws(&format!("/ws/third?token={anonymous}")).await.sees(&[], 1).await;
}

#[tokio::test]
async fn what_is_no_good_token_is_refused_with_401() {
    let server = Server::start(&["--secret", "s3cret"]);
    let exp = in_an_hour();
    let refused = async |token: &str| {
        let answer = server.enter(&format!("/ws/lobby?token={token}")).send().await;
        assert_eq!(answer.status, 401, "{}", answer.body);
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        answer.error().1
    };
    let claims = json!({"sub": "ada", "exp": exp});
    let none = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZGEiLCJleHAiOjk5OTk5OTk5OTl9.";
    for bad in [
        token(&claims, "another", Algorithm::HS256),
        token(&claims, "s3cret", Algorithm::HS512),
        signed(&json!({"sub": "ada", "exp": exp - 3600 - 1})),
        signed(&json!({"sub": "ada"})),
        signed(&json!({"sub": "ada", "exp": exp, "nbf": exp})),
        signed(&json!({"sub": "", "exp": exp})),
        signed(&json!({"sub": "__proto__", "exp": exp})),
        signed(&json!({"sub": "ada", "exp": exp, "info": []})),
        signed(&json!({"sub": "ada", "exp": exp, "rooms": "lobby"})),
        signed(&json!({"sub": "ada", "exp": exp, "rooms": null})),
        none.to_owned(),
        "nonsense".to_owned(),
        String::new(),
    ] {
        assert_eq!(refused(&bad).await, "bad_token", "{bad}");
    }
    for path in ["/ws/lobby", "/ws/lobby?user=ada"] {
        let answer = server.enter(path).send().await;
        assert_eq!(answer.error(), (401, "token_needed".to_owned()), "{path}");
    }
    let basic = server.enter("/ws/lobby").header("Authorization", "Basic YTpi").send().await;
    assert_eq!(basic.error().0, 401);
}

#[tokio::test]
async fn a_token_is_good_for_its_rooms_only() {
    let server = Server::start(&["--secret", "s3cret"]);
    let with = |rooms: Value| signed(&json!({"sub": "ada", "exp": in_an_hour(), "rooms": rooms}));
    let some = with(json!(["lobby", "team:*"]));
    for room in ["lobby", "team:", "team:red", "team:a%2Fb"] {
        server.ws(&format!("/ws/{room}?token={some}")).await.sees(&["ada"], 0).await;
    }
    for room in ["lobby2", "Lobby", "team", "teams", "other", "*"] {
        let answer = server.enter(&format!("/ws/{room}?token={some}")).send().await;
        assert_eq!(answer.error(), (403, "room_not_allowed".to_owned()), "{room}");
    }
    let (all, none) = (with(json!(["*"])), with(json!([])));
    server.ws(&format!("/ws/any?token={all}")).await.sees(&["ada"], 0).await;
    assert_eq!(server.enter(&format!("/ws/any?token={none}")).send().await.status, 403);
}

#[tokio::test]
async fn two_secrets_are_good_while_the_key_changes() {
    let server = Server::start(&["--secret", "new", "--secret", "s3cret"]);
    let claims = json!({"sub": "ada", "exp": in_an_hour()});
    for secret in ["new", "s3cret"] {
        let token = token(&claims, secret, Algorithm::HS256);
        server.ws(&format!("/ws/{secret}?token={token}")).await.sees(&["ada"], 0).await;
    }
    let third = token(&claims, "third", Algorithm::HS256);
    assert_eq!(server.enter(&format!("/ws/lobby?token={third}")).send().await.status, 401);
}

#[tokio::test]
async fn the_anonymous_are_let_in_where_that_is_allowed_but_bad_tokens_are_not() {
    let server = Server::start(&["--secret", "s3cret", "--allow-anonymous"]);
    let mut lurker = server.ws("/ws/lobby?user=ada").await;
    lurker.sees(&[], 1).await;
    assert_eq!(server.enter("/ws/lobby?token=nonsense").send().await.status, 401);
    let good = signed(&json!({"sub": "ada", "exp": in_an_hour()}));
    let _ada = server.ws(&format!("/ws/lobby?token={good}")).await;
    lurker.sees(&["ada"], 1).await;
}

#[tokio::test]
async fn the_keys_that_a_token_gives_stay_when_the_info_is_updated() {
    let server = Server::start(&["--secret", "s3cret"]);
    let info = json!({"role": "boss", "name": "Ada"});
    let good = signed(&json!({"sub": "ada", "exp": in_an_hour(), "info": info}));
    let mut ada = server.ws(&format!("/ws/lobby?token={good}")).await;
    ada.sees(&["ada"], 0).await;
    ada.json(json!({"type": "update", "info": {"role": "god", "mood": "fine"}})).await;
    let wanted = json!({"role": "boss", "name": "Ada", "mood": "fine"});
    ada.until(|frame| frame["payload"]["members"][0]["info"] == wanted).await;
    ada.json(json!({"type": "update", "info": {}})).await;
    ada.until(|frame| frame["payload"]["members"][0]["info"] == info).await;
}

#[tokio::test]
async fn the_token_command_makes_tokens_that_the_server_takes() {
    let server = Server::start(&["--secret", "s3cret"]);
    let make = |flags: &[&str]| {
        let base = ["token", "--user", "ada", "--secret", "s3cret"];
        success(&[base.as_slice(), flags].concat())
    };
    let plain = make(&[]);
    let mut ada = server.ws(&format!("/ws/lobby?token={plain}")).await;
    ada.sees(&["ada"], 0).await;
    let full = make(&["--room", "lobby", "--room", "team:*", "--info", r#"{"a":1}"#]);
    let _second = server.ws(&format!("/ws/team:red?token={full}")).await;
    let shown = server.json("/api/rooms/team:red").await;
    assert_eq!(shown["users"][0]["info"], json!({"a": 1}));
    assert_eq!(server.enter(&format!("/ws/other?token={full}")).send().await.status, 403);

    // Good for an hour unless said, and no longer than said.
    let claims = |token: &str| -> Value {
        let claims = jsonwebtoken::dangerous::insecure_decode::<Value>(token).unwrap().claims;
        assert_eq!(claims["sub"], "ada");
        claims
    };
    let left = claims(&plain)["exp"].as_i64().unwrap() - chrono::Utc::now().timestamp();
    assert!((3500..=3600).contains(&left), "{left}");
    let brief = make(&["--expires-in", "2s"]);
    until("the token expires", async || {
        let answer = server.get(&format!("/ws/lobby?token={brief}")).await;
        (answer.status == 401).then(|| assert_eq!(answer.error().1, "bad_token"))
    })
    .await;
}
