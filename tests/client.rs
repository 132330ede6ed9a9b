//! The client of the registry, in handlers and elsewhere.

mod common;
use actix_presence::{
    testing::{MemoryDatabase, MemoryHub},
    *,
};
use actix_web::{
    App, ResponseError,
    dev::{Service, ServiceResponse},
    http::StatusCode,
    test as http, web,
};
use common::{Harness, room, secs, user};

/// How many are in the lobby.
async fn count(presence: PresenceClient) -> Result<String, PresenceError> {
    Ok(presence.occupancy(&room("lobby")).await?.connections.to_string())
}

async fn answer(
    app: &impl Service<actix_http::Request, Response = ServiceResponse, Error = actix_web::Error>,
) -> (StatusCode, String) {
    let response =
        http::call_service(app, http::TestRequest::get().uri("/count").to_request()).await;
    let status = response.status();
    let body = http::read_body(response).await;
    (status, String::from_utf8_lossy(&body).into_owned())
}

macro_rules! app {
    ($($data:expr)?) => {
        http::init_service(App::new()$(.app_data($data))?.route("/count", web::get().to(count))).await
    };
}

#[actix::test]
async fn a_handler_takes_the_client_in_every_form_in_which_an_app_may_have_it() {
    let t = Harness::new().await;
    let _ada = t.enter("lobby", Some("ada")).await;
    let one = (StatusCode::OK, "1".to_owned());
    assert_eq!(answer(&app!(t.presence.client())).await, one);
    assert_eq!(answer(&app!(web::Data::new(t.presence.client()))).await, one);
    assert_eq!(answer(&app!(t.presence.clone())).await, one);
    assert_eq!(answer(&app!(web::Data::new(t.presence.clone()))).await, one);
}

#[actix::test]
async fn an_app_without_a_client_answers_500_and_tells_the_world_no_more() {
    let (status, body) = answer(&app!()).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(body, "the app is not configured correctly; its log says more");
}

#[actix::test]
async fn a_registry_that_has_ended_is_503() {
    let t = Harness::new().await;
    let app = app!(t.presence.client());
    let client = t.presence.client();
    t.presence.shutdown(secs(5)).await.unwrap();
    let ended = (StatusCode::SERVICE_UNAVAILABLE, "the presence system has ended".to_owned());
    assert_eq!(answer(&app).await, ended);
    assert!(matches!(client.status().await, Err(PresenceError::Ended)));
    assert!(matches!(client.flush().await, Err(PresenceError::Ended)));
    assert!(matches!(client.kick(Kick::User(user("ada"))).await, Err(PresenceError::Ended)));
}

