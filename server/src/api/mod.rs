//! `/api`: who is where, for the app's backend.

mod actions;
mod cursor;
mod explain;
mod presences;
mod rooms;
mod stats;

use actix_cors::Cors;
use actix_web::{
    HttpResponse, Scope,
    body::{EitherBody, MessageBody},
    dev::{ServiceFactory, ServiceRequest, ServiceResponse},
    http::{Method, StatusCode, header},
    middleware::{Next, from_fn},
    web,
};
use serde::Serialize;

use super::{address::Query, error::ApiError, guard, refusals, resource, state::ServerState};

/// Entries in a page of a list, unless the request says how many, and at most.
const PAGE: usize = 100;
const MAX_PAGE: usize = 1000;

/// The routes, behind the checks that no request passes by.
pub(super) fn scope() -> Scope<
    impl ServiceFactory<
        ServiceRequest,
        Config = (),
        Response = ServiceResponse<impl MessageBody>,
        Error = actix_web::Error,
        InitError = (),
    >,
> {
    let cors = Cors::default()
        // Whose page it is was checked before.
        .allowed_origin_fn(|_, _| true)
        .allow_any_method()
        .allow_any_header()
        .expose_headers([header::ETAG])
        .max_age(600);
    web::scope("/api")
        .service(resource("/stats", &[Method::GET, Method::HEAD], stats::stats))
        .service(resource("/stats/live", &[Method::GET], stats::live))
        .service(resource("/rooms", &[Method::GET, Method::HEAD], rooms::list))
        .service(resource("/rooms/{room:[^/]*}", &[Method::GET, Method::HEAD], rooms::show))
        .service(resource(
            "/rooms/{room:[^/]*}/presences",
            &[Method::GET, Method::HEAD],
            presences::list,
        ))
        .service(resource(
            "/rooms/{room:[^/]*}/presences/{id:[^/]*}/explain",
            &[Method::GET, Method::HEAD],
            explain::explain,
        ))
        .service(resource("/rooms/{room:[^/]*}/messages", &[Method::POST], actions::publish))
        .service(resource("/users/{id:[^/]*}", &[Method::GET, Method::HEAD], actions::where_is))
        .service(resource("/connections/{id:[^/]*}", &[Method::DELETE], actions::kick))
        .default_service(web::to(super::not_found))
        // The last one is the first to see a request.
        .wrap(from_fn(authorize))
        .wrap(cors)
        .wrap(from_fn(from_a_page))
}

async fn authorize<B: MessageBody + 'static>(
    req: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, actix_web::Error> {
    let checked = match req.app_data::<web::Data<ServerState>>() {
        Some(state) => guard::check(req.request(), state),
        None => Err(ApiError::unavailable("not_configured", "the routes have no state")),
    };
    pass(checked, req, next).await
}

async fn from_a_page<B: MessageBody + 'static>(
    req: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, actix_web::Error> {
    let checked = match req.app_data::<web::Data<ServerState>>() {
        Some(state) => guard::check_api_page(req.request(), state),
        None => Ok(()),
    };
    pass(checked, req, next).await
}

async fn pass<B: MessageBody + 'static>(
    checked: Result<(), ApiError>,
    req: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, actix_web::Error> {
    match checked {
        Ok(()) => Ok(next.call(req).await?.map_into_left_body()),
        Err(error) => {
            refusals::report(req.request(), &error);
            Ok(req.error_response(error).map_into_right_body())
        }
    }
}

/// An answer that nobody keeps.
pub(super) fn reply(status: StatusCode, body: &impl Serialize) -> HttpResponse {
    HttpResponse::build(status)
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .json(body)
}

/// How many entries a request wants.
fn limit(query: &Query) -> Result<usize, ApiError> {
    let Some(limit) = query.get("limit")? else { return Ok(PAGE) };
    let digits = limit.bytes().all(|b| b.is_ascii_digit());
    match limit.parse() {
        Ok(limit) if digits && (1..=MAX_PAGE).contains(&limit) => Ok(limit),
        _ => Err(ApiError::bad_request(
            "bad_limit",
            format!("`limit` is a number from 1 to {MAX_PAGE}"),
        )),
    }
}

/// Cuts a list for which one entry more than `limit` was asked, and says whether there is more.
fn cut<T>(mut list: Vec<T>, limit: usize) -> (Vec<T>, bool) {
    let more = list.len() > limit;
    list.truncate(limit);
    (list, more)
}
