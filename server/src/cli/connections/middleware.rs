//! The middleware that follows requests, their bodies and their responses on tracked connections.

use std::{
    future::{Future, Ready, ready},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use actix_web::{
    Error, HttpMessage, ResponseError,
    body::{BodySize, BoxBody, EitherBody, MessageBody},
    dev::{Payload, Service, ServiceRequest, ServiceResponse, Transform},
    error::PayloadError,
    http::{ConnectionType, Method, StatusCode, header},
    web::Bytes,
};
use futures_util::{Stream, StreamExt, future::LocalBoxFuture};
use pin_project_lite::pin_project;

use super::{connection, connection::Connection, with_table};
use crate::response::ApiError;
use actix_presence::log_limit::LogLimit;

/// The longest body of a request that should have none.
const MAX_UNWANTED_BODY: usize = 65_536;

/// Middleware that tells the table of the thread what happens on tracked connections.
pub(crate) struct TrackRequests;

impl<S, B> Transform<S, ServiceRequest> for TrackRequests
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error> + 'static,
    B: MessageBody + 'static,
{
    type Response = ServiceResponse<TrackedBody<B>>;
    type Error = Error;
    type InitError = ();
    type Transform = TrackingService<S>;
    type Future = Ready<Result<Self::Transform, ()>>;

    fn new_transform(&self, service: S) -> Self::Future {
        ready(Ok(TrackingService(Rc::new(service))))
    }
}

pub(crate) struct TrackingService<S>(Rc<S>);

impl<S, B> Service<ServiceRequest> for TrackingService<S>
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error> + 'static,
    B: MessageBody + 'static,
{
    type Response = ServiceResponse<TrackedBody<B>>;
    type Error = Error;
    type Future = TrackedResponse<S::Future, B>;

    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&self, mut req: ServiceRequest) -> Self::Future {
        let Some(connection) = connection(&req) else {
            return TrackedResponse::Called { answer: self.0.call(req), connection: None };
        };
        if is_websocket(&req) {
            return self.upgrade(req, connection);
        }
        let payload = req.take_payload();
        let body = !matches!(payload, Payload::None);
        with_table(|table| table.begin(&connection, body));
        if !body {
            return TrackedResponse::Called {
                answer: self.0.call(req),
                connection: Some(connection),
            };
        }
        let body = RequestBody::new(payload, connection.clone());
        if req.method() == Method::POST {
            req.set_payload(Payload::Stream { payload: Box::pin(body) });
            return TrackedResponse::Called {
                answer: self.0.call(req),
                connection: Some(connection),
            };
        }
        let answer = Box::pin(skip_body(self.0.clone(), req, body));
        TrackedResponse::BodySkipped { answer, connection: Some(connection) }
    }
}

impl<S, B> TrackingService<S>
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error> + 'static,
{
    fn upgrade(
        &self,
        req: ServiceRequest,
        connection: Rc<Connection>,
    ) -> TrackedResponse<S::Future, B> {
        let mut has_place = false;
        with_table(|table| has_place = table.begin_websocket(&connection));
        // What follows the head are the frames, which have no end that can be seen here.
        connection.body_open.set(true);
        if has_place {
            return TrackedResponse::Called {
                answer: self.0.call(req),
                connection: Some(connection),
            };
        }
        static REFUSED: LogLimit = LogLimit::new();
        if let Some(suppressed) = REFUSED.pass() {
            tracing::warn!(
                suppressed,
                "refused a WebSocket: too few file descriptors (`ulimit -n`)"
            );
        }
        let message = "the server has no file descriptor left for a WebSocket";
        let refusal = ApiError::unavailable("too_many_connections", message);
        TrackedResponse::Refused {
            refusal: Some(req.into_response(refusal.error_response())),
            connection: Some(connection),
        }
    }
}

