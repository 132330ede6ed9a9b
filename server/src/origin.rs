//! Origins of web pages that may use the server.
//!
//! A browser sends the origin of the requesting page as `Origin`, and lets any page open WebSockets and
//! post to `127.0.0.1`; so pages of other origins are refused unless they are allowed. [`url`] parses and
//! compares origins; what is here refuses texts that it would repair, and compares origins that it calls
//! opaque, and thus never equal.

use std::{fmt, str::FromStr};

use url::{Host, ParseError, Url};

/// An origin whose pages may use the server, besides pages of the server's own host.
///
/// - `https://chat.example`, `http://localhost:5173`: scheme, host and port.
/// - `https://*.chat.example`: subdomains of any depth, on that port; not `chat.example` itself.
/// - `null`, `file://`, `capacitor://localhost`, `app://x`: local files, sandboxed frames and pages with
///   an app's own scheme, as browsers write them.
/// - `*`: every page.
///
/// Pages of other origins may use `/api` only with the API key.
///
/// ```
/// use presence_server::AllowedOrigin;
///
/// assert!("https://chat.example".parse::<AllowedOrigin>().is_ok());
/// assert!("https://*.chat.example".parse::<AllowedOrigin>().is_ok());
/// assert!("null".parse::<AllowedOrigin>().is_ok());
/// assert!("*".parse::<AllowedOrigin>().is_ok());
/// assert!("chat.example".parse::<AllowedOrigin>().is_err());
/// assert!("https://chat.example/".parse::<AllowedOrigin>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedOrigin(Pattern);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Pattern {
    Any,
    Exact(PageOrigin),
    /// The subdomains of this origin's host.
    Subdomains(url::Origin),
}

/// Why a text is not an [`AllowedOrigin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidOrigin {
    /// There is no scheme before the host.
    #[error("an origin starts with its scheme, as in `https://chat.example` (or is `null` or `*`)")]
    Scheme,
    /// The scheme is that of WebSockets, not of pages.
    #[error(
        "the origin of a page starts with `http://` or `https://`, even if it opens WebSockets"
    )]
    SocketScheme,
    /// There is more than scheme, host and port.
    #[error(
        "an origin has a scheme, a host and a port and nothing else, not even a `/` at the end: \
         `https://chat.example`, `http://localhost:5173`"
    )]
    Excess,
    /// The host is missing or invalid.
    #[error("an origin has a host after its scheme: `https://chat.example`")]
    Host,
    /// The port is not a number from 0 to 65535.
    #[error("the port of an origin is a number, or is left out: `http://localhost:5173`")]
    Port,
    /// A `*` is in a place where it has no meaning.
    #[error(
        "a `*` stands alone, or in place of the first labels of a host name: `https://*.chat.example`"
    )]
    Wildcard,
}

impl FromStr for AllowedOrigin {
    type Err = InvalidOrigin;

    fn from_str(text: &str) -> Result<Self, InvalidOrigin> {
        if text == "*" {
            return Ok(Self(Pattern::Any));
        }
        if !text.contains('*') {
            return PageOrigin::parse(text).map(|origin| Self(Pattern::Exact(origin)));
        }
        let (scheme, domain) = text.split_once("://*.").ok_or(InvalidOrigin::Wildcard)?;
        if domain.contains('*') {
            return Err(InvalidOrigin::Wildcard);
        }
        match PageOrigin::parse(&format!("{scheme}://{domain}"))? {
            PageOrigin::Network(parent @ url::Origin::Tuple(_, Host::Domain(_), _)) => {
                Ok(Self(Pattern::Subdomains(parent)))
            }
            _ => Err(InvalidOrigin::Wildcard),
        }
    }
}

impl fmt::Display for AllowedOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Pattern::Any => f.write_str("*"),
            Pattern::Exact(PageOrigin::Opaque(text)) => f.write_str(text),
            Pattern::Exact(PageOrigin::Network(origin)) => {
                f.write_str(&origin.ascii_serialization())
            }
            Pattern::Subdomains(parent) => {
                f.write_str(&parent.ascii_serialization().replacen("://", "://*.", 1))
            }
        }
    }
}

