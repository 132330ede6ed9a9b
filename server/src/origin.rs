//! Which web pages may use the server.
//!
//! A browser names the origin of the page that sends a request in `Origin`, and lets any page open
//! WebSockets and post to `127.0.0.1`. So a page of another origin is refused unless it is named.

use std::{fmt, str::FromStr};

use url::{Host, ParseError, Url};

/// An origin whose pages may use the server besides those of the server's own host.
///
/// - `https://chat.example`, `http://localhost:5173`: scheme, host and port.
/// - `https://*.chat.example`: its subdomains of any depth, on that port; not `chat.example` itself.
/// - `null`, `file://`, `capacitor://localhost`, `app://x`: local files, sandboxed frames and pages of
///   an app's own scheme, as browsers name them.
/// - `*`: every page. It opens WebSockets only, never `/api`.
///
/// Pages of other origins get `/api` only with the API key.
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
    Exact(Origin),
    /// The subdomains of this origin's host.
    Subdomains(url::Origin),
}

/// Why a text is no [`AllowedOrigin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidOrigin {
    /// There is no scheme before the host.
    #[error("an origin begins with its scheme, as in `https://chat.example` (or is `null` or `*`)")]
    Scheme,
    /// The scheme is that of the sockets a page opens.
    #[error("a page's origin begins with `http://` or `https://`, also if it opens WebSockets")]
    SocketScheme,
    /// Something stands beside scheme, host and port.
    #[error(
        "an origin is scheme, host and port and nothing else, not even a `/` at the end: \
         `https://chat.example`, `http://localhost:5173`"
    )]
    Excess,
    /// The host is missing, or is no host.
    #[error("an origin has a host after its scheme: `https://chat.example`")]
    Host,
    /// The port is not a number from 0 to 65535.
    #[error("the port of an origin is a number, or is left out: `http://localhost:5173`")]
    Port,
    /// A `*` stands where it means nothing.
    #[error(
        "a `*` stands alone, or for the first labels of the name of a host: \
         `https://*.chat.example`"
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
            return Origin::parse(text).map(|origin| Self(Pattern::Exact(origin)));
        }
        let (scheme, domain) = text.split_once("://*.").ok_or(InvalidOrigin::Wildcard)?;
        if domain.contains('*') {
            return Err(InvalidOrigin::Wildcard);
        }
        match Origin::parse(&format!("{scheme}://{domain}"))? {
            Origin::Network(parent @ url::Origin::Tuple(_, Host::Domain(_), _)) => {
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
            Pattern::Exact(Origin::Opaque(text)) => f.write_str(text),
            Pattern::Exact(Origin::Network(origin)) => f.write_str(&origin.ascii_serialization()),
            Pattern::Subdomains(parent) => {
                f.write_str(&parent.ascii_serialization().replacen("://", "://*.", 1))
            }
        }
    }
}

impl AllowedOrigin {
    /// Whether this is `*`.
    pub(super) fn is_any(&self) -> bool {
        self.0 == Pattern::Any
    }

    /// Whether the origin is this one, or one of these; `*` names none.
    pub(super) fn names(&self, origin: &Origin) -> bool {
        match (&self.0, origin) {
            (Pattern::Exact(exact), _) => exact == origin,
            (Pattern::Subdomains(parent), Origin::Network(origin)) => is_subdomain(origin, parent),
            (Pattern::Any | Pattern::Subdomains(_), _) => false,
        }
    }
}

/// Whether one origin is the other with one or more labels before its host.
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
pub(super) enum Origin {
    /// Scheme, host and port, the port also where it is the scheme's own.
    Network(url::Origin),
    /// What the URL standard calls opaque, which `url` never finds equal: `null`, `file://` and pages
    /// of an app's own scheme. Compared as text, in lower case.
    Opaque(String),
}

impl Origin {
    /// Reads an origin as browsers write it. (`url` alone would also take a path, credentials and
    /// white space.)
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

    /// Whether a server of this kind can have served the page.
    pub fn is_http(&self) -> bool {
        let Self::Network(url::Origin::Tuple(scheme, ..)) = self else { return false };
        scheme == "http" || scheme == "https"
    }
}

/// Refuses what `url` would take for a path or credentials, decode, or leave out.
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
        let Ok(origin) = Origin::parse(origin) else { return false };
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
    fn pages_without_a_host_on_the_network_can_be_named() {
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
    fn what_is_no_origin_is_refused_and_told_why() {
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
