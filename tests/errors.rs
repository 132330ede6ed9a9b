//! Public errors say their cause, once.

use std::{
    error::Error,
    fmt, io,
    iter::{successors, zip},
    sync::Arc,
};

use actix_presence::{
    Cause, Disconnect, FlushError, JoinError, PresenceError, PublishError, QueryError, StartError,
    store::{InvalidDatabaseUrl, OwnerError, StoreError},
};
use actix_web::{ResponseError, body::to_bytes, http::header::CONTENT_TYPE};
use actix_web_actors::ws::CloseReason;

/// An error of another crate, as libpq says it: in two lines, and with a source.
#[derive(Debug)]
struct Refused(io::Error);

impl Refused {
    fn new() -> Self {
        Self(io::Error::other("no route to db.internal"))
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("connection refused\n\tIs the server running?\n")
    }
}

impl Error for Refused {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0)
    }
}

/// Its text in that of an error of this crate.
const CAUSE: &str = "connection refused Is the server running?: no route to db.internal";

/// The errors of a store that have a cause, with the texts before it.
fn store_errors() -> Vec<(&'static str, StoreError)> {
    let source = || Refused::new().into();
    vec![
        ("the database may not be used", StoreError::Denied { source: source() }),
        (
            "the file system has no shared memory for `a-shm`: put the database into a directory on a local disk",
            StoreError::NoSharedMemory { file: "a-shm".into(), source: source() },
        ),
        (
            "another server has taken the database after its lock file was deleted",
            StoreError::Taken { source: source() },
        ),
        ("the database cannot be reached", StoreError::Unavailable { source: source() }),
        ("the database is damaged, or not a database", StoreError::Corrupt { source: source() }),
        (
            "the tables of the database are not those of this version; run its migrations",
            StoreError::Schema { source: source() },
        ),
        ("the database reports an error", StoreError::Failed { source: source() }),
    ]
}

fn query_error() -> QueryError {
    let source = StoreError::Unavailable { source: Refused::new().into() };
    QueryError::Database { reason: "unavailable", source: Arc::new(source) }
}

fn flush_error() -> FlushError {
    let source = StoreError::Unavailable { source: Refused::new().into() };
    FlushError::Database { reason: "unavailable", source: Arc::new(source) }
}

/// An error as anyhow prints it with `{:#}`.
fn with_sources(error: &dyn Error) -> String {
    let errors = successors(Some(error), |&error| error.source());
    errors.map(|error| error.to_string()).collect::<Vec<_>>().join(": ")
}

#[track_caller]
fn assert_says(error: &dyn Error, text: &str) {
    assert_eq!(error.to_string(), text);
    assert_eq!(with_sources(error), text, "a cause is printed twice, or only with the sources");
}

#[test]
fn an_error_says_each_cause_once_with_or_without_its_sources() {
    for (what, error) in store_errors() {
        assert_says(&error, &format!("{what}: {CAUSE}"));
    }
    for (what, error) in store_errors() {
        let start = StartError::from(error);
        assert_says(&start, &format!("the database cannot be used: {what}: {CAUSE}"));
    }
    let asked = format!(
        "the database that the nodes share cannot be asked: the database cannot be reached: {CAUSE}"
    );
    let flushed = format!(
        "the database cannot be written now: the database cannot be reached: {CAUSE}; \
         the rows are written once it works again"
    );
    assert_says(&query_error(), &asked);
    assert_says(&flush_error(), &flushed);
    assert_says(&PresenceError::from(query_error()), &asked);
    assert_says(&PresenceError::from(flush_error()), &flushed);

    let owner =
        || OwnerError::Io { lock: "a.lock".into(), source: io::Error::other(Refused::new()) };
    assert_says(&owner(), &format!("cannot lock `a.lock`: {CAUSE}"));
    assert_says(&StartError::from(owner()), &format!("cannot lock `a.lock`: {CAUSE}"));
    let url = InvalidDatabaseUrl::EmptyPath;
    assert_says(&StartError::from(url), &url.to_string());
    let thread = StartError::Thread(io::Error::other("no memory"));
    let raise = "raise the limit (`ulimit -u`, the pids limit of the container)";
    assert_says(&thread, &format!("cannot start a thread: {raise}: no memory"));
}

#[actix::test]
async fn an_answer_to_a_client_does_not_have_what_the_database_said() {
    let errors: [(Box<dyn ResponseError>, Box<dyn ResponseError>); 2] = [
        (Box::new(query_error()), Box::new(PresenceError::from(query_error()))),
        (Box::new(flush_error()), Box::new(PresenceError::from(flush_error()))),
    ];
    let texts = [
        "the database that the nodes share cannot be asked",
        "the database cannot be written now; the rows are written once it works again",
    ];
    for ((error, shared), text) in zip(errors, texts) {
        for error in [error, shared] {
            let answer = error.error_response();
            assert_eq!(answer.status(), 503);
            assert_eq!(answer.headers().get(CONTENT_TYPE).unwrap(), "text/plain; charset=utf-8");
            assert_eq!(to_bytes(answer.into_body()).await.unwrap(), text);
        }
    }
}

#[test]
fn a_close_frame_says_whether_to_come_back_and_has_space_for_its_reason() {
    let denied = |reason: &str| JoinError::Denied { reason: reason.to_owned().into() };
    let long = "é".repeat(100);
    let frames: [(PresenceError, u16, &str); 8] = [
        (PresenceError::Ended, 1001, "shutdown"),
        (JoinError::ShuttingDown.into(), 1001, "shutdown"),
        (JoinError::Busy.into(), 1013, "too many joins wait for authorization"),
        (JoinError::Withdrawn.into(), 1013, "the connection has left before it could join"),
        (
            QueryError::Timeout.into(),
            1013,
            "the database that the nodes share has not answered in time",
        ),
        (PublishError::NotAllowed.into(), 1008, "the sender may not publish in the room"),
        (denied("log in first").into(), 1008, "not allowed: log in first"),
        (denied(&long).into(), 1008, &format!("not allowed: {}", &long[..110])),
    ];
    for (error, code, reason) in frames {
        let close = CloseReason::from(error);
        assert_eq!(u16::from(close.code), code, "{reason}");
        assert_eq!(close.description.as_deref(), Some(reason));
    }
    let order = Disconnect { code: 1012, cause: Cause::Shutdown };
    let close = CloseReason::from(order);
    assert_eq!((u16::from(close.code), close.description.as_deref()), (1012, Some("shutdown")));
}
