//! Who a client is: what the app's hook answers, a token says, or the query claims.

use std::{borrow::Cow, fmt, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use actix_web::{HttpRequest, HttpResponse, ResponseError, http::StatusCode};
use futures_util::{FutureExt, future::LocalBoxFuture};
use tokio::{sync::Semaphore, time::timeout};

use crate::{response::ApiError, token};
use actix_presence::{Info, RoomName, SessionKey, UserId, log_limit::LogLimit};

/// Who opens a WebSocket, as an [`IdentityHook`] answers.
///
/// ```
/// use actix_presence::{Info, UserId};
/// use presence_server::Identity;
/// use serde_json::json;
///
/// let ada = Identity::user(UserId::new("ada")?)
///     .fixed_info(Info::new(json!({"team": "red"}))?)
///     .rooms(["lobby", "team:red:*"]);
/// let guest = Identity::anonymous().rooms(["lobby"]);
/// # drop((ada, guest));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Identity {
    pub(crate) user: Option<UserId>,
    pub(crate) info: Info,
    /// Whether the keys of `info` cannot be changed by the client.
    pub(crate) is_info_fixed: bool,
    pub(crate) session: Option<SessionKey>,
    /// Names, or prefixes that end with `*`; `None` means all.
    pub(crate) rooms: Option<Arc<[String]>>,
}

impl Identity {
    /// A client without a name, in any room.
    pub fn anonymous() -> Self {
        Self::default()
    }

    /// A user, in any room.
    pub fn user(user: UserId) -> Self {
        Self { user: Some(user), ..Self::default() }
    }

    /// Sets the info of the presences, which the client may replace.
    pub fn info(self, info: Info) -> Self {
        Self { info, is_info_fixed: false, ..self }
    }

    /// Sets the info of the presences; the client can add keys, but cannot replace any of these.
    pub fn fixed_info(self, info: Info) -> Self {
        Self { info, is_info_fixed: true, ..self }
    }

    /// Sets the client session, which survives reconnects. Default: what the client gives as `?session=`.
    /// One for each browser tab: a second connection with the same key and user replaces the first.
    pub fn session(self, session: SessionKey) -> Self {
        Self { session: Some(session), ..self }
    }

    /// Allows these rooms only: names, or prefixes that end with `*`, as in tokens. No pattern is no
    /// room. [`PresenceConfig::authorize`](actix_presence::PresenceConfig::authorize) is asked as well.
    pub fn rooms<P: Into<String>>(self, patterns: impl IntoIterator<Item = P>) -> Self {
        Self { rooms: Some(patterns.into_iter().map(Into::into).collect()), ..self }
    }

    /// Whether the client may enter the room.
    pub(crate) fn admits(&self, room: &RoomName) -> bool {
        self.rooms.as_ref().is_none_or(|patterns| token::match_any(patterns, room))
    }
}

/// Why a client is not let in, as an [`IdentityHook`] answers: a status and a reason, which the client
/// reads as `{"error":{"code":"identity_refused","message":…}}`. For statuses of 500 and above the code is
/// `identity_unavailable`.
///
/// Errors of actix-web, such as those of extractors, become one with their own status and text. The text of
/// one of 500 and above is logged instead, and the client gets a fixed reason. A handler of the app can
/// answer with a refusal, too.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct IdentityRefused {
    status: StatusCode,
    reason: Cow<'static, str>,
}

impl IdentityRefused {
    /// Refuses with a status of an error, 400 to 599; any other becomes 403.
    ///
    /// A Phoenix client is answered 403 in place of 400 to 499, the only refusal that it knows.
    #[must_use]
    pub fn new(status: StatusCode, reason: impl Into<Cow<'static, str>>) -> Self {
        let is_error = status.is_client_error() || status.is_server_error();
        let status = if is_error { status } else { StatusCode::FORBIDDEN };
        Self { status, reason: reason.into() }
    }

    /// Refuses with 401: it is not known who the client is.
    #[must_use]
    pub fn unauthorized(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, reason)
    }

    /// Refuses with 403: the client is known, and is not let in.
    #[must_use]
    pub fn forbidden(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::FORBIDDEN, reason)
    }

    /// Refuses with 503: who the client is cannot be found out now.
    #[must_use]
    pub fn unavailable(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, reason)
    }
}