#[actix::test]
async fn a_question_that_the_database_does_not_answer_is_503_and_says_why() {
    let (database, hub) = (MemoryDatabase::new(), MemoryHub::new());
    let reader = database.store();
    let link = reader.link();
    let presence = PresenceConfig::default()
        .start_shared(Box::new(database.store()), Box::new(reader), Box::new(hub.bus()))
        .unwrap();
    link.cut();
    let error = presence.list_rooms(None, 10).await.unwrap_err();
    assert!(matches!(error, PresenceError::Query(QueryError::Database { .. })), "{error:?}");
    assert_eq!(error.status_code(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(error.to_string().ends_with(": the link is cut"), "{error}");
}

#[actix::test]
async fn every_message_that_needs_no_actor_is_a_method() {
    let t = Harness::new().await;
    let (lobby, ada) = (room("lobby"), user("ada"));
    let session = t.enter("lobby", Some("ada")).await;
    let client = t.presence.client();

    let snapshot = client.snapshot(&lobby).await.unwrap().unwrap();
    assert_eq!(snapshot.occupancy(), client.occupancy(&lobby).await.unwrap());
    assert!(client.snapshot(&room("elsewhere")).await.unwrap().is_none());
    assert_eq!(client.where_is(&ada).await.unwrap(), [(lobby.clone(), 1)]);
    let rooms = client.list_rooms(None, 10).await.unwrap();
    assert_eq!(rooms.len(), 1);
    assert!(client.list_rooms(Some(&rooms[0].room), 10).await.unwrap().is_empty());
    let presences = client.list_presences(&lobby, None, 10).await.unwrap().unwrap();
    assert_eq!(presences[0].presence.connection, session.id);
    let after = Some(&presences[0].presence);
    assert!(client.list_presences(&lobby, after, 10).await.unwrap().unwrap().is_empty());
    assert!(client.explain(&lobby, session.id).await.unwrap().is_some());
    assert_eq!(client.status().await.unwrap().connections, 1);

    assert_eq!(client.publish(Publish::new(lobby.clone(), "hello")).await.unwrap(), 1);
    let stranger = Publish::new(lobby.clone(), "hello").sent_by(ConnectionId::new());
    let refused = client.publish(stranger).await.unwrap_err();
    assert!(matches!(refused, PresenceError::Publish(PublishError::NotAMember)), "{refused:?}");
    assert_eq!(refused.status_code(), StatusCode::CONFLICT);
    let info = Info::new(serde_json::json!({ "status": "away" })).unwrap();
    assert!(client.update_info(&lobby, session.id, info).await.unwrap());
    client.flush().await.unwrap();
    assert_eq!(client.prune_presences(None).await.unwrap().removed(), 0);
    assert_eq!(client.prune_rooms().await.unwrap(), 0);

    assert!(t.leave(&session, "lobby").await);
    assert_eq!(client.kick(Kick::User(ada)).await.unwrap().connections, 0);
    assert_eq!(client.close_room(&lobby).await.unwrap().connections, 0);
}

#[actix::test]
async fn a_join_that_would_be_refused_is_403() {
    let t = Harness::with("sqlite::memory:", |config| {
        config.authorize(|room, user, _| match (room.as_str(), user) {
            ("staff", None) => Decision::deny("staff only"),
            _ => Decision::Allow,
        })
    })
    .await;
    let admit = |name| Admit { room: room(name), user: None, info: Info::EMPTY, session: None };
    t.presence.admit(admit("lobby")).await.unwrap();
    let refused = t.presence.admit(admit("staff")).await.unwrap_err();
    assert_eq!(refused.to_string(), "not allowed: staff only");
    assert_eq!(refused.status_code(), StatusCode::FORBIDDEN);
}

#[actix::test]
async fn a_value_of_the_apps_own_is_published_as_json() {
    #[derive(serde::Serialize)]
    struct Build {
        number: u32,
    }
    let t = Harness::new().await;
    let mut raw = t.enter("lobby", None).await;
    let of_a_type = Payload::of(&Build { number: 7 }).unwrap();
    t.presence.publish(Publish::json(room("lobby"), of_a_type)).await.unwrap();
    let value = serde_json::json!({ "number": 8 });
    t.presence.publish(Publish::json(room("lobby"), value.clone())).await.unwrap();
    t.presence.publish(Publish::event(room("lobby"), "build", value)).await.unwrap();
    assert_eq!(raw.frames().await, [r#"{"number":7}"#, r#"{"number":8}"#, r#"{"number":8}"#]);
}

#[test]
fn errors_that_a_handler_meets_are_answers_with_fitting_statuses() {
    let bad = StatusCode::BAD_REQUEST;
    assert_eq!(RoomName::new("").unwrap_err().status_code(), bad);
    assert_eq!(Info::parse("{").unwrap_err().status_code(), bad);
    assert_eq!("x".parse::<ConnectionId>().unwrap_err().status_code(), bad);
    assert_eq!("x".parse::<Epoch>().unwrap_err().status_code(), bad);
    assert_eq!(check_payload("1e999").unwrap_err().status_code(), bad);
    assert_eq!(PublishError::NotAMember.status_code(), StatusCode::CONFLICT);
    for (error, status) in [
        (JoinError::Withdrawn, StatusCode::SERVICE_UNAVAILABLE),
        (JoinError::ShuttingDown, StatusCode::SERVICE_UNAVAILABLE),
        (JoinError::Limit(LimitReached::RoomFull { limit: 1 }), StatusCode::FORBIDDEN),
        (JoinError::Denied { reason: "staff only".into() }, StatusCode::FORBIDDEN),
    ] {
        assert_eq!(error.status_code(), status, "{error}");
    }
    assert_eq!(QueryError::Timeout.status_code(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(FlushError::Stalled.status_code(), StatusCode::SERVICE_UNAVAILABLE);
}

#[test]
fn how_many_were_kicked_is_encoded_as_in_the_api() {
    let kicked: Kicked = serde_json::from_str(r#"{"connections":2}"#).unwrap();
    assert_eq!(serde_json::to_string(&kicked).unwrap(), r#"{"connections":2}"#);
    let partial: Kicked = serde_json::from_str(r#"{"connections":0,"partial":true}"#).unwrap();
    assert_eq!(serde_json::to_string(&partial).unwrap(), r#"{"connections":0,"partial":true}"#);
}
