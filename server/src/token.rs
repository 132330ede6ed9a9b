//! Tokens: JWTs that the app's backend or `presence token` signs and the server verifies.

use std::fmt;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jwt_compact::{
    Algorithm, AlgorithmSignature, UntrustedToken,
    alg::{Hs256, Hs256Key},
};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Number, value::RawValue};
use subtle::ConstantTimeEq;

use actix_presence::{Info, InvalidInfo, RoomName};

/// A text that is never shown: a key of tokens, or the key of the API.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// A secret is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a secret must not be empty")]
pub struct EmptySecret;

impl Secret {
    /// Makes a secret of a text that is not empty.
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

    /// Compares in constant time.
    pub(crate) fn matches(&self, given: &str) -> bool {
        self.0.as_bytes().ct_eq(given.as_bytes()).into()
    }

    /// Whether it can be sent in a header.
    #[cfg(feature = "cli")]
    pub(crate) fn is_visible_ascii(&self) -> bool {
        self.0.bytes().all(|b| b.is_ascii_graphic())
    }

    pub(crate) fn hs256(&self) -> Hs256Key {
        Hs256Key::new(self.0.as_bytes())
    }

    /// Verifies a signature, in constant time.
    fn has_signed(&self, text: &str, signature: &[u8]) -> bool {
        Hs256.sign(&self.hs256(), text.as_bytes()).as_bytes().ct_eq(signature).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The claims of a token; others are ignored, `aud` among them.
///
/// Times are numbers as the token has them: jwt-compact's own claims would refuse those after the year
/// 262142, and tokens with an odd `iat`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Claims {
    /// When the token expires, in seconds since 1970.
    pub exp: Number,
    /// Before when it is not valid; absent means valid at once.
    #[serde(default, deserialize_with = "non_null", skip_serializing_if = "Option::is_none")]
    pub nbf: Option<Number>,
    /// The user; absent means anonymous.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sub: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub info: Option<Box<RawValue>>,
    /// Names, or prefixes that end with `*`; absent means all.
    #[serde(default, deserialize_with = "non_null", skip_serializing_if = "Option::is_none")]
    pub rooms: Option<Vec<String>>,
    /// The key of the client session, which survives reconnects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sid: Option<String>,
}

/// Does not take `null` for absent: a mistake must not open all rooms.
fn non_null<'de, T: Deserialize<'de>, D: Deserializer<'de>>(de: D) -> Result<Option<T>, D::Error> {
    T::deserialize(de).map(Some)
}

impl Claims {
    pub fn info(&self) -> Result<Info, InvalidInfo> {
        self.info.as_deref().map_or(Ok(Info::EMPTY), |info| Info::parse(info.get()))
    }
}

/// Whether a room has one of these names, or begins with one of these prefixes, which end with `*`.
pub(crate) fn match_any(patterns: &[String], room: &RoomName) -> bool {
    patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(prefix) => room.as_str().starts_with(prefix),
        None => *room == pattern.as_str(),
    })
}

/// Why a token is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadToken {
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet")]
    TooEarly,
    #[error("the token is not signed with this server's secret")]
    Signature,
    #[error("malformed token: a JWT signed with HS256 that has `exp` is required")]
    Malformed,
}

/// Verifies that a token is signed with one of the keys and valid at `now`, in seconds since 1970.
///
/// The claims are read only after the signature has been verified.
pub(crate) fn verify(token: &str, keys: &[Secret], now: i64) -> Result<Claims, BadToken> {
    let parsed = UntrustedToken::new(token).map_err(|_| BadToken::Malformed)?;
    let (signed, _) = token.rsplit_once('.').ok_or(BadToken::Malformed)?;
    // The algorithm is the server's choice, whatever the header says.
    if parsed.algorithm() != Hs256.name() {
        return Err(BadToken::Malformed);
    }
    if !keys.iter().any(|key| key.has_signed(signed, parsed.signature_bytes())) {
        return Err(BadToken::Signature);
    }
    let claims = decode_claims(signed).ok_or(BadToken::Malformed)?;
    let seconds = |time: &Number| time.as_f64().ok_or(BadToken::Malformed);
    #[expect(clippy::cast_precision_loss, reason = "the seconds of a century have 32 bits")]
    let now = now as f64;
    if now >= seconds(&claims.exp)? {
        return Err(BadToken::Expired);
    }
    if claims.nbf.as_ref().map(seconds).transpose()?.is_some_and(|begins| now < begins) {
        return Err(BadToken::TooEarly);
    }
    Ok(claims)
}

