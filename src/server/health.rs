//! `GET /healthz` and `GET /readyz`.

use actix_web::{HttpResponse, http::StatusCode, web};
use serde_json::json;

use super::{api::reply, state::ServerState};
use crate::{GetStatus, Status};

/// The process answers; nothing else is asked.
pub(super) async fn alive() -> HttpResponse {
    reply(StatusCode::OK, &json!({"status": "ok"}))
}

/// Whether the server does all of its work, with the state of the database and the bus.
pub(super) async fn ready(state: web::Data<ServerState>) -> HttpResponse {
    let Ok(status) = state.ask(GetStatus).await else {
        // The registry has stopped, or does not get to answer.
        return reply(StatusCode::SERVICE_UNAVAILABLE, &json!({"status": "closing"}));
    };
    let Status { unwritten, database, lag, closing, .. } = status;
    let word = match (closing, database) {
        (true, _) => "closing",
        (false, Some(_)) => "degraded",
        (false, None) => "ready",
    };
    let database = match database {
        None => json!({"state": "ok", "unwritten": unwritten}),
        Some(reason) => {
            json!({"state": reason, "unwritten": unwritten, "lag_seconds": lag.as_secs_f64()})
        }
    };
    let code = if word == "ready" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    reply(code, &json!({"status": word, "database": database, "bus": {"state": "local"}}))
}
