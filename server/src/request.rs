//! What the address of a request says, strictly decoded.
//!
//! `web::Path` and `web::Query` replace what is not UTF-8, and a pattern that does not match answers
//! 404. So the encoding is checked first, and path segments are read from the raw path; they are
//! counted from its end, because the routes may be mounted anywhere.

use actix_web::{HttpRequest, error::QueryPayloadError, web};
use percent_encoding::percent_decode_str;
use serde::{Deserialize, de::DeserializeOwned};

use crate::response::ApiError;
use actix_presence::{ConnectionId, RoomName, UserId};

/// Why a text is not percent-encoded UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum BadEncoding {
    #[error("`%` must be followed by two hexadecimal digits")]
    Percent,
    #[error("the percent-encoded bytes are not UTF-8")]
    Utf8,
}

/// Decodes percent-encoded UTF-8.
fn decode(text: &str) -> Result<String, BadEncoding> {
    let is_hex = |escape: &str| {
        let digits = escape.as_bytes().get(..2);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    if !text.split('%').skip(1).all(is_hex) {
        return Err(BadEncoding::Percent);
    }
    let decoded = percent_decode_str(text).decode_utf8().map_err(|_| BadEncoding::Utf8)?;
    Ok(decoded.into_owned())
}

/// The decoded path segment that is followed by `after` others.
fn segment(req: &HttpRequest, after: usize) -> Result<String, BadEncoding> {
    decode(req.uri().path().rsplit('/').nth(after).unwrap_or_default())
}

/// The room named by the path segment that is followed by `after` others.
pub(crate) fn room(req: &HttpRequest, after: usize) -> Result<RoomName, ApiError> {
    let name = segment(req, after).map_err(ApiError::bad_room)?;
    RoomName::new(name).map_err(ApiError::bad_room)
}

/// The connection named by the path segment that is followed by `after` others.
pub(crate) fn connection(req: &HttpRequest, after: usize) -> Result<ConnectionId, ApiError> {
    let id = segment(req, after).ok().and_then(|id| id.parse().ok());
    id.ok_or_else(bad_connection)
}

fn bad_connection() -> ApiError {
    ApiError::bad_request("bad_connection", "a connection id has 32 hexadecimal digits")
}

/// The connection that is named to be left out, if there is one.
pub(crate) fn except(req: &HttpRequest) -> Result<Option<ConnectionId>, ApiError> {
    #[derive(Deserialize)]
    struct Except {
        except: Option<String>,
    }
    let Except { except } = query(req)?;
    except.map(|id| id.parse().map_err(|_| bad_connection())).transpose()
}

/// The user named by the path segment that is followed by `after` others.
pub(crate) fn user(req: &HttpRequest, after: usize) -> Result<UserId, ApiError> {
    let id = segment(req, after).map_err(ApiError::bad_user)?;
    UserId::new(id).map_err(ApiError::bad_user)
}

/// The fields of the query, each given at most once; other keys are ignored.
pub(crate) fn query<T: DeserializeOwned>(req: &HttpRequest) -> Result<T, ApiError> {
    parse_query(req.query_string())
}

fn parse_query<T: DeserializeOwned>(query: &str) -> Result<T, ApiError> {
    let bad = |why: String| ApiError::bad_request("bad_query", format!("malformed query: {why}"));
    for text in query.split(['&', '=']) {
        decode(text).map_err(|error| bad(error.to_string()))?;
    }
    let fields = web::Query::<T>::from_query(query).map_err(|error| match error {
        QueryPayloadError::Deserialize(error) => bad(error.to_string()),
        error => bad(error.to_string()),
    })?;
    Ok(fields.into_inner())
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    #[test]
    fn percent_encoding_is_decoded_strictly() {
        assert_eq!(decode("caf%C3%A9%2F%25+7").as_deref(), Ok("café/%+7"));
        assert_eq!(decode("").as_deref(), Ok(""));
        for bad in ["%", "a%2", "%zz", "%+f", "%%20", "%2é"] {
            assert_eq!(decode(bad), Err(BadEncoding::Percent), "{bad}");
        }
        for bad in ["%ff", "%C3", "%ED%A0%80", "%C0%AF"] {
            assert_eq!(decode(bad), Err(BadEncoding::Utf8), "{bad}");
        }
    }

    #[test]
    fn a_name_is_found_wherever_the_routes_are_mounted() {
        for path in ["/ws/a%2Fb", "/presence/ws/a%2Fb?x=/y"] {
            let req = TestRequest::with_uri(path).to_http_request();
            assert_eq!(room(&req, 0).unwrap(), "a/b");
        }
        let req = TestRequest::with_uri("/x/api/rooms/caf%C3%A9/presences").to_http_request();
        assert_eq!(room(&req, 1).unwrap(), "café");
        for path in ["/ws/", "/ws/%0A", "/ws/%ff", "/ws/%"] {
            assert!(room(&TestRequest::with_uri(path).to_http_request(), 0).is_err(), "{path}");
        }
    }

    #[derive(Debug, Deserialize)]
    struct Fields {
        user: Option<String>,
        info: Option<String>,
        flag: Option<String>,
        x: Option<String>,
        none: Option<String>,
    }

    #[test]
    fn a_query_is_decoded_as_a_form_and_a_key_may_be_given_once() {
        let query: Fields =
            parse_query("user=a+b%2B&info=%7B%7D&&flag&x=1=2&other=1&other=2").unwrap();
        assert_eq!(query.user.as_deref(), Some("a b+"));
        assert_eq!(query.info.as_deref(), Some("{}"));
        assert_eq!(query.flag.as_deref(), Some(""));
        assert_eq!(query.x.as_deref(), Some("1=2"));
        assert_eq!(query.none, None);
        for (bad, why) in [
            ("x=1&x=2", "duplicate field `x`"),
            ("x=%f", "hexadecimal"),
            ("other=%ff", "UTF-8"),
            ("%C3=%A9", "UTF-8"),
        ] {
            let error = parse_query::<Fields>(bad).unwrap_err();
            assert!(error.to_string().contains(why), "{bad}: {error}");
        }
    }
}