fn is_websocket(req: &ServiceRequest) -> bool {
    let upgrade = req.headers().get(header::UPGRADE);
    upgrade.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Reads the body of a request that should have none before it is handled: after the response, the rest of
/// the body could not be told from the next request.
async fn skip_body<S, B>(
    service: Rc<S>,
    req: ServiceRequest,
    mut body: RequestBody,
) -> Result<Answered<B>, Error>
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error>,
{
    let mut len = 0;
    while let Some(chunk) = body.next().await {
        len += chunk?.len();
        if len > MAX_UNWANTED_BODY {
            let message = format!("the body may have at most {MAX_UNWANTED_BODY} bytes");
            let error = ApiError::too_large(message);
            return Ok(Err(req.into_response(error.error_response())));
        }
    }
    service.call(req).await.map(Ok)
}

/// The response of the app, or a refusal before it was called.
type Answered<B> = Result<ServiceResponse<B>, ServiceResponse>;
type TrackedBody<B> = EitherBody<ResponseBody<B>, ResponseBody<BoxBody>>;

pin_project! {
    #[project = TrackedResponseProj]
    pub(crate) enum TrackedResponse<F, B> {
        Called {
            #[pin]
            answer: F,
            connection: Option<Rc<Connection>>,
        },
        BodySkipped {
            answer: LocalBoxFuture<'static, Result<Answered<B>, Error>>,
            connection: Option<Rc<Connection>>,
        },
        Refused {
            refusal: Option<ServiceResponse>,
            connection: Option<Rc<Connection>>,
        },
    }
}

impl<F, B> Future for TrackedResponse<F, B>
where
    F: Future<Output = Result<ServiceResponse<B>, Error>>,
    B: MessageBody,
{
    type Output = Result<ServiceResponse<TrackedBody<B>>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (answered, connection) = match self.project() {
            TrackedResponseProj::Called { answer, connection } => {
                (ready!(answer.poll(cx)).map(Ok), connection)
            }
            TrackedResponseProj::BodySkipped { answer, connection } => {
                (ready!(answer.as_mut().poll(cx)), connection)
            }
            TrackedResponseProj::Refused { refusal, connection } => {
                // A future is not polled again when it is ready.
                let Some(refusal) = refusal.take() else { return Poll::Pending };
                (Ok(Err(refusal)), connection)
            }
        };
        Poll::Ready(track(answered, connection.take()))
    }
}

/// Tracks the response until it has been sent.
fn track<B: MessageBody>(
    answered: Result<Answered<B>, Error>,
    connection: Option<Rc<Connection>>,
) -> Result<ServiceResponse<TrackedBody<B>>, Error> {
    match answered {
        Ok(Ok(mut response)) => {
            let connection = connection.and_then(|one| respond(&mut response, one));
            let body = |_: &mut _, body| EitherBody::left(ResponseBody::new(body, connection));
            Ok(response.map_body(body))
        }
        Ok(Err(mut refusal)) => {
            let connection = connection.and_then(|one| respond(&mut refusal, one));
            let body = |_: &mut _, body| EitherBody::right(ResponseBody::new(body, connection));
            Ok(refusal.map_body(body))
        }
        Err(error) => {
            if let Some(connection) = connection {
                with_table(|table| {
                    table.responds(&connection, false);
                    table.responded(&connection);
                });
            }
            Err(error)
        }
    }
}

/// A response begins; returns the connection on which to track its body.
fn respond<B: MessageBody>(
    response: &mut ServiceResponse<B>,
    connection: Rc<Connection>,
) -> Option<Rc<Connection>> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        with_table(|table| table.upgraded(&connection));
        return None;
    }
    if connection.body_open.get() {
        // Nobody reads the body, so its end will not be seen.
        response.response_mut().head_mut().set_connection_type(ConnectionType::Close);
    }
    let streams = response.response().body().size() == BodySize::Stream;
    with_table(|table| table.responds(&connection, streams));
    Some(connection)
}

/// The body of a request, whose end is noted.
struct RequestBody {
    payload: Payload,
    connection: Rc<Connection>,
}

impl RequestBody {
    fn new(payload: Payload, connection: Rc<Connection>) -> Self {
        Self { payload, connection }
    }
}

impl Stream for RequestBody {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = Pin::new(&mut self.payload).poll_next(cx);
        with_table(|table| match &polled {
            Poll::Pending => table.waits_for_body(&self.connection),
            Poll::Ready(Some(Ok(_))) => table.body_received(&self.connection),
            Poll::Ready(None) => {
                table.body_received(&self.connection);
                self.connection.read_to_end();
            }
            // Later bytes cannot be told from the rest of the body.
            Poll::Ready(Some(Err(_))) => table.body_received(&self.connection),
        });
        polled
    }
}

pin_project! {
    /// The body of a response, whose end is noted.
    pub(crate) struct ResponseBody<B> {
        #[pin]
        body: B,
        end: ResponseEnd,
    }
}

/// Dropped when the whole response has been passed to actix-web, or its connection ends.
struct ResponseEnd(Option<Rc<Connection>>);

impl Drop for ResponseEnd {
    fn drop(&mut self) {
        if let Some(connection) = &self.0 {
            with_table(|table| table.responded(connection));
        }
    }
}

impl<B> ResponseBody<B> {
    fn new(body: B, connection: Option<Rc<Connection>>) -> Self {
        Self { body, end: ResponseEnd(connection) }
    }
}

impl<B: MessageBody> MessageBody for ResponseBody<B> {
    type Error = B::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        self.project().body.poll_next(cx)
    }
}
