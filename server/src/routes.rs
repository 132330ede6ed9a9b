//! Which routes there are, and the checks in front of `/api`.

use actix_cors::Cors;
use actix_web::{
    FromRequest, Handler, HttpResponse, Resource, Responder, ResponseError, Route, Scope,
    body::{EitherBody, MessageBody},
    dev::{ServiceFactory, ServiceRequest, ServiceResponse},
    http::{Method, StatusCode, header},
    middleware::{Next, from_fn},
    web,
};

use crate::{
    api, explain, guard, pages, refusals, response::ApiError, socket, state::ServerState, status,
};

const GET: &[Method] = &[Method::GET];
const READ: &[Method] = &[Method::GET, Method::HEAD];
const POST: &[Method] = &[Method::POST];
const DELETE: &[Method] = &[Method::DELETE];
const READ_AND_DELETE: &[Method] = &[Method::GET, Method::HEAD, Method::DELETE];

/// Mounts the routes of the server in an app or a scope.
///
/// An address that no route of this app or scope matches is then answered 404 as JSON; set another
/// `default_service` afterwards to change that. The pages at `/` and `/dashboard` load their assets
/// from the root, so they work only where the routes are mounted at the root.
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
    move |cfg| {
        cfg.app_data(web::Data::new(state))
            // actix-web tries patterns in this order: the most frequent requests come first.
            .service(
                resource("/socket/websocket", GET, socket::phoenix)
                    .wrap(from_fn(refusals::report_errors)),
            )
            .service(
                resource("/ws/{room:[^/]*}", GET, socket::json)
                    .wrap(from_fn(refusals::report_errors)),
            )
            .service(resource("/", READ, pages::index))
            .service(resource("/dashboard", READ, pages::dashboard))
            .service(resource("/assets/{name}", READ, pages::asset))
            .service(resource("/healthz", READ, status::healthz))
            .service(resource("/readyz", READ, status::readyz))
            .service(resource("/metrics", READ, status::metrics))
            .service(api_scope())
            .default_service(web::to(unknown_route));
    }
}

/// `/api`, behind the checks that every request to it passes.
fn api_scope() -> Scope<
    impl ServiceFactory<
        ServiceRequest,
        Config = (),
        Response = ServiceResponse<impl MessageBody>,
        Error = actix_web::Error,
        InitError = (),
    >,
> {
    let cors = Cors::default()
        // `check_origin` has refused the others.
        .allowed_origin_fn(|_, _| true)
        .allow_any_method()
        .allow_any_header()
        .expose_headers([header::ETAG])
        .max_age(600);
    web::scope("/api")
        .service(resource("/stats", READ, status::stats))
        .service(resource("/stats/live", GET, status::live_stats))
        .service(resource("/rooms", READ, api::list_rooms))
        .service(resource_to_delete("/rooms/{room:[^/]*}", api::show_room, api::close_room))
        .service(resource("/rooms/{room:[^/]*}/presences", READ, api::list_presences))
        .service(resource(
            "/rooms/{room:[^/]*}/presences/{id:[^/]*}/explain",
            READ,
            explain::explain,
        ))
        .service(resource("/rooms/{room:[^/]*}/messages", POST, api::publish))
        .service(resource("/rooms/{room:[^/]*}/users/{id:[^/]*}", DELETE, api::kick_from_room))
        .service(resource_to_delete("/users/{id:[^/]*}", api::find_user, api::kick_user))
        .service(resource("/users/{id:[^/]*}/messages", POST, api::publish_to_user))
        .service(resource("/connections/{id:[^/]*}", DELETE, api::kick))
        .service(resource("/connections/{id:[^/]*}/messages", POST, api::publish_to_connection))
        .default_service(web::to(unknown_route))
        // The middleware that is wrapped last sees a request first.
        .wrap(from_fn(check_credentials))
        .wrap(cors)
        .wrap(from_fn(check_origin))
}

/// A resource with one handler, which answers other methods with 405.
fn resource<F, Args>(path: &str, methods: &'static [Method], handler: F) -> Resource
where
    F: Handler<Args>,
    Args: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    with_routes(web::resource(path), methods, handler).default_service(no_other_than(methods))
}

/// A resource that is read by one handler and deleted by another.
fn resource_to_delete<F, G, Args, Output>(path: &str, read: F, delete: G) -> Resource
where
    F: Handler<Args, Output = Output>,
    G: Handler<Args, Output = Output>,
    Args: FromRequest + 'static,
    Output: Responder + 'static,
{
    let resource = with_routes(web::resource(path), READ, read);
    with_routes(resource, DELETE, delete).default_service(no_other_than(READ_AND_DELETE))
}

fn with_routes<F, Args>(resource: Resource, methods: &[Method], handler: F) -> Resource
where
    F: Handler<Args>,
    Args: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    methods.iter().fold(resource, |resource, method| {
        resource.route(web::method(method.clone()).to(handler.clone()))
    })
}

fn no_other_than(methods: &'static [Method]) -> Route {
    web::to(move || async move { method_not_allowed(methods) })
}

fn method_not_allowed(methods: &[Method]) -> HttpResponse {
    let allow = methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
    let message = format!("this address accepts {allow}");
    let error = ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message);
    let mut response = error.error_response();
    if let Ok(allow) = allow.parse() {
        response.headers_mut().insert(header::ALLOW, allow);
    }
    response
}

async fn unknown_route() -> HttpResponse {
    ApiError::unknown_route().error_response()
}

async fn check_credentials<B: MessageBody + 'static>(
    req: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, actix_web::Error> {
    checked(guard::check_credentials, req, next).await
}

async fn check_origin<B: MessageBody + 'static>(
    req: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, actix_web::Error> {
    checked(guard::check_api_origin, req, next).await
}

async fn checked<B: MessageBody + 'static>(
    check: fn(&actix_web::HttpRequest, &ServerState) -> Result<(), ApiError>,
    req: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, actix_web::Error> {
    let outcome = match req.app_data::<web::Data<ServerState>>() {
        Some(state) => check(req.request(), state),
        None => Err(ApiError::unavailable("not_configured", "the routes have no state")),
    };
    match outcome {
        Ok(()) => Ok(next.call(req).await?.map_into_left_body()),
        Err(error) => {
            refusals::report(req.request(), &error);
            Ok(req.error_response(error).map_into_right_body())
        }
    }
}
