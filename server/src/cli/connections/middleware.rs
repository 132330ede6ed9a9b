//! The middleware that follows requests, their bodies and their responses on tracked connections.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use actix_web::{
    Error, HttpMessage, ResponseError,
    body::{BodySize, BoxBody, EitherBody, MessageBody},
    dev::{Payload, ServiceRequest, ServiceResponse},
    error::PayloadError,
    http::{ConnectionType, Method, StatusCode, header},
    middleware::Next,
    web::Bytes,
};
use futures_util::{Stream, StreamExt};
use pin_project_lite::pin_project;

use super::{connection, connection::Connection, with_table};
use crate::response::ApiError;
use actix_presence::log_limit::LogLimit;

/// The longest body of a request that should have none.
const MAX_UNWANTED_BODY: usize = 65_536;

type TrackedBody<B> = EitherBody<ResponseBody<B>, ResponseBody<BoxBody>>;

/// Tells the table of the thread what happens on a connection, if it is tracked. To be wrapped around the
/// whole app.
pub(crate) async fn track_request<B: MessageBody + 'static>(
    mut req: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<TrackedBody<B>>, Error> {
    let Some(connection) = connection(&req) else {
        return Ok(next.call(req).await?.map_body(|_, body| left(body, None)));
    };
    let offers_upgrade = req.headers().contains_key(header::UPGRADE);
    let called = match begin(&mut req, &connection).await {
        Ok(None) => next.call(req).await.map(Ok),
        Ok(Some(refusal)) => Ok(Err(req.into_response(refusal.error_response()))),
        Err(error) => Err(error.into()),
    };
    match called {
        Ok(Ok(mut response)) => {
            let connection = respond(&mut response, offers_upgrade, connection);
            Ok(response.map_body(|_, body| left(body, connection)))
        }
        Ok(Err(mut refusal)) => {
            let connection = respond(&mut refusal, offers_upgrade, connection);
            Ok(refusal.map_body(|_, body| EitherBody::right(ResponseBody::new(body, connection))))
        }
        Err(error) => {
            with_table(|table| {
                table.responds(&connection, false);
                table.responded(&connection);
            });
            Err(error)
        }
    }
}

fn left<B: MessageBody>(body: B, connection: Option<Rc<Connection>>) -> TrackedBody<B> {
    EitherBody::left(ResponseBody::new(body, connection))
}

/// A request begins; returns why it is refused, if it is.
async fn begin(
    req: &mut ServiceRequest,
    connection: &Rc<Connection>,
) -> Result<Option<ApiError>, PayloadError> {
    if is_websocket(req) {
        return Ok(begin_websocket(connection).err());
    }
    let payload = req.take_payload();
    let has_body = !matches!(payload, Payload::None);
    with_table(|table| table.begin(connection, has_body));
    if !has_body {
        return Ok(None);
    }
    let body = RequestBody::new(payload, connection.clone());
    if req.method() == Method::POST {
        req.set_payload(Payload::Stream { payload: Box::pin(body) });
        return Ok(None);
    }
    skip_body(body).await
}

fn is_websocket(req: &ServiceRequest) -> bool {
    let upgrade = req.headers().get(header::UPGRADE);
    upgrade.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

fn begin_websocket(connection: &Connection) -> Result<(), ApiError> {
    let mut has_place = false;
    with_table(|table| has_place = table.begin_websocket(connection));
    // What follows the head are the frames, which have no end that can be seen here.
    connection.body_open.set(true);
    if has_place {
        return Ok(());
    }
    static REFUSED: LogLimit = LogLimit::new();
    if let Some(suppressed) = REFUSED.pass() {
        tracing::warn!(suppressed, "refused a WebSocket: too few file descriptors (`ulimit -n`)");
    }
    let message = "the server has no file descriptor left for a WebSocket";
    Err(ApiError::unavailable("too_many_connections", message))
}

/// Reads the body of a request that should have none before it is handled: after the response, the rest of
/// the body could not be told from the next request.
async fn skip_body(mut body: RequestBody) -> Result<Option<ApiError>, PayloadError> {
    let mut len = 0;
    while let Some(chunk) = body.next().await {
        len += chunk?.len();
        if len > MAX_UNWANTED_BODY {
            let message = format!("the body may have at most {MAX_UNWANTED_BODY} bytes");
            return Ok(Some(ApiError::too_large(message)));
        }
    }
    Ok(None)
}

/// A response begins; returns the connection on which to track its body.
fn respond<B: MessageBody>(
    response: &mut ServiceResponse<B>,
    offers_upgrade: bool,
    connection: Rc<Connection>,
) -> Option<Rc<Connection>> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        with_table(|table| table.upgraded(&connection));
        return None;
    }
    // Where nobody reads the body, its end will not be seen. An offer to upgrade that is not accepted, such
    // as `Upgrade: h2c`, is ignored (RFC 9110, section 7.8), but actix-http takes no further request then.
    if connection.body_open.get() || offers_upgrade {
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
