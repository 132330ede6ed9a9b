//! Which web pages may use the server.
//!
//! A browser names the origin of the page that sends a request in `Origin`, and lets any page open
//! WebSockets and post to `127.0.0.1`. So a page of another origin is refused unless it is named.

use std::{fmt, str::FromStr};

use actix_web::http::header::{self, HeaderMap};
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
/// use actix_presence::server::AllowedOrigin;
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

impl Pattern {
    /// Whether the origin is this one, or one of these; `*` names none.
    fn names(&self, origin: &Origin) -> bool {
        match (self, origin) {
            (Self::Exact(exact), _) => exact == origin,
            (Self::Subdomains(parent), Origin::Network(origin)) => is_subdomain(origin, parent),
            (Self::Any | Self::Subdomains(_), _) => false,
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
enum Origin {
    /// Scheme, host and port, the port also where it is the scheme's own.
    Network(url::Origin),
    /// What the URL standard calls opaque, which `url` never finds equal: `null`, `file://` and pages
    /// of an app's own scheme. Compared as text, in lower case.
    Opaque(String),
}

impl Origin {
    /// Reads an origin as browsers write it. (`url` alone would also take a path, credentials and
    /// white space.)
    fn parse(text: &str) -> Result<Self, InvalidOrigin> {
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

    fn is_http(&self) -> bool {
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

/// What is known of the page that sent a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Page {
    /// Its origin is that of the host the request is for.
    pub same_host: bool,
    /// Its origin is among the allowed ones, other than by `*`.
    pub named: bool,
    /// `*` is among the allowed ones.
    pub any: bool,
}

impl Page {
    /// The page that sent a request; `None` if no page did.
    pub fn of(headers: &HeaderMap, allowed: &[AllowedOrigin]) -> Option<Self> {
        let mut origins = headers.get_all(header::ORIGIN);
        let origin = origins.next()?;
        if origins.next().is_some() {
            return Some(Self { same_host: false, named: false, any: false });
        }
        let any = allowed.iter().any(|allowed| allowed.0 == Pattern::Any);
        let Some(origin) = origin.to_str().ok().and_then(|text| Origin::parse(text).ok()) else {
            return Some(Self { same_host: false, named: false, any });
        };
        Some(Self {
            same_host: is_same_host(&origin, headers),
            named: allowed.iter().any(|allowed| allowed.0.names(&origin)),
            any,
        })
    }
}

fn is_same_host(origin: &Origin, headers: &HeaderMap) -> bool {
    let Origin::Network(url::Origin::Tuple(scheme, ..)) = origin else { return false };
    let own = host_header(headers).map(|host| Origin::parse(&format!("{scheme}://{host}")));
    origin.is_http() && own.is_some_and(|own| own.as_ref() == Ok(origin))
}

/// The `Host` of a request; `None` if it has none, or several.
fn host_header(headers: &HeaderMap) -> Option<&str> {
    let mut hosts = headers.get_all(header::HOST);
    let host = hosts.next().filter(|_| hosts.next().is_none())?;
    host.to_str().ok()
}

/// Whether a request is for this machine by name or address, as opposed to a name that somebody else
/// can make lead here.
pub(super) fn is_for_loopback(headers: &HeaderMap) -> bool {
    let host = host_header(headers).map(|host| Origin::parse(&format!("http://{host}")));
    let Some(Ok(Origin::Network(url::Origin::Tuple(_, host, _)))) = host else { return false };
    match host {
        Host::Ipv4(address) => address.is_loopback(),
        Host::Ipv6(address) => address.to_canonical().is_loopback(),
        // Names under `localhost` lead to the loopback addresses, and nobody can register one
        // (RFC 6761, section 6.3).
        Host::Domain(name) => {
            let name = name.strip_suffix('.').unwrap_or(&name);
            name == "localhost" || name.ends_with(".localhost")
        }
    }
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name.clone(), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn of(pairs: &[(HeaderName, &str)], allowed: &[&str]) -> Option<Page> {
        let allowed: Vec<AllowedOrigin> = allowed.iter().map(|o| o.parse().unwrap()).collect();
        Page::of(&headers(pairs), &allowed)
    }

    fn same_host(origin: &str, host: &str) -> bool {
        of(&[(header::ORIGIN, origin), (header::HOST, host)], &[]).unwrap().same_host
    }

    fn named(origin: &str, allowed: &[&str]) -> bool {
        let page = of(&[(header::ORIGIN, origin), (header::HOST, "a.example")], allowed).unwrap();
        assert!(!page.same_host, "{origin}");
        page.named
    }

    #[test]
    fn a_request_without_an_origin_is_from_no_page() {
        assert_eq!(of(&[(header::HOST, "a.example")], &["*"]), None);
    }

    #[test]
    fn a_page_of_the_same_host_is_recognized() {
        for (origin, host) in [
            ("http://a.example:8080", "a.example:8080"),
            ("https://A.example", "a.EXAMPLE"),
            ("http://a.example", "a.example:80"),
            ("https://a.example:443", "a.example"),
            ("http://[::1]:8080", "[::1]:8080"),
            ("http://[::1]:8080", "[0:0::1]:8080"),
            ("http://presence_app", "presence_app"),
        ] {
            assert!(same_host(origin, host), "{origin} {host}");
        }
    }

    #[test]
    fn a_page_of_another_host_is_not_of_the_same() {
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
            "http://a.example:8080\\",
            "http:a.example:8080",
            "http://%61.example:8080",
            "http://a. example:8080",
            "a.example:8080",
            "file://a.example:8080",
            "app://a.example:8080",
            "ws://a.example:8080",
        ] {
            assert!(!same_host(origin, "a.example:8080"), "{origin}");
        }
        let host = (header::HOST, "a.example");
        let origin = (header::ORIGIN, "http://a.example");
        let evil = (header::ORIGIN, "http://evil.example");
        let nothing = Some(Page { same_host: false, named: false, any: false });
        assert_eq!(of(&[host.clone(), origin.clone(), evil.clone()], &["*"]), nothing);
        assert_eq!(of(&[host, (header::HOST, "evil.example"), evil], &[]), nothing);
        assert_eq!(of(&[origin], &[]), nothing);
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
    fn a_star_admits_every_page_and_names_none() {
        for origin in ["null", "http://evil.example", "https://", ""] {
            let page = of(&[(header::ORIGIN, origin)], &["*"]).unwrap();
            assert_eq!(page, Page { same_host: false, named: false, any: true }, "{origin}");
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

    #[test]
    fn loopback_is_told_from_names_that_others_can_make_lead_here() {
        let of = |host: &str| is_for_loopback(&headers(&[(header::HOST, host)]));
        for host in [
            "localhost",
            "LOCALHOST:8080",
            "localhost.",
            "app.localhost:8080",
            "127.0.0.1:8080",
            "127.9.9.9",
            "[::1]:8080",
            "[::ffff:127.0.0.1]",
        ] {
            assert!(of(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "xlocalhost",
            "127.0.0.1.evil.example",
            "0.0.0.0",
            "[::]",
            "localhost/",
            "evil.example@localhost",
        ] {
            assert!(!of(host), "{host}");
        }
        assert!(!is_for_loopback(&headers(&[])));
        let twice = [(header::HOST, "localhost"), (header::HOST, "evil.example")];
        assert!(!is_for_loopback(&headers(&twice)));
    }
}
