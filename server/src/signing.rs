//! Makes and signs tokens.

use std::time::Duration;

use chrono::{DateTime, Utc};
use jwt_compact::{AlgorithmExt, CreationError, Header, alg::Hs256};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::{
    error_chain::error_chain,
    token::{Claims, Secret},
};
use actix_presence::{Info, SessionKey, UserId};

/// What a token says, to be signed: who its bearer is, where, and for how long.
///
/// The routes verify it with [`ServerOptions::secrets`](crate::ServerOptions::secrets), on this server or
/// another one with the same secret. It is a JWT (HS256), so any other library can make one, too.
/// Whoever has a token is its user until it expires.
///
/// ```
/// use std::time::Duration;
///
/// use actix_presence::{Info, UserId};
/// use presence_server::{Secret, Token};
/// use serde_json::json;
///
/// let secret = Secret::new("the key of tokens")?;
/// let token = Token::user(UserId::new("ada")?)
///     .rooms(["lobby", "team:*"])
///     .info(Info::new(json!({"name": "Ada"}))?)
///     .expires_in(Duration::from_secs(5 * 60))
///     .sign(&secret)?;
/// assert_eq!(token.split('.').count(), 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A page gets one from a route of the app that knows who is logged in, right before each connect, since
/// tokens in addresses end up in logs and should not live long:
///
/// ```
/// use std::time::Duration;
///
/// use actix_presence::UserId;
/// use actix_web::{HttpRequest, HttpResponse, error, web};
/// use presence_server::{Secret, Token};
/// use serde_json::json;
///
/// /// `POST /token`. The page: `const { token } = await (await fetch("/token", { method: "POST" })).json();
/// /// new WebSocket(`/ws/lobby?token=${token}`)`.
/// async fn token(req: HttpRequest, secret: web::Data<Secret>) -> actix_web::Result<HttpResponse> {
///     let login = req.cookie("login").ok_or_else(|| error::ErrorUnauthorized("log in first"))?;
///     // Here an app asks its table of logins.
///     let user = UserId::new(login.value()).map_err(error::ErrorUnauthorized)?;
///     let token = Token::user(user).expires_in(Duration::from_secs(60)).sign(&secret);
///     let token = token.map_err(error::ErrorInternalServerError)?;
///     Ok(HttpResponse::Ok().json(json!({ "token": token })))
/// }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Token {
    user: Option<UserId>,
    info: Option<Info>,
    session: Option<SessionKey>,
    rooms: Option<Vec<String>>,
    lifetime: Lifetime,
}

#[derive(Clone, Copy, Debug)]
enum Lifetime {
    From(Duration),
    Until(DateTime<Utc>),
}

/// A token cannot be written as JSON.
#[derive(Debug, thiserror::Error)]
#[error("cannot sign the token: {}", error_chain(.0))]
pub struct SignError(CreationError);

impl Token {
    /// How long a token is valid unless it says otherwise.
    pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(60 * 60);

    /// A token of a user, for all rooms and one hour.
    pub fn user(user: UserId) -> Self {
        Self { user: Some(user), ..Self::anonymous() }
    }

    /// A token of a client without a name, for all rooms and one hour.
    pub fn anonymous() -> Self {
        let lifetime = Lifetime::From(Self::DEFAULT_LIFETIME);
        Self { user: None, info: None, session: None, rooms: None, lifetime }
    }

    /// Allows these rooms only: names, or prefixes that end with `*`. No pattern is no room.
    pub fn rooms<P: Into<String>>(self, patterns: impl IntoIterator<Item = P>) -> Self {
        Self { rooms: Some(patterns.into_iter().map(Into::into).collect()), ..self }
    }

    /// Sets the info of the user's presences; the client cannot replace any of its keys.
    pub fn info(self, info: Info) -> Self {
        Self { info: Some(info), ..self }
    }

    /// Sets the client session, which survives reconnects: then each browser tab needs its own token.
    pub fn session(self, session: SessionKey) -> Self {
        Self { session: Some(session), ..self }
    }

