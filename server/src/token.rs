//! Tokens: signed by the app's backend or by `presence token`, checked by the server.

use std::fmt;

use jwt_compact::{
    AlgorithmExt, UntrustedToken, ValidationError,
    alg::{Hs256, Hs256Key},
};
#[cfg(any(test, feature = "cli"))]
use jwt_compact::{CreationError, Header};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use subtle::ConstantTimeEq;
#[cfg(any(test, feature = "cli"))]
use {
    chrono::{DateTime, TimeDelta, Utc},
    std::time::Duration,
};

use actix_presence::model::{Info, RoomName};

/// A text that is never shown: the key of tokens, or of the API.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// A secret is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a secret must not be empty")]
pub struct EmptySecret;

impl Secret {
    /// Takes a secret.
    ///
    /// # Errors
    ///
    /// [`EmptySecret`].
    pub fn new(secret: impl Into<String>) -> Result<Self, EmptySecret> {
        match secret.into() {
            empty if empty.is_empty() => Err(EmptySecret),
            secret => Ok(Self(secret)),
        }
    }

    /// Whether the secret is this one, in a time that does not tell how much of it is right.
    pub(super) fn is(&self, given: &str) -> bool {
        self.0.as_bytes().ct_eq(given.as_bytes()).into()
    }

    fn hs256(&self) -> Hs256Key {
        Hs256Key::new(self.0.as_bytes())
    }

    /// Whether it can stand in a header.
    pub(super) fn is_visible_ascii(&self) -> bool {
        self.0.bytes().all(|b| b.is_ascii_graphic())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What a token says; what else it says is let be.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Claims {
    /// The user; absent is anonymous.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sub: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub info: Option<Value>,
    /// Names, or prefixes with a `*` at the end; absent is all.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub rooms: Option<Vec<String>>,
    /// The client session that survives reconnects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sid: Option<String>,
}

/// `null` is not absent: a mistake must not open all rooms.
fn given<'de, D: Deserializer<'de>>(rooms: D) -> Result<Option<Vec<String>>, D::Error> {
    Vec::deserialize(rooms).map(Some)
}

impl Claims {
    /// Whether the token is good for the room.
    pub fn admit(&self, room: &RoomName) -> bool {
        let matches = |pattern: &String| match pattern.strip_suffix('*') {
            Some(prefix) => room.as_str().starts_with(prefix),
            None => *room == pattern.as_str(),
        };
        self.rooms.as_ref().is_none_or(|patterns| patterns.iter().any(matches))
    }

    pub fn info(&self) -> Result<Info, actix_presence::InvalidInfo> {
        self.info.clone().map_or(Ok(Info::EMPTY), Info::new)
    }
}

/// Why a token is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadToken {
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet")]
    TooEarly,
    #[error("the token's signature is not that of this server's secret")]
    Signature,
    #[error("the token is none: a JWT signed with HS256, with `exp`, is needed")]
    Malformed,
}

/// Signs a token that is valid for so long from now on.
///
/// # Errors
///
/// If the claims have no JSON form, which they always have.
#[cfg(any(test, feature = "cli"))]
pub(super) fn sign(
    claims: Claims,
    lifetime: Duration,
    key: &Secret,
) -> Result<String, CreationError> {
    let mut claims = jwt_compact::Claims::new(claims);
    // A lifetime beyond the calendar ends with it.
    let lifetime = TimeDelta::from_std(lifetime).unwrap_or(TimeDelta::MAX);
    let end = Utc::now().checked_add_signed(lifetime);
    claims.expiration = Some(end.unwrap_or(DateTime::<Utc>::MAX_UTC));
    Hs256.token(&Header::empty().with_token_type("JWT"), &claims, &key.hs256())
}

/// Checks a token: it has to be signed with one of the keys, and to be valid at this time, in seconds
/// since 1970.
pub(super) fn verify(token: &str, keys: &[Secret], now: i64) -> Result<Claims, BadToken> {
    let token = UntrustedToken::new(token).map_err(|_| BadToken::Malformed)?;
    for key in keys {
        match Hs256.validator::<Claims>(&key.hs256()).validate(&token) {
            Ok(token) => return in_time(token.into_parts().1, now),
            Err(ValidationError::InvalidSignature | ValidationError::MalformedSignature(_)) => {}
            Err(_) => return Err(BadToken::Malformed),
        }
    }
    Err(BadToken::Signature)
}

/// The claims, if they are valid at this time. `aud` is not checked.
fn in_time(claims: jwt_compact::Claims<Claims>, now: i64) -> Result<Claims, BadToken> {
    let expires = claims.expiration.ok_or(BadToken::Malformed)?;
    let begins = claims.not_before.map(|begins| begins.timestamp());
    if expires.timestamp() <= now {
        return Err(BadToken::Expired);
    }
    match begins.is_some_and(|begins| begins > now) {
        true => Err(BadToken::TooEarly),
        false => Ok(claims.custom),
    }
}

#[cfg(test)]
mod tests {
    use jwt_compact::alg::{Hs512, Hs512Key};
    use serde_json::json;

