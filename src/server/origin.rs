//! Which web pages may talk to the server.
//!
//! A browser says in `Origin` whose page sends a request, and lets every page in the world open
//! WebSockets and post to `127.0.0.1`. So a page of another host is refused unless it is named.

use std::{fmt, str::FromStr};

use actix_web::http::header::{self, HeaderMap};

use super::error::ApiError;

/// A page that may talk to the server besides those of the server's own host.
///
/// ```
/// use actix_presence::server::AllowedOrigin;
///
/// assert!("https://chat.example".parse::<AllowedOrigin>().is_ok());
/// assert!("*".parse::<AllowedOrigin>().is_ok());
/// assert!("chat.example".parse::<AllowedOrigin>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedOrigin(Allowed);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Allowed {
    Any,
    This(Origin),
}

/// A text is no [`AllowedOrigin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an origin is `*`, or scheme, host and port and nothing else: `https://chat.example`")]
pub struct InvalidOrigin;

impl FromStr for AllowedOrigin {
    type Err = InvalidOrigin;

    fn from_str(text: &str) -> Result<Self, InvalidOrigin> {
        match text {
            "*" => Ok(Self(Allowed::Any)),
            _ => Origin::parse(text).map(|origin| Self(Allowed::This(origin))).ok_or(InvalidOrigin),
        }
    }
}

impl fmt::Display for AllowedOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Allowed::Any => f.write_str("*"),
            Allowed::This(Origin { scheme, host }) => write!(f, "{scheme}://{host}"),
        }
    }
}

/// The origin of a page, in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    scheme: String,
    /// With the port, if it is not the scheme's own.
    host: Host,
}

impl Origin {
    fn parse(text: &str) -> Option<Self> {
        let (scheme, host) = text.split_once("://")?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.');
        if scheme.is_empty() || !scheme.bytes().all(plain) {
            return None;
        }
        let scheme = scheme.to_ascii_lowercase();
        let host = Host::parse(host)?.without(default_port(&scheme));
        Some(Self { scheme, host })
    }
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

/// A host as in the header of that name: a name or an address, and perhaps a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Host {
    /// In lower case; an IPv6 address has its brackets.
    pub name: String,
    port: Option<u16>,
}

impl Host {
    fn parse(text: &str) -> Option<Self> {
        let end = match text.strip_prefix('[') {
            Some(address) => address.find(']')? + 2,
            None => text.find(':').unwrap_or(text.len()),
        };
        let (name, rest) = text.split_at(end);
        let allowed = |b: u8| b.is_ascii_graphic() && !b"/?#@\\%\"<>".contains(&b) || b >= 0x80;
        if name.is_empty() || !name.bytes().all(allowed) {
            return None;
        }
        let port = match rest.strip_prefix(':') {
            Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => Some(port.parse().ok()?),
            Some(_) => return None,
            None if rest.is_empty() => None,
            None => return None,
        };
        Some(Self { name: name.to_ascii_lowercase(), port })
    }

    /// The host a request is for; `None` if it names none, or several.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut hosts = headers.get_all(header::HOST);
        let host = hosts.next().filter(|_| hosts.next().is_none())?;
        Self::parse(host.to_str().ok()?)
    }

    fn without(self, port: Option<u16>) -> Self {
        Self { port: self.port.filter(|given| Some(*given) != port), ..self }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// Refuses the page of a foreign host.
pub(super) fn check(headers: &HeaderMap, allowed: &[AllowedOrigin]) -> Result<(), ApiError> {
    let mut origins = headers.get_all(header::ORIGIN);
    let Some(origin) = origins.next() else { return Ok(()) };
    let several = origins.next().is_some();
    if !several && allowed.iter().any(|allowed| allowed.0 == Allowed::Any) {
        return Ok(());
    }
    // `null`, the origin of sandboxed frames and local files, is none.
    let origin = origin.to_str().ok().filter(|_| !several).and_then(Origin::parse);
    let welcome = origin.is_some_and(|origin| {
        let own = default_port(&origin.scheme).is_some_and(|port| {
            Host::of(headers).map(|host| host.without(Some(port))).as_ref() == Some(&origin.host)
        });
        own || allowed.contains(&AllowedOrigin(Allowed::This(origin)))
    });
    if welcome {
        return Ok(());
    }
    Err(ApiError::forbidden("foreign_origin", "pages of this origin may not use this server"))
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::{HeaderName, HeaderValue};

    use super::*;

    fn passes(pairs: &[(HeaderName, &str)], allowed: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name.clone(), HeaderValue::from_str(value).unwrap());
        }
        let allowed: Vec<AllowedOrigin> = allowed.iter().map(|o| o.parse().unwrap()).collect();
        check(&headers, &allowed).is_ok()
    }

    fn page(origin: &str, host: &str, allowed: &[&str]) -> bool {
        passes(&[(header::ORIGIN, origin), (header::HOST, host)], allowed)
    }

    #[test]
    fn a_page_of_the_same_host_and_no_page_at_all_are_welcome() {
        assert!(passes(&[(header::HOST, "a.example")], &[]));
        assert!(page("http://a.example:8080", "a.example:8080", &[]));
        assert!(page("https://A.example", "a.EXAMPLE", &[]));
        assert!(page("http://a.example", "a.example:80", &[]));
        assert!(page("https://a.example:443", "a.example", &[]));
        assert!(page("http://[::1]:8080", "[::1]:8080", &[]));
    }

    #[test]
    fn a_page_of_another_host_is_not() {
        for origin in [
            "null",
            "",
            "http://evil.example",
            "http://a.example",
            "http://a.example:8081",
            "http://a.example:8080.evil.example",
            "http://a.example:8080@evil.example",
            "http://evil.example/a.example:8080",
            "http://a.example:8080/",
            "a.example:8080",
            "file://a.example:8080",
        ] {
            assert!(!page(origin, "a.example:8080", &[]), "{origin}");
        }
        let host = (header::HOST, "a.example");
        let origin = (header::ORIGIN, "http://a.example");
        let evil = (header::ORIGIN, "http://evil.example");
        assert!(!passes(&[host.clone(), origin.clone(), evil.clone()], &[]));
        assert!(!passes(&[host, (header::HOST, "evil.example"), evil], &[]));
        assert!(!passes(&[origin], &[]));
    }

    #[test]
    fn a_named_page_is_welcome_and_a_star_names_all() {
        let allowed = ["https://b.example", "http://c.example:81", "tauri://localhost"];
        assert!(page("https://b.example", "a.example", &allowed));
        assert!(page("https://b.example:443", "a.example", &allowed));
        assert!(page("http://c.example:81", "a.example", &allowed));
        assert!(page("tauri://localhost", "a.example", &allowed));
        assert!(!page("http://b.example", "a.example", &allowed));
        assert!(!page("https://x.b.example", "a.example", &allowed));
        assert!(!page("null", "a.example", &allowed));
        assert!(page("null", "a.example", &["*"]));
        assert!(page("http://evil.example", "a.example", &["*"]));
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        for bad in ["", "null", "b.example", "https://", "https://b/", "https://b:x", "://b"] {
            assert_eq!(bad.parse::<AllowedOrigin>(), Err(InvalidOrigin), "{bad}");
        }
        for good in ["*", "https://b.example", "http://[::1]:81"] {
            assert_eq!(good.parse::<AllowedOrigin>().unwrap().to_string(), good);
        }
    }
}
