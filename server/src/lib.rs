//! A presence server for [actix-presence](actix_presence): its HTTP routes to mount in an app, and the
//! binary `presence`.
//!
//! [`configure`] mounts the routes in an app of one's own, next to the app's routes or in a scope; the
//! binary serves the same routes and has a flag for each option (`presence serve --help`).
//!
//! # Features
//!
//! - `cli` (default): the binary, with its flags, log and signals
//! - `sqlite` (default): databases in a file
//! - `postgres`: databases that several nodes share; needs the system's libpq
//! - `redis`: several nodes (implies `postgres`)
#![deny(missing_docs)]

mod address;
mod api;
#[cfg(feature = "cli")]
mod commands;
#[cfg(feature = "cli")]
mod connections;
#[cfg(feature = "cli")]
mod descriptors;
#[cfg(feature = "cli")]
mod duration;
mod error;
#[cfg(feature = "cli")]
mod flags;
mod guard;
mod health;
mod identity;
#[cfg(feature = "cli")]
mod listen;
#[cfg(feature = "cli")]
mod log;
#[cfg(feature = "cli")]
mod memory;
mod metrics;
mod origin;
mod pages;
mod ranking;
mod refusals;
#[cfg(feature = "cli")]
mod serve;
mod socket;
mod state;
mod token;

use actix_web::{
    FromRequest, Handler, HttpRequest, HttpResponse, Resource, Responder, ResponseError,
    http::{Method, StatusCode, header},
    middleware::from_fn,
    web,
};

#[cfg(feature = "cli")]
pub use self::commands::main;
use self::error::ApiError;
pub use self::{
    metrics::{Metrics, MetricsTaken},
    origin::{AllowedOrigin, InvalidOrigin},
    state::{ServerOptions, ServerState},
    token::{EmptySecret, Secret},
};

/// Mounts the routes of the server in an app or a scope.
///
/// What no route of the app or scope takes is then answered 404 as JSON; set another
/// `default_service` afterwards if that is not wanted. The pages at `/` and
/// `/dashboard` expect to be at the root.
///
/// ```
/// use actix_presence::PresenceConfig;
/// use actix_web::{App, HttpServer, web};
/// use presence_server::{ServerOptions, ServerState, configure};
///
/// # actix::System::new().block_on(async {
/// let presence = PresenceConfig::new("sqlite::memory:").start()?;
/// let state = ServerState::new(&presence, ServerOptions::default());
/// let server = HttpServer::new(move || {
///     App::new().service(web::scope("/presence").configure(configure(state.clone())))
/// });
/// # drop(server);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
pub fn configure(state: ServerState) -> impl FnOnce(&mut web::ServiceConfig) {
    const READ: [Method; 2] = [Method::GET, Method::HEAD];
    move |cfg| {
        cfg.app_data(web::Data::new(state))
            // They are tried in this order, and patterns cost something: what is asked for most is first.
            .service(
                resource("/socket/websocket", &[Method::GET], socket::phoenix)
                    .wrap(from_fn(refusals::report_errors)),
            )
            .service(
                resource("/ws/{room:[^/]*}", &[Method::GET], socket::enter)
                    .wrap(from_fn(refusals::report_errors)),
            )
            .service(resource("/", &READ, pages::index))
            .service(resource("/dashboard", &READ, pages::dashboard))
            .service(resource("/assets/{name}", &READ, pages::asset))
            .service(resource("/healthz", &READ, health::alive))
            .service(resource("/readyz", &READ, health::ready))
            .service(resource("/metrics", &READ, metrics::metrics))
            .service(api::scope())
            .default_service(web::to(not_found));
    }
}

/// A resource with one handler; other methods are answered 405.
fn resource<F, Args>(path: &str, methods: &'static [Method], handler: F) -> Resource
where
    F: Handler<Args>,
    Args: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    let resource = methods.iter().fold(web::resource(path), |resource, method| {
        resource.route(web::method(method.clone()).to(handler.clone()))
    });
    resource.default_service(web::to(move || async move { not_allowed(methods) }))
}

fn not_allowed(methods: &[Method]) -> HttpResponse {
    let allow = methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
    let error = ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        format!("this address takes {allow}"),
    );
    let mut response = error.error_response();
    if let Ok(allow) = allow.parse() {
        response.headers_mut().insert(header::ALLOW, allow);
    }
    response
}

async fn not_found(_: HttpRequest) -> HttpResponse {
    ApiError::not_found("not_found", "there is nothing at this address").error_response()
}
