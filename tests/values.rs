//! The values as what requests bring and answers have.

use actix_presence::{Info, Presence};
use actix_web::{
    App,
    test::{TestRequest, call_service, init_service, read_body},
    web::{self, Json},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A body that an app might have.
#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Body {
    Info { info: Info },
    Presence(Presence),
    Flat(Flat),
}

#[derive(Serialize, Deserialize)]
struct Flat {
    id: u32,
    #[serde(flatten)]
    info: Info,
}

async fn info(info: Json<Info>) -> Json<Info> {
    info
}

async fn body(body: Json<Body>) -> Json<Body> {
    body
}

#[actix::test]
async fn an_info_in_the_body_of_a_request_is_nested_at_most_32_deep() {
    let app = App::new().route("/info", web::post().to(info)).route("/body", web::post().to(body));
    let app = init_service(app).await;
    for depth in [32, 33, 120] {
        let info = (1..depth).fold(json!({"a": 1}), |inner, _| json!({ "a": inner }));
        let presence = json!({
            "channel_name": "01a225dbfb3b775db7d71f93ac2469df", "user": "ada", "info": info,
            "joined_at": "2026-11-29T05:51:43.419123Z", "kind": "presence",
        });
        let bodies = [
            ("/info", info.clone()),
            ("/body", json!({"kind": "info", "info": info})),
            ("/body", json!({"kind": "flat", "id": 1, "a": info["a"]})),
            ("/body", presence),
        ];
        for (path, body) in bodies {
            let request = TestRequest::post().uri(path).set_json(&body).to_request();
            let answer = call_service(&app, request).await;
            let taken = answer.status().is_success();
            let answer = read_body(answer).await;
            assert_eq!(taken, depth == 32, "{body}");
            if taken {
                assert_eq!(serde_json::from_slice::<Value>(&answer).unwrap(), body);
            } else {
                let said = str::from_utf8(&answer).unwrap();
                assert!(said.contains("nested at most 32 deep"), "{said}");
            }
        }
    }
}
