//! Who may use the server: pages of which origins; and `/api` who has its key, or without a key clients
//! on this machine.

use actix_web::{
    HttpRequest,
    http::header::{self, HeaderMap},
};
use url::Host;

use crate::{
    origin::{AllowedOrigin, PageOrigin},
    response::ApiError,
    state::{ServerOptions, ServerState},
};

/// Headers by which a proxy says that the request comes from another machine than its peer.
const FORWARDED: [&str; 6] =
    ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "via"];

/// The credentials of `Authorization: Bearer`.
pub(crate) fn bearer(req: &HttpRequest) -> Option<&str> {
    let value = req.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, credentials) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| credentials.trim())
}

/// Whether the request comes from this machine and is addressed to it.
///
/// A request through a proxy on this machine does not count, nor one of a page whose host name was made
/// to resolve to `127.0.0.1` (DNS rebinding).
pub(crate) fn is_local(req: &HttpRequest) -> bool {
    is_from_here(req) && is_for_loopback(req.headers())
}

fn is_from_here(req: &HttpRequest) -> bool {
    let peer = req.peer_addr().is_some_and(|peer| peer.ip().to_canonical().is_loopback());
    peer && !FORWARDED.iter().any(|name| req.headers().contains_key(*name))
}

/// Refuses a WebSocket to a page that is neither the server's own nor allowed.
pub(crate) fn check_socket_origin(req: &HttpRequest, state: &ServerState) -> Result<(), ApiError> {
    let options = state.options();
    match OriginMatch::of(req.headers(), &options.allowed_origins) {
        None => Ok(()),
        Some(page) if page.named || page.any || is_own(page, req, options) => Ok(()),
        Some(_) => Err(foreign_origin()),
    }
}

/// Refuses `/api` to a page of another origin, unless it is allowed and there is a key to ask it for.
pub(crate) fn check_api_origin(req: &HttpRequest, state: &ServerState) -> Result<(), ApiError> {
    let options = state.options();
    match OriginMatch::of(req.headers(), &options.allowed_origins) {
        None => Ok(()),
        Some(page) if is_own(page, req, options) => Ok(()),
        Some(page) if (page.named || page.any) && options.api_key.is_some() => Ok(()),
        Some(page) if page.named => Err(loopback_only()),
        Some(_) => Err(foreign_origin()),
    }
}

/// Refuses `/api` to clients without its key; where there is none, to clients on other machines.
pub(crate) fn check_credentials(req: &HttpRequest, state: &ServerState) -> Result<(), ApiError> {
    match &state.options().api_key {
        Some(key) if bearer(req).is_some_and(|given| key.matches(given)) => Ok(()),
        Some(_) => Err(ApiError::unauthorized(
            "unauthorized",
            "the API requires its key: `Authorization: Bearer KEY`",
        )),
        None if is_local(req) => Ok(()),
        None => Err(loopback_only()),
    }
}

/// Whether a page is the server's own.
///
/// On a server that is bound to loopback and has no secret, DNS rebinding would make any page look like
/// one; so the page must have been loaded from a loopback address, unless a proxy says that it forwarded
/// the request.
fn is_own(page: OriginMatch, req: &HttpRequest, options: &ServerOptions) -> bool {
    let open = options.believe_query && options.secrets.is_empty();
    page.same_host && (!open || !is_from_here(req) || is_for_loopback(req.headers()))
}

fn foreign_origin() -> ApiError {
    ApiError::forbidden("foreign_origin", "pages of this origin may not use this server")
}

fn loopback_only() -> ApiError {
    ApiError::forbidden(
        "loopback_only",
        "without an API key only requests from and to this machine are answered, and none of pages of \
         other origins",
    )
}

/// How the origin of a page relates to this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct OriginMatch {
    /// It is that of the host which the request is addressed to.
    same_host: bool,
    /// It is allowed, other than by `*`.
    named: bool,
    /// `*` is allowed.
    any: bool,
}

impl OriginMatch {
    /// `None` if the request does not come from a page.
    fn of(headers: &HeaderMap, allowed: &[AllowedOrigin]) -> Option<Self> {
        let mut origins = headers.get_all(header::ORIGIN);
        let origin = origins.next()?;
        if origins.next().is_some() {
            return Some(Self { same_host: false, named: false, any: false });
        }
        let any = allowed.iter().any(AllowedOrigin::is_any);
        let Some(origin) = origin.to_str().ok().and_then(|text| PageOrigin::parse(text).ok())
        else {
            return Some(Self { same_host: false, named: false, any });
        };
        Some(Self {
            same_host: is_same_host(&origin, headers),
            named: allowed.iter().any(|allowed| allowed.names(&origin)),
            any,
        })
    }
}

