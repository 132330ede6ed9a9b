//! Which routes there are, and the checks in front of `/api`.
//!
//! Each address is a resource of its own that carries the state, so that nothing is set for the app around
//! it, and what no route matches is the app's business.

use actix_cors::Cors;
use actix_web::{
    FromRequest, Handler, HttpResponse, Resource, Responder, ResponseError, Route,
    body::{EitherBody, MessageBody},
    dev::{HttpServiceFactory, ServiceRequest, ServiceResponse},
    http::{Method, StatusCode, header},
    middleware::{Next, from_fn},
    web::{self, ServiceConfig},
};

use crate::{
    api, explain, guard, pages, refusals, response::ApiError, socket, state::ServerState, status,
};

const GET: &[Method] = &[Method::GET];
const READ: &[Method] = &[Method::GET, Method::HEAD];
const POST: &[Method] = &[Method::POST];
const DELETE: &[Method] = &[Method::DELETE];
const READ_AND_DELETE: &[Method] = &[Method::GET, Method::HEAD, Method::DELETE];

/// Mounts all routes of the server in an app or a scope: [sockets](configure_sockets), the
/// [API](configure_api), [pages](configure_pages) and [health](configure_health).
///
/// In a scope, such as `/realtime`, all addresses begin with its prefix and nothing is in the way of the
/// app's own. At the root the routes that were registered first win, so register an app's own `/` or
/// `/healthz` before. Addresses that no route matches are answered by the app's default service.
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
///     App::new()
///         .route("/", web::get().to(async || "the app's own"))
///         .service(web::scope("/realtime").configure(configure(state.clone())))
/// });
/// # drop(server);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
pub fn configure(state: ServerState) -> impl FnOnce(&mut ServiceConfig) {
    move |cfg| {
        // actix-web tries patterns in this order: the most frequent requests come first.
        configure_sockets(state.clone())(cfg);
        configure_pages(cfg);
        configure_health(state.clone())(cfg);
        configure_api(state)(cfg);
    }
}

/// Mounts the WebSockets in an app or a scope: `/ws/{room}` for JSON, and `/socket/websocket` for Phoenix
/// clients.
///
/// ```
/// use actix_presence::PresenceConfig;
/// use actix_web::{App, HttpServer, web};
/// use presence_server::{ServerOptions, ServerState, configure_api, configure_sockets};
///
/// # actix::System::new().block_on(async {
/// let presence = PresenceConfig::new("sqlite::memory:").start()?;
/// let state = ServerState::new(&presence, ServerOptions::default());
/// // `/live/ws/{room}` for everybody, `/internal/api/…` for backends, and no pages.
/// let server = HttpServer::new(move || {
///     App::new()
///         .service(web::scope("/live").configure(configure_sockets(state.clone())))
///         .service(web::scope("/internal").configure(configure_api(state.clone())))
/// });
/// # drop(server);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
pub fn configure_sockets(state: ServerState) -> impl FnOnce(&mut ServiceConfig) {
    move |cfg| {
        let routes = Routes::new(state);
        cfg.service(routes.socket("/socket/websocket", socket::phoenix))
            .service(routes.socket("/ws/{room:[^/]*}", socket::json));
    }
}

/// Mounts the HTTP API in an app or a scope: `/api/rooms` and the other addresses below `/api` that
/// `docs/http-api.md` lists, behind the checks of origin and [key](crate::ServerOptions::api_key). An
/// app's own addresses below `/api` stay its own.
///
/// See [`configure_sockets`] for an example.
pub fn configure_api(state: ServerState) -> impl FnOnce(&mut ServiceConfig) {
    move |cfg| {
        let routes = Routes::new(state);
        cfg.service(routes.api("/stats", READ, status::stats))
            .service(routes.api("/stats/live", GET, status::live_stats))
            .service(routes.api("/rooms", READ, api::list_rooms))
            .service(routes.api_to_delete("/rooms/{room:[^/]*}", api::show_room, api::close_room))
            .service(routes.api("/rooms/{room:[^/]*}/presences", READ, api::list_presences))
            .service(routes.api(
                "/rooms/{room:[^/]*}/presences/{id:[^/]*}/explain",
                READ,
                explain::explain,
            ))
            .service(routes.api("/rooms/{room:[^/]*}/messages", POST, api::publish))
            .service(routes.api(
                "/rooms/{room:[^/]*}/users/{id:[^/]*}",
                DELETE,
                api::kick_from_room,
            ))
            .service(routes.api_to_delete("/users/{id:[^/]*}", api::find_user, api::kick_user))
            .service(routes.api("/users/{id:[^/]*}/messages", POST, api::publish_to_user))
            .service(routes.api("/connections/{id:[^/]*}", DELETE, api::kick))
            .service(routes.api(
                "/connections/{id:[^/]*}/messages",
                POST,
                api::publish_to_connection,
            ));
    }
}

