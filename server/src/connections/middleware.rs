//! What follows the requests of a connection.

use std::{
    future::{Future, Ready, ready},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use actix_web::{
    Error, HttpMessage, ResponseError,
    body::{BodySize, BoxBody, EitherBody, MessageBody},
    dev::{Payload, Service, ServiceRequest, ServiceResponse, Transform},
    http::{ConnectionType, Method, StatusCode, header},
};
use futures_util::{StreamExt, future::LocalBoxFuture};
use pin_project_lite::pin_project;

use super::{
    body::{RequestBody, ResponseBody},
    connection::Connection,
    table::{connection, with_table},
};
use crate::error::ApiError;
use actix_presence::log_limit::LogLimit;

/// How long actix-web keeps an idle connection open.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// The longest body of a request that should have none.
const NEEDLESS_BODY: usize = 65_536;

/// Middleware that tells the table of the thread what happens on a connection. Connections that are
/// not in the table pass through.
pub(crate) struct Connections;

impl<S, B> Transform<S, ServiceRequest> for Connections
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error> + 'static,
    B: MessageBody + 'static,
{
    type Response = ServiceResponse<Body<B>>;
    type Error = Error;
    type InitError = ();
    type Transform = Following<S>;
    type Future = Ready<Result<Self::Transform, ()>>;

    fn new_transform(&self, service: S) -> Self::Future {
        ready(Ok(Following(Rc::new(service))))
    }
}

pub(crate) struct Following<S>(Rc<S>);

impl<S, B> Service<ServiceRequest> for Following<S>
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error> + 'static,
    B: MessageBody + 'static,
{
    type Response = ServiceResponse<Body<B>>;
    type Error = Error;
    type Future = Answer<S::Future, B>;

    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&self, mut req: ServiceRequest) -> Self::Future {
        let Some(connection) = connection(&req) else {
            return Answer::Called { answer: self.0.call(req), connection: None };
        };
        if is_websocket(&req) {
            return self.upgrade(req, connection);
        }
        let payload = req.take_payload();
        let body = !matches!(payload, Payload::None);
        with_table(|table| table.begin(&connection, body));
        if !body {
            return Answer::Called { answer: self.0.call(req), connection: Some(connection) };
        }
        let body = RequestBody::new(payload, connection.clone());
        if req.method() == Method::POST {
            req.set_payload(Payload::Stream { payload: Box::pin(body) });
            return Answer::Called { answer: self.0.call(req), connection: Some(connection) };
        }
        let answer = Box::pin(pass_over(self.0.clone(), req, body));
        Answer::PassedOver { answer, connection: Some(connection) }
    }
}

impl<S, B> Following<S>
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error> + 'static,
{
    fn upgrade(&self, req: ServiceRequest, connection: Rc<Connection>) -> Answer<S::Future, B> {
        let mut place = false;
        with_table(|table| place = table.begin_websocket(&connection));
        // As far as can be seen: what comes after the head are the frames.
        connection.body_open.set(true);
        if place {
            return Answer::Called { answer: self.0.call(req), connection: Some(connection) };
        }
        static REFUSED: LogLimit = LogLimit::new();
        if let Some(suppressed) = REFUSED.pass() {
            tracing::warn!(
                suppressed,
                "WebSockets are refused: too few file descriptors (`ulimit -n`)"
            );
        }
        let message = "the server has no file descriptor left for a WebSocket";
        let refusal = ApiError::unavailable("too_many_connections", message);
        Answer::Refused {
            refusal: Some(req.into_response(refusal.error_response())),
            connection: Some(connection),
        }
    }
}

fn is_websocket(req: &ServiceRequest) -> bool {
    let upgrade = req.headers().get(header::UPGRADE);
    upgrade.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Reads the body of a request that needs none before anybody answers it. Otherwise there would be no
/// telling, after the answer, the rest of this body from the next request.
async fn pass_over<S, B>(
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
        if len > NEEDLESS_BODY {
            let message = format!("a body here has at most {NEEDLESS_BODY} bytes");
            let error = ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message);
            return Ok(Err(req.into_response(error.error_response())));
        }
    }
    service.call(req).await.map(Ok)
}

/// What the app answers, or a refusal before it was asked.
type Answered<B> = Result<ServiceResponse<B>, ServiceResponse>;
type Body<B> = EitherBody<ResponseBody<B>, ResponseBody<BoxBody>>;

pin_project! {
    #[project = AnswerProj]
    pub(crate) enum Answer<F, B> {
        Called {
            #[pin]
            answer: F,
            connection: Option<Rc<Connection>>,
        },
        PassedOver {
            answer: LocalBoxFuture<'static, Result<Answered<B>, Error>>,
            connection: Option<Rc<Connection>>,
        },
        Refused {
            refusal: Option<ServiceResponse>,
            connection: Option<Rc<Connection>>,
        },
    }
}

impl<F, B> Future for Answer<F, B>
where
    F: Future<Output = Result<ServiceResponse<B>, Error>>,
    B: MessageBody,
{
    type Output = Result<ServiceResponse<Body<B>>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (answered, connection) = match self.project() {
            AnswerProj::Called { answer, connection } => {
                (ready!(answer.poll(cx)).map(Ok), connection)
            }
            AnswerProj::PassedOver { answer, connection } => {
                (ready!(answer.as_mut().poll(cx)), connection)
            }
            AnswerProj::Refused { refusal, connection } => {
                // Ready once, as every future.
                let Some(refusal) = refusal.take() else { return Poll::Pending };
                (Ok(Err(refusal)), connection)
            }
        };
        Poll::Ready(follow(answered, connection.take()))
    }
}

/// Follows the response to its end.
fn follow<B: MessageBody>(
    answered: Result<Answered<B>, Error>,
    connection: Option<Rc<Connection>>,
) -> Result<ServiceResponse<Body<B>>, Error> {
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

/// A response begins: on which connection to follow it.
fn respond<B: MessageBody>(
    response: &mut ServiceResponse<B>,
    connection: Rc<Connection>,
) -> Option<Rc<Connection>> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        with_table(|table| table.upgraded(&connection));
        return None;
    }
    if connection.body_open.get() {
        // There is no seeing the end of a body that nobody reads.
        response.response_mut().head_mut().set_connection_type(ConnectionType::Close);
    }
    let streams = response.response().body().size() == BodySize::Stream;
    with_table(|table| table.responds(&connection, streams));
    Some(connection)
}