    /// Sets how long the token is valid from when it is signed, at least a second. Default
    /// [one hour](Self::DEFAULT_LIFETIME).
    pub fn expires_in(self, lifetime: Duration) -> Self {
        Self { lifetime: Lifetime::From(lifetime), ..self }
    }

    /// Sets when the token expires, to the second.
    pub fn expires_at(self, time: DateTime<Utc>) -> Self {
        Self { lifetime: Lifetime::Until(time), ..self }
    }

    /// Signs it.
    ///
    /// # Errors
    ///
    /// [`SignError`], if it cannot be written as JSON.
    pub fn sign(&self, key: &Secret) -> Result<String, SignError> {
        let exp = match self.lifetime {
            Lifetime::Until(time) => time.timestamp(),
            Lifetime::From(lifetime) => {
                let seconds = lifetime.max(Duration::from_secs(1)).as_secs();
                Utc::now().timestamp().saturating_add_unsigned(seconds)
            }
        };
        let info = self.info.as_ref().map(|info| RawValue::from_string(info.as_json().to_owned()));
        let claims = Claims {
            exp: exp.into(),
            nbf: None,
            sub: self.user.as_ref().map(|user| user.as_str().to_owned()),
            info: info.transpose().map_err(|error| SignError(CreationError::Claims(error)))?,
            rooms: self.rooms.clone(),
            sid: self.session.as_ref().map(|session| session.as_str().to_owned()),
        };
        sign(&claims, key).map_err(SignError)
    }
}

fn sign(claims: &impl Serialize, key: &Secret) -> Result<String, CreationError> {
    let header = Header::empty().with_token_type("JWT");
    Hs256.token(&header, &jwt_compact::Claims::new(claims), &key.hs256())
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{Algorithm, DecodingKey, Validation};
    use serde_json::{Value, json};

    use super::*;

    fn key() -> Secret {
        Secret::new("s").unwrap()
    }

    /// The claims as another implementation reads them.
    fn claims(token: &str) -> Value {
        let key = DecodingKey::from_secret(b"s");
        let validation = Validation::new(Algorithm::HS256);
        jsonwebtoken::decode::<Value>(token, &key, &validation).unwrap().claims
    }

    #[test]
    fn an_error_says_its_cause_once() {
        let cause = serde_json::from_str::<Value>("").unwrap_err();
        let said = format!("cannot sign the token: cannot serialize claims: {cause}");
        let error = SignError(CreationError::Claims(cause));
        assert_eq!(error.to_string(), said);
        assert_eq!(error_chain(&error), said);
        assert!(std::error::Error::source(&error).is_none());
    }

    #[test]
    fn another_implementation_accepts_what_this_one_signs() {
        let exp = DateTime::from_timestamp(4_102_444_800, 0).unwrap();
        let full = Token::user(UserId::new("ada").unwrap())
            .rooms(["lobby", "team:*"])
            .info(Info::new(json!({"n": 1})).unwrap())
            .session(SessionKey::new("tab").unwrap())
            .expires_at(exp);
        assert_eq!(
            claims(&full.sign(&key()).unwrap()),
            json!({
                "exp": 4_102_444_800_i64, "sub": "ada", "info": {"n": 1},
                "rooms": ["lobby", "team:*"], "sid": "tab",
            })
        );
        let nobody = Token::anonymous().rooms(Vec::<String>::new()).expires_at(exp);
        let nobody = claims(&nobody.sign(&key()).unwrap());
        assert_eq!(nobody, json!({"exp": 4_102_444_800_i64, "rooms": []}));
    }

    #[test]
    fn a_token_is_valid_for_an_hour_unless_it_says_otherwise_and_never_overflows() {
        let now = Utc::now().timestamp();
        let lifetime = |token: Token| {
            claims(&token.sign(&key()).unwrap())["exp"].as_i64().unwrap().saturating_sub(now)
        };
        assert!((3600..3700).contains(&lifetime(Token::anonymous())));
        let short = Token::anonymous().expires_in(Duration::ZERO);
        assert!((1..100).contains(&lifetime(short)));
        let long = Token::anonymous().expires_in(Duration::MAX);
        assert_eq!(lifetime(long), i64::MAX - now);
    }
}