/// What a client is told of an error that is the server's own.
const NOT_FOUND_OUT: &str = "it cannot be found out now who you are";

impl From<actix_web::Error> for IdentityRefused {
    fn from(error: actix_web::Error) -> Self {
        static FAILED: LogLimit = LogLimit::new();
        let status = error.as_response_error().status_code();
        if !status.is_server_error() {
            return Self::new(status, error.to_string());
        }
        if let Some(suppressed) = FAILED.pass() {
            tracing::warn!(%error, suppressed, "it cannot be found out who a client is");
        }
        Self::new(status, NOT_FOUND_OUT)
    }
}

impl From<IdentityRefused> for ApiError {
    fn from(refused: IdentityRefused) -> Self {
        let code = match refused.status.is_server_error() {
            true => "identity_unavailable",
            false => "identity_refused",
        };
        Self::new(refused.status, code, refused.reason)
    }
}

impl ResponseError for IdentityRefused {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        ApiError::from(self.clone()).error_response()
    }
}

/// How long a handshake waits for the hook.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How many handshakes may wait for a hook.
const MAX_WAITING: usize = 4096;

type Identify = dyn Fn(&HttpRequest) -> LocalBoxFuture<'static, Result<Identity, IdentityRefused>>
    + Send
    + Sync;

/// The app's own answer to who opens a WebSocket: from a cookie, a login, a database.
///
/// It is asked for each handshake, after the check of the page's origin, and has ten seconds; at most 4,096 handshakes
/// wait for it, and more are refused with 503. If it panics, the client is refused with 500. What the future needs of
/// the request is to be taken out before it begins.
///
/// ```
/// use actix_presence::UserId;
/// use presence_server::{Identity, IdentityHook, IdentityRefused, ServerOptions};
///
/// let identity = IdentityHook::new(|req| {
///     let cookie = req.cookie("login");
///     async move {
///         let cookie = cookie.ok_or(IdentityRefused::unauthorized("log in first"))?;
///         // Here an app asks its table of logins.
///         let user = UserId::new(cookie.value());
///         let user = user.map_err(|_| IdentityRefused::unauthorized("log in again"))?;
///         Ok(Identity::user(user))
///     }
/// });
/// let options = ServerOptions { identity: Some(identity), ..ServerOptions::default() };
/// # drop(options);
/// ```
#[derive(Clone)]
pub struct IdentityHook {
    identify: Arc<Identify>,
    /// A permit for each handshake that may wait for it.
    permits: Arc<Semaphore>,
}

impl IdentityHook {
    /// Makes a hook of a function that answers with a future.
    pub fn new<H, F>(hook: H) -> Self
    where
        H: Fn(&HttpRequest) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Identity, IdentityRefused>> + 'static,
    {
        let permits = Arc::new(Semaphore::new(MAX_WAITING));
        Self { identify: Arc::new(move |req| Box::pin(hook(req))), permits }
    }

    /// Asks it, unless too many handshakes wait for it. A hook that panics or does not answer in time refuses this
    /// client.
    pub(crate) async fn ask(&self, req: &HttpRequest) -> Result<Identity, IdentityRefused> {
        static PANICKED: LogLimit = LogLimit::new();
        let Ok(_permit) = self.permits.try_acquire() else {
            return Err(IdentityRefused::unavailable("too many wait to be told who they are"));
        };
        let answer = AssertUnwindSafe(async { (self.identify)(req).await }).catch_unwind();
        let Ok(answer) = timeout(TIMEOUT, answer).await else {
            return Err(IdentityRefused::unavailable(
                "it could not be found out in time who you are",
            ));
        };
        answer.unwrap_or_else(|_| {
            if let Some(suppressed) = PANICKED.pass() {
                tracing::error!(suppressed, "the identity hook has panicked");
            }
            Err(IdentityRefused::new(StatusCode::INTERNAL_SERVER_ERROR, NOT_FOUND_OUT))
        })
    }
}

impl fmt::Debug for IdentityHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdentityHook(…)")
    }
}