impl AllowedOrigin {
    pub(crate) fn is_any(&self) -> bool {
        self.0 == Pattern::Any
    }

    /// Whether the origin is this one, or matches its wildcard; `*` names none.
    pub(crate) fn names(&self, origin: &PageOrigin) -> bool {
        match (&self.0, origin) {
            (Pattern::Exact(exact), _) => exact == origin,
            (Pattern::Subdomains(parent), PageOrigin::Network(origin)) => {
                is_subdomain(origin, parent)
            }
            (Pattern::Any | Pattern::Subdomains(_), _) => false,
        }
    }
}

/// Whether an origin is `parent` with one or more labels before its host.
fn is_subdomain(origin: &url::Origin, parent: &url::Origin) -> bool {
    use url::Origin::Tuple;
    let (
        Tuple(scheme, Host::Domain(host), port),
        Tuple(parent_scheme, Host::Domain(parent), parent_port),
    ) = (origin, parent)
    else {
        return false;
    };
    let labels = host.strip_suffix(parent.as_str()).and_then(|labels| labels.strip_suffix('.'));
    scheme == parent_scheme
        && port == parent_port
        && labels.is_some_and(|labels| labels.split('.').all(|label| !label.is_empty()))
}

/// The origin of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PageOrigin {
    /// Scheme, host and port.
    Network(url::Origin),
    /// `null`, `file://`, or an origin with an app's own scheme; in lower case.
    Opaque(String),
}

impl PageOrigin {
    /// Parses an origin as browsers write it.
    pub fn parse(text: &str) -> Result<Self, InvalidOrigin> {
        let text = text.to_ascii_lowercase();
        if text == "null" {
            return Ok(Self::Opaque(text));
        }
        let (scheme, rest) = text.split_once("://").ok_or(InvalidOrigin::Scheme)?;
        match scheme {
            "file" if rest.is_empty() => return Ok(Self::Opaque(text)),
            "file" => return Err(InvalidOrigin::Excess),
            "ws" | "wss" => return Err(InvalidOrigin::SocketScheme),
            _ => check_rest(rest)?,
        }
        let url = Url::parse(&text).map_err(|error| match error {
            ParseError::RelativeUrlWithoutBase => InvalidOrigin::Scheme,
            ParseError::InvalidPort => InvalidOrigin::Port,
            _ => InvalidOrigin::Host,
        })?;
        match url.origin() {
            tuple @ url::Origin::Tuple(..) => Ok(Self::Network(tuple)),
            url::Origin::Opaque(_) if url.has_host() => Ok(Self::Opaque(text)),
            url::Origin::Opaque(_) => Err(InvalidOrigin::Host),
        }
    }

    /// Whether an HTTP server can have served the page.
    pub fn is_http(&self) -> bool {
        let Self::Network(url::Origin::Tuple(scheme, ..)) = self else { return false };
        scheme == "http" || scheme == "https"
    }
}