/// Mounts the pages in an app or a scope: `/` to try the rooms with, `/dashboard`, and their assets below
/// `/assets`.
///
/// They use the sockets, the API and the health that are mounted beside them, in the same scope.
///
/// Not behind [`NormalizePath::trim`](actix_web::middleware::NormalizePath::trim): it takes away the slash
/// that the page's address needs, and the redirect to it never ends; nor behind `TrailingSlash::Always`, which adds
/// one to all other addresses. `TrailingSlash::MergeOnly` is fine.
///
/// ```
/// use actix_web::{App, web};
/// use presence_server::configure_pages;
///
/// let app = App::new().service(web::scope("/realtime").configure(configure_pages));
/// # drop(app);
/// ```
pub fn configure_pages(cfg: &mut ServiceConfig) {
    cfg.service(resource("/", READ, pages::index))
        // A scope's own address; with a slash at its end the page finds what is beside it.
        .service(resource("", READ, pages::add_slash))
        .service(resource("/dashboard", READ, pages::dashboard))
        .service(resource("/assets/{name}", READ, pages::asset));
}

/// Mounts health and metrics in an app or a scope: `/healthz`, `/readyz` and `/metrics`.
///
/// ```
/// use actix_presence::PresenceConfig;
/// use actix_web::{App, HttpServer, web};
/// use presence_server::{ServerOptions, ServerState, configure_health};
///
/// # actix::System::new().block_on(async {
/// let presence = PresenceConfig::new("sqlite::memory:").start()?;
/// let state = ServerState::new(&presence, ServerOptions::default());
/// let server = HttpServer::new(move || {
///     App::new().service(web::scope("/presence").configure(configure_health(state.clone())))
/// });
/// # drop(server);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
pub fn configure_health(state: ServerState) -> impl FnOnce(&mut ServiceConfig) {
    move |cfg| {
        let routes = Routes::new(state);
        cfg.service(routes.open("/healthz", READ, status::healthz))
            .service(routes.open("/readyz", READ, status::readyz))
            .service(routes.open("/metrics", READ, status::metrics));
    }
}

/// Answers all other addresses, as JSON, those below `/api` after its checks: for the server, which has no
/// app around it. To be mounted last.
#[cfg(feature = "cli")]
pub(crate) fn configure_unknown(state: ServerState) -> impl FnOnce(&mut ServiceConfig) {
    move |cfg| {
        let routes = Routes::new(state);
        let unknown = || web::to(async || ApiError::unknown_route().error_response());
        let api = web::scope("/api").app_data(routes.state.clone()).default_service(unknown());
        cfg.service(
            // The middleware that is wrapped last sees a request first.
            api.wrap(from_fn(check_credentials)).wrap(cors()).wrap(from_fn(check_origin)),
        )
        .default_service(unknown());
    }
}

/// Makes resources that carry the state.
struct Routes {
    state: web::Data<ServerState>,
}

impl Routes {
    fn new(state: ServerState) -> Self {
        Self { state: web::Data::new(state) }
    }

    /// A WebSocket.
    fn socket<F, Args>(&self, path: &str, handler: F) -> impl HttpServiceFactory + 'static
    where
        F: Handler<Args>,
        Args: FromRequest + 'static,
        F::Output: Responder + 'static,
    {
        self.open(path, GET, handler).wrap(from_fn(refusals::report_errors))
    }

    /// An address below `/api`, behind the checks that every request to it passes.
    fn api<F, Args>(
        &self,
        path: &str,
        methods: &'static [Method],
        handler: F,
    ) -> impl HttpServiceFactory + 'static
    where
        F: Handler<Args>,
        Args: FromRequest + 'static,
        F::Output: Responder + 'static,
    {
        checked_api(self.open(&format!("/api{path}"), methods, handler))
    }

    /// As [`api`](Self::api), read by one handler and deleted by another.
    fn api_to_delete<F, G, Args, Output>(
        &self,
        path: &str,
        read: F,
        delete: G,
    ) -> impl HttpServiceFactory + 'static
    where
        F: Handler<Args, Output = Output>,
        G: Handler<Args, Output = Output>,
        Args: FromRequest + 'static,
        Output: Responder + 'static,
    {
        let resource = resource_to_delete(&format!("/api{path}"), read, delete);
        checked_api(resource.app_data(self.state.clone()))
    }

    /// An address for everybody.
    fn open<F, Args>(&self, path: &str, methods: &'static [Method], handler: F) -> Resource
    where
        F: Handler<Args>,
        Args: FromRequest + 'static,
        F::Output: Responder + 'static,
    {
        resource(path, methods, handler).app_data(self.state.clone())
    }
}

/// Behind the checks that every request below `/api` passes.
fn checked_api(resource: Resource) -> impl HttpServiceFactory + 'static {
    // The middleware that is wrapped last sees a request first.
    resource.wrap(from_fn(check_credentials)).wrap(cors()).wrap(from_fn(check_origin))
}

fn cors() -> Cors {
    Cors::default()
        // `check_origin` has refused the others.
        .allowed_origin_fn(|_, _| true)
        .allow_any_method()
        .allow_any_header()
        .expose_headers([header::ETAG])
        .max_age(600)
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