fn is_same_host(origin: &PageOrigin, headers: &HeaderMap) -> bool {
    let PageOrigin::Network(url::Origin::Tuple(scheme, ..)) = origin else { return false };
    let own = host_header(headers).map(|host| PageOrigin::parse(&format!("{scheme}://{host}")));
    origin.is_http() && own.is_some_and(|own| own.as_ref() == Ok(origin))
}

/// The `Host` of a request; `None` if it has none, or several.
fn host_header(headers: &HeaderMap) -> Option<&str> {
    let mut hosts = headers.get_all(header::HOST);
    let host = hosts.next().filter(|_| hosts.next().is_none())?;
    host.to_str().ok()
}

/// Whether a request is addressed to this machine by a loopback address, or by a name that only this
/// machine can resolve.
fn is_for_loopback(headers: &HeaderMap) -> bool {
    let host = host_header(headers).map(|host| PageOrigin::parse(&format!("http://{host}")));
    let Some(Ok(PageOrigin::Network(url::Origin::Tuple(_, host, _)))) = host else { return false };
    match host {
        Host::Ipv4(address) => address.is_loopback(),
        Host::Ipv6(address) => address.to_canonical().is_loopback(),
        // Names under `localhost` resolve to loopback addresses, and nobody can register one
        // (RFC 6761, section 6.3).
        Host::Domain(name) => {
            let name = name.strip_suffix('.').unwrap_or(&name);
            name == "localhost" || name.ends_with(".localhost")
        }
    }
}

#[cfg(test)]
mod tests {
    use actix_web::{
        http::header::{HeaderName, HeaderValue},
        test::TestRequest,
    };

    use super::*;

    fn local(peer: &str, headers: &[(&'static str, &'static str)]) -> bool {
        let request = TestRequest::get().peer_addr(peer.parse().unwrap());
        let request =
            headers.iter().fold(request, |request, header| request.append_header(*header));
        is_local(&request.to_http_request())
    }

    #[test]
    fn a_request_from_this_machine_to_this_machine_is_local() {
        for host in ["localhost", "LOCALHOST:8080", "127.0.0.1:8080", "127.9.9.9", "[::1]:8080"] {
            assert!(local("127.0.0.1:5000", &[("host", host)]), "{host}");
        }
        assert!(local("[::1]:5000", &[("host", "localhost")]));
        assert!(local("[::ffff:127.0.0.1]:5000", &[("host", "localhost")]));
        assert!(!local("10.0.0.1:5000", &[("host", "localhost")]));
    }

    #[test]
    fn a_proxied_request_and_a_rebound_host_are_not_local() {
        for name in FORWARDED {
            assert!(!local("127.0.0.1:5000", &[("host", "localhost"), (name, "127.0.0.1")]));
        }
        for host in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "0.0.0.0"]
        {
            assert!(!local("127.0.0.1:5000", &[("host", host)]), "{host}");
        }
        assert!(!local("127.0.0.1:5000", &[]));
        assert!(!local("127.0.0.1:5000", &[("host", "localhost"), ("host", "evil.example")]));
    }

    #[test]
    fn bearer_credentials_are_recognized() {
        let of = |value: &'static str| {
            let req = TestRequest::get().insert_header(("authorization", value)).to_http_request();
            bearer(&req).map(str::to_owned)
        };
        assert_eq!(of("Bearer k").as_deref(), Some("k"));
        assert_eq!(of("bearer  k ").as_deref(), Some("k"));
        assert_eq!(of("Basic k"), None);
        assert_eq!(of("Bearer"), None);
    }

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name.clone(), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn of(pairs: &[(HeaderName, &str)], allowed: &[&str]) -> Option<OriginMatch> {
        let allowed: Vec<AllowedOrigin> = allowed.iter().map(|o| o.parse().unwrap()).collect();
        OriginMatch::of(&headers(pairs), &allowed)
    }

    fn same_host(origin: &str, host: &str) -> bool {
        of(&[(header::ORIGIN, origin), (header::HOST, host)], &[]).unwrap().same_host
    }

    #[test]
    fn a_request_without_an_origin_is_not_from_a_page() {
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
    fn a_page_of_another_host_is_foreign() {
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
        let nothing = Some(OriginMatch { same_host: false, named: false, any: false });
        assert_eq!(of(&[host.clone(), origin.clone(), evil.clone()], &["*"]), nothing);
        assert_eq!(of(&[host, (header::HOST, "evil.example"), evil], &[]), nothing);
        assert_eq!(of(&[origin], &[]), nothing);
    }

    #[test]
    fn a_star_admits_every_page_and_names_none() {
        for origin in ["null", "http://evil.example", "https://", ""] {
            let page = of(&[(header::ORIGIN, origin)], &["*"]).unwrap();
            assert_eq!(page, OriginMatch { same_host: false, named: false, any: true }, "{origin}");
        }
    }

    #[test]
    fn loopback_is_distinguished_from_names_that_others_can_rebind() {
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
