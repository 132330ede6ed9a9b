//! What the address of a request says, strictly decoded.
//!
//! actix-web decodes paths lossily and answers 404 to what its patterns do not match, so names are
//! read from the raw path. Segments are counted from its end: the routes may be mounted anywhere.

use actix_web::HttpRequest;
use percent_encoding::percent_decode_str;

use super::error::ApiError;
use actix_presence::model::{ConnectionId, RoomName, UserId};

/// Why a text is not percent-encoded UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadEncoding {
    #[error("a `%` is not followed by two hexadecimal digits")]
    Percent,
    #[error("the percent-encoded bytes are not UTF-8")]
    Utf8,
}

/// Decodes percent-encoded UTF-8.
pub(super) fn decode(text: &str) -> Result<String, BadEncoding> {
    let mut escapes = text.split('%');
    // What stands before the first `%`.
    escapes.next();
    let hex = |escape: &str| {
        let digits = escape.as_bytes().get(..2);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    if !escapes.all(hex) {
        return Err(BadEncoding::Percent);
    }
    let decoded = percent_decode_str(text).decode_utf8().map_err(|_| BadEncoding::Utf8)?;
    Ok(decoded.into_owned())
}

/// The decoded segment of the path that has so many after it.
pub(super) fn segment(req: &HttpRequest, after: usize) -> Result<String, BadEncoding> {
    decode(req.uri().path().rsplit('/').nth(after).unwrap_or_default())
}

/// The room named by the segment of the path that has so many after it.
pub(super) fn room(req: &HttpRequest, after: usize) -> Result<RoomName, ApiError> {
    let name = segment(req, after).map_err(|error| {
        ApiError::bad_request("bad_room_name", format!("this is no name of a room: {error}"))
    })?;
    RoomName::new(name).map_err(ApiError::bad_room)
}

/// The connection named by the segment of the path that has so many after it.
pub(super) fn connection(req: &HttpRequest, after: usize) -> Result<ConnectionId, ApiError> {
    let id = segment(req, after).ok().and_then(|id| id.parse().ok());
    id.ok_or_else(|| {
        ApiError::bad_request("bad_connection", "a connection id is 32 hexadecimal digits")
    })
}

/// The user named by the last segment of the path.
pub(super) fn user(req: &HttpRequest) -> Result<UserId, ApiError> {
    let id = segment(req, 0).map_err(|error| {
        ApiError::bad_request("bad_user_id", format!("this is no id of a user: {error}"))
    })?;
    UserId::new(id).map_err(ApiError::bad_user)
}

/// The decoded query of a request; keys that no route knows are let be.
#[derive(Debug)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub fn of(req: &HttpRequest) -> Result<Self, ApiError> {
        Self::parse(req.query_string())
            .map_err(|error| ApiError::bad_request("bad_query", format!("bad query: {error}")))
    }

    fn parse(query: &str) -> Result<Self, BadEncoding> {
        // A space is `+` in a query, as forms encode it.
        let form = |text: &str| decode(&text.replace('+', " "));
        let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((form(key)?, form(value)?))
        });
        pairs.collect::<Result<_, _>>().map(Self)
    }

    /// The value of a key, which may be given once.
    pub fn get(&self, key: &str) -> Result<Option<&str>, ApiError> {
        let mut values = self.0.iter().filter(|(given, _)| given == key).map(|(_, value)| value);
        let value = values.next();
        if values.next().is_some() {
            return Err(ApiError::bad_request("bad_query", format!("`{key}` is given twice")));
        }
        Ok(value.map(String::as_str))
    }
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    #[test]
    fn percent_encoding_is_read_to_the_letter_or_not_at_all() {
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

    #[test]
    fn a_query_is_decoded_as_a_form_and_a_key_counts_once() {
        let query = Query::parse("user=a+b%2B&info=%7B%7D&&flag&x=1=2").unwrap();
        assert_eq!(query.get("user").unwrap(), Some("a b+"));
        assert_eq!(query.get("info").unwrap(), Some("{}"));
        assert_eq!(query.get("flag").unwrap(), Some(""));
        assert_eq!(query.get("x").unwrap(), Some("1=2"));
        assert_eq!(query.get("none").unwrap(), None);
        assert!(Query::parse("a=1&a=2").unwrap().get("a").is_err());
        assert_eq!(Query::parse("a=%f").unwrap_err(), BadEncoding::Percent);
    }
}