/// The claims between the header and the signature.
fn decode_claims(signed: &str) -> Option<Claims> {
    let (_, claims) = signed.split_once('.')?;
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(claims).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{Algorithm as Alg, EncodingKey};
    use serde_json::{Value, json};

    use super::*;

    fn key(secret: &str) -> Secret {
        Secret::new(secret).unwrap()
    }

    const NOW: i64 = 1_800_000_000;

    /// A token that another implementation has signed.
    fn signed_with(claims: &Value, secret: &str, algorithm: Alg) -> String {
        let header = jsonwebtoken::Header::new(algorithm);
        jsonwebtoken::encode(&header, claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap()
    }

    fn signed(claims: &Value, secret: &str) -> String {
        signed_with(claims, secret, Alg::HS256)
    }

    fn refused(token: &str) -> BadToken {
        verify(token, &[key("s")], NOW).unwrap_err()
    }

    #[test]
    fn a_token_of_any_of_the_keys_is_valid_until_it_expires() {
        let keys = [key("new"), key("old")];
        let verify = |token: &str| verify(token, &keys, NOW);
        let claims = json!({"sub": "ada", "exp": NOW + 60, "aud": "elsewhere", "x": 1});
        for secret in ["new", "old"] {
            let claims = verify(&signed(&claims, secret)).unwrap();
            assert_eq!(claims.sub.as_deref(), Some("ada"));
        }
        let refused = |token: &str| verify(token).unwrap_err();
        assert_eq!(refused(&signed(&claims, "other")), BadToken::Signature);
        let expired = json!({"exp": NOW});
        assert_eq!(refused(&signed(&expired, "old")), BadToken::Expired);
        let early = json!({"exp": NOW + 60, "nbf": NOW + 30});
        assert_eq!(refused(&signed(&early, "new")), BadToken::TooEarly);
        assert_eq!(
            super::verify(&signed(&claims, "new"), &[], NOW).unwrap_err(),
            BadToken::Signature
        );
    }

    #[test]
    fn times_may_be_fractional_or_huge_and_claims_that_are_not_needed_anything() {
        for claims in [
            json!({"exp": NOW as f64 + 0.5}),
            json!({"exp": NOW + 1, "nbf": NOW as f64}),
            json!({"exp": NOW + 1, "nbf": -1}),
            json!({"exp": 9_007_199_254_740_991_u64}),
            json!({"exp": u64::MAX}),
            json!({"exp": 1e300}),
            json!({"exp": NOW + 1, "iat": "yesterday", "iss": 7, "jti": null}),
        ] {
            assert!(verify(&signed(&claims, "s"), &[key("s")], NOW).is_ok(), "{claims}");
        }
        for expired in [json!(NOW as f64 - 0.5), json!(0), json!(-1), json!(-1e300)] {
            assert_eq!(refused(&signed(&json!({"exp": expired}), "s")), BadToken::Expired);
        }
        for nbf in [json!(NOW as f64 + 0.5), json!(u64::MAX)] {
            let early = json!({"exp": u64::MAX, "nbf": nbf});
            assert_eq!(refused(&signed(&early, "s")), BadToken::TooEarly);
        }
    }

    #[test]
    fn a_token_without_exp_or_of_another_algorithm_or_form_is_malformed() {
        for claims in [
            json!({}),
            json!([]),
            json!({"exp": "soon"}),
            json!({"exp": null}),
            json!({"exp": NOW + 60, "nbf": "soon"}),
            json!({"exp": NOW + 60, "nbf": null}),
            json!({"exp": NOW + 60, "rooms": null}),
            json!({"exp": NOW + 60, "rooms": "lobby"}),
            json!({"exp": NOW + 60, "sub": 7}),
        ] {
            assert_eq!(refused(&signed(&claims, "s")), BadToken::Malformed, "{claims}");
        }
        let claims = json!({"exp": NOW + 60});
        for other in [Alg::HS384, Alg::HS512] {
            assert_eq!(refused(&signed_with(&claims, "s", other)), BadToken::Malformed);
        }
        // {"alg":"none"}.{"exp":4102444800}.
        assert_eq!(refused("eyJhbGciOiJub25lIn0.eyJleHAiOjQxMDI0NDQ4MDB9."), BadToken::Malformed);
        for text in ["", "x", "a.b.c", "a.b.c.d", "..", "…"] {
            assert_eq!(refused(text), BadToken::Malformed, "{text}");
        }
        let good = signed(&claims, "s");
        for bad in [format!("{good}="), format!("{good}.x"), good.replacen('.', "=.", 1)] {
            assert_eq!(refused(&bad), BadToken::Malformed, "{bad}");
        }
    }

    #[test]
    fn a_changed_or_shortened_signature_is_refused_whatever_the_claims_are() {
        let good = signed(&json!({"exp": NOW + 60}), "s");
        let (text, signature) = good.rsplit_once('.').unwrap();
        let other = signed(&json!({"exp": NOW + 61}), "s");
        let (_, others) = other.rsplit_once('.').unwrap();
        for bad in ["", "AAAA", &signature[..40], others, &signature.repeat(4)] {
            assert_eq!(refused(&format!("{text}.{bad}")), BadToken::Signature, "{bad}");
        }
        // {"alg":"HS256"} without claims, signed by nobody.
        assert_eq!(refused("eyJhbGciOiJIUzI1NiJ9.AAAA.AAAA"), BadToken::Signature);
    }

    #[test]
    fn a_pattern_is_a_name_or_a_prefix() {
        let admits = |patterns: &[&str], room: &str| {
            let patterns: Vec<_> = patterns.iter().map(|p| (*p).to_owned()).collect();
            match_any(&patterns, &RoomName::new(room).unwrap())
        };
        assert!(admits(&["lobby", "team:*"], "lobby"));
        assert!(admits(&["lobby", "team:*"], "team:red"));
        assert!(admits(&["team:*"], "team:"));
        assert!(admits(&["*"], "anything"));
        assert!(!admits(&["lobby"], "lobby2"));
        assert!(!admits(&["team:*"], "Team:red"));
        assert!(!admits(&["te*m"], "team"));
        assert!(!admits(&[], "lobby"));
    }

    #[test]
    fn a_secret_is_not_shown() {
        assert_eq!(format!("{:?}", key("hunter2")), "Secret(…)");
        assert!(key("a").matches("a") && !key("a").matches("b") && !key("a").matches(""));
        assert_eq!(Secret::new(""), Err(EmptySecret));
    }
}