/// Refuses what [`Url::parse`] would accept as path or credentials, decode, or drop.
fn check_rest(rest: &str) -> Result<(), InvalidOrigin> {
    if rest.contains(['/', '?', '#', '\\', '@']) {
        return Err(InvalidOrigin::Excess);
    }
    if rest.contains(|c: char| c.is_whitespace() || c.is_control() || c == '%') || rest.is_empty() {
        return Err(InvalidOrigin::Host);
    }
    if rest.ends_with(':') {
        return Err(InvalidOrigin::Port);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(origin: &str, allowed: &[&str]) -> bool {
        let Ok(origin) = PageOrigin::parse(origin) else { return false };
        allowed.iter().any(|allowed| allowed.parse::<AllowedOrigin>().unwrap().names(&origin))
    }

    #[test]
    fn an_origin_is_named_by_scheme_host_and_port() {
        let allowed = ["https://b.example", "HTTP://c.example:81", "https://bücher.example"];
        assert!(named("https://b.example", &allowed));
        assert!(named("https://b.example:443", &allowed));
        assert!(named("http://C.example:81", &allowed));
        assert!(named("https://xn--bcher-kva.example", &allowed));
        for foreign in [
            "http://b.example",
            "https://b.example:444",
            "https://x.b.example",
            "https://b.example.",
            "http://c.example",
            "null",
        ] {
            assert!(!named(foreign, &allowed), "{foreign}");
        }
    }

    #[test]
    fn a_wildcard_names_subdomains_of_any_depth_and_nothing_else() {
        let allowed = ["https://*.b.example", "http://*.localhost:3000"];
        for welcome in [
            "https://x.b.example",
            "https://y.x.B.example:443",
            "http://app.localhost:3000",
            "https://*.b.example",
        ] {
            assert!(named(welcome, &allowed), "{welcome}");
        }
        for foreign in [
            "https://b.example",
            "https://.b.example",
            "https://x..b.example",
            "https://xb.example",
            "https://x.b.example.evil.example",
            "https://x.b.example:444",
            "http://x.b.example",
            "http://app.localhost",
            "app://x.b.example",
        ] {
            assert!(!named(foreign, &allowed), "{foreign}");
        }
    }

    #[test]
    fn opaque_origins_can_be_named() {
        let allowed = ["null", "file://", "capacitor://localhost", "app://x:1"];
        for origin in allowed {
            assert!(named(origin, &[origin]), "{origin}");
            let others: Vec<&str> = allowed.into_iter().filter(|other| *other != origin).collect();
            assert!(!named(origin, &others), "{origin}");
        }
        assert!(named("App://X:1", &allowed));
        for foreign in ["app://x", "app://x:2", "file:///etc", "capacitor://", "https://localhost"]
        {
            assert!(!named(foreign, &allowed), "{foreign}");
        }
    }

    #[test]
    fn a_malformed_origin_is_refused_with_the_reason() {
        use InvalidOrigin::{Excess, Host, Port, Scheme, SocketScheme, Wildcard};
        for (bad, why) in [
            ("", Scheme),
            ("b.example", Scheme),
            ("localhost:5173", Scheme),
            ("://b", Scheme),
            ("5://b", Scheme),
            ("wss://b.example", SocketScheme),
            ("http://localhost:5173/", Excess),
            ("https://b.example/chat", Excess),
            ("https://ada@b.example", Excess),
            ("file:///", Excess),
            ("https://", Host),
            ("app://", Host),
            ("https://:81", Host),
            ("https://b .example", Host),
            ("https://b:x", Port),
            ("https://b:", Port),
            ("https://b:65536", Port),
            ("https://*", Wildcard),
            ("https://*b.example", Wildcard),
            ("https://b.*.example", Wildcard),
            ("https://*.*.example", Wildcard),
            ("http://localhost:*", Wildcard),
            ("http://*.0.0.1", Wildcard),
            ("app://*.b.example", Wildcard),
            ("*.b.example", Wildcard),
            ("https://*.b.example/", Excess),
            ("https://*.", Host),
        ] {
            assert_eq!(bad.parse::<AllowedOrigin>(), Err(why), "{bad}");
        }
    }

    #[test]
    fn an_allowed_origin_is_shown_as_browsers_write_it() {
        for (given, shown) in [
            ("*", "*"),
            ("null", "null"),
            ("file://", "file://"),
            ("App://x", "app://x"),
            ("https://B.example:443", "https://b.example"),
            ("http://[::1]:81", "http://[::1]:81"),
            ("https://*.b.example", "https://*.b.example"),
            ("https://*.b.example:81", "https://*.b.example:81"),
        ] {
            assert_eq!(given.parse::<AllowedOrigin>().unwrap().to_string(), shown);
        }
    }
}