    use super::*;

    fn key(secret: &str) -> Secret {
        Secret::new(secret).unwrap()
    }

    const NOW: i64 = 1_800_000_000;

    fn signed(claims: &Value, secret: &str) -> String {
        let claims = jwt_compact::Claims::new(claims);
        Hs256.token(&Header::empty(), &claims, &key(secret).hs256()).unwrap()
    }

    fn verify(token: &str, keys: &[Secret]) -> Result<Claims, BadToken> {
        super::verify(token, keys, NOW)
    }

    #[test]
    fn a_token_of_any_of_the_keys_is_good_until_its_end() {
        let keys = [key("new"), key("old")];
        let claims = json!({"sub": "ada", "exp": NOW + 60, "aud": "elsewhere", "x": 1});
        for secret in ["new", "old"] {
            let claims = verify(&signed(&claims, secret), &keys).unwrap();
            assert_eq!(claims.sub.as_deref(), Some("ada"));
        }
        let refused = |token: &str| verify(token, &keys).unwrap_err();
        assert_eq!(refused(&signed(&claims, "other")), BadToken::Signature);
        let expired = json!({"exp": NOW});
        assert_eq!(refused(&signed(&expired, "old")), BadToken::Expired);
        let early = json!({"exp": NOW + 60, "nbf": NOW + 30});
        assert_eq!(refused(&signed(&early, "new")), BadToken::TooEarly);
    }

    #[test]
    fn a_token_without_an_end_or_of_another_algorithm_or_form_is_none() {
        let keys = [key("s")];
        let refused = |token: &str| verify(token, &keys).unwrap_err();
        for claims in [
            json!({}),
            json!({"exp": "soon"}),
            json!({"exp": NOW + 60, "rooms": null}),
            json!({"exp": NOW + 60, "rooms": "lobby"}),
            json!({"exp": NOW + 60, "sub": 7}),
        ] {
            assert_eq!(refused(&signed(&claims, "s")), BadToken::Malformed, "{claims}");
        }
        let claims = jwt_compact::Claims::new(json!({"exp": NOW + 60}));
        let other = Hs512.token(&Header::empty(), &claims, &Hs512Key::new(b"s")).unwrap();
        assert_eq!(refused(&other), BadToken::Malformed);
        // {"alg":"none"}.{"exp":4102444800}.
        assert_eq!(refused("eyJhbGciOiJub25lIn0.eyJleHAiOjQxMDI0NDQ4MDB9."), BadToken::Malformed);
        for text in ["", "x", "a.b.c", "a.b.c.d"] {
            assert_eq!(refused(text), BadToken::Malformed, "{text}");
        }
    }

    #[test]
    fn a_pattern_is_a_name_or_a_prefix() {
        let admits = |patterns: &[&str], room: &str| {
            let rooms = Some(patterns.iter().map(|p| (*p).to_owned()).collect());
            let claims = Claims { sub: None, info: None, rooms, sid: None };
            claims.admit(&RoomName::new(room).unwrap())
        };
        assert!(admits(&["lobby", "team:*"], "lobby"));
        assert!(admits(&["lobby", "team:*"], "team:red"));
        assert!(admits(&["team:*"], "team:"));
        assert!(admits(&["*"], "anything"));
        assert!(!admits(&["lobby"], "lobby2"));
        assert!(!admits(&["team:*"], "Team:red"));
        assert!(!admits(&["te*m"], "team"));
        assert!(!admits(&[], "lobby"));
        let all = Claims { sub: None, info: None, rooms: None, sid: None };
        assert!(all.admit(&RoomName::new("lobby").unwrap()));
    }

    #[test]
    fn a_secret_is_not_shown() {
        assert_eq!(format!("{:?}", key("hunter2")), "Secret(…)");
        assert!(key("a").is("a") && !key("a").is("b") && !key("a").is(""));
        assert_eq!(Secret::new(""), Err(EmptySecret));
    }
}
