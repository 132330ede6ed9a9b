//! Bodies in both directions, followed to their ends.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use actix_web::{
    body::{BodySize, MessageBody},
    dev::Payload,
    error::PayloadError,
    web::Bytes,
};
use futures_util::Stream;
use pin_project_lite::pin_project;

use super::{connection::Connection, table::with_table};

/// The body of a request.
pub(super) struct RequestBody {
    payload: Payload,
    connection: Rc<Connection>,
}

impl RequestBody {
    pub fn new(payload: Payload, connection: Rc<Connection>) -> Self {
        Self { payload, connection }
    }
}

impl Stream for RequestBody {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = Pin::new(&mut self.payload).poll_next(cx);
        with_table(|table| match &polled {
            Poll::Pending => table.waits_for_body(&self.connection),
            Poll::Ready(Some(Ok(_))) => table.body_came(&self.connection),
            Poll::Ready(None) => {
                table.body_came(&self.connection);
                self.connection.read_to_end();
            }
            // What follows cannot be told from the rest of the body.
            Poll::Ready(Some(Err(_))) => table.body_came(&self.connection),
        });
        polled
    }
}

pin_project! {
    /// The body of a response.
    pub(crate) struct ResponseBody<B> {
        #[pin]
        body: B,
        end: End,
    }
}

/// Dropped when the response has been handed over, or its connection ends.
struct End(Option<Rc<Connection>>);

impl Drop for End {
    fn drop(&mut self) {
        if let Some(connection) = &self.0 {
            with_table(|table| table.responded(connection));
        }
    }
}

impl<B> ResponseBody<B> {
    pub(super) fn new(body: B, connection: Option<Rc<Connection>>) -> Self {
        Self { body, end: End(connection) }
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
        let body = self.project().body;
        Poll::Ready(ready!(body.poll_next(cx)))
    }
}
