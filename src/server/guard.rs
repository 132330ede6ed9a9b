//! Who may use the server: which pages, and for `/api` who has the key, or without one whoever is on
//! this machine.

use actix_web::{HttpRequest, http::header};

use super::{
    ServerOptions,
    error::ApiError,
    origin::{self, Page},
    state::ServerState,
};

/// Headers by which a proxy says that the peer is not who sent the request.
const FORWARDED: [&str; 6] =
    ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "via"];

/// The credentials of `Authorization: Bearer`, if there are any.
pub(super) fn bearer(req: &HttpRequest) -> Option<&str> {
    let value = req.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, credentials) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| credentials.trim())
}

/// Whether the request was made on this machine, for this machine.
///
/// A proxy's peer is always this machine, and a page whose name was made to lead to `127.0.0.1` asks
/// for that name; neither counts.
pub(super) fn is_local(req: &HttpRequest) -> bool {
    is_from_here(req) && origin::is_for_loopback(req.headers())
}

fn is_from_here(req: &HttpRequest) -> bool {
    let peer = req.peer_addr().is_some_and(|peer| peer.ip().to_canonical().is_loopback());
    peer && !FORWARDED.iter().any(|name| req.headers().contains_key(*name))
}

/// Refuses a WebSocket to a page that is neither of the server's own host nor allowed.
pub(super) fn check_socket_page(req: &HttpRequest, state: &ServerState) -> Result<(), ApiError> {
    let options = state.options();
    match Page::of(req.headers(), &options.allowed_origins) {
        None => Ok(()),
        Some(page) if page.named || page.any || is_own(page, req, options) => Ok(()),
        Some(_) => Err(foreign_origin()),
    }
}

/// Refuses `/api` to a page of another origin, unless it is named and there is a key to ask it for.
pub(super) fn check_api_page(req: &HttpRequest, state: &ServerState) -> Result<(), ApiError> {
    let options = state.options();
    match Page::of(req.headers(), &options.allowed_origins) {
        None => Ok(()),
        Some(page) if is_own(page, req, options) => Ok(()),
        Some(page) if page.named && options.api_key.is_some() => Ok(()),
        Some(page) if page.named => Err(loopback_only()),
        Some(_) => Err(foreign_origin()),
    }
}

/// Whether a page is the server's own.
///
/// To a server that listens on loopback alone and asks nobody who they are, a page whose name was made
/// to lead to this machine (DNS rebinding) would look like that; so it must have been loaded from a
/// loopback address, unless a proxy says that it passed the request on.
fn is_own(page: Page, req: &HttpRequest, options: &ServerOptions) -> bool {
    let open = options.believe_query && options.secrets.is_empty();
    page.same_host && (!open || !is_from_here(req) || origin::is_for_loopback(req.headers()))
}

fn foreign_origin() -> ApiError {
    ApiError::forbidden("foreign_origin", "pages of this origin may not use this server")
}

fn loopback_only() -> ApiError {
    ApiError::forbidden(
        "loopback_only",
        "without an API key only requests from and for this machine are answered, and no pages of \
         other origins",
    )
}

/// Lets a request to the API through, or says why not.
pub(super) fn check(req: &HttpRequest, state: &ServerState) -> Result<(), ApiError> {
    match &state.options().api_key {
        Some(key) if bearer(req).is_some_and(|given| key.is(given)) => Ok(()),
        Some(_) => Err(ApiError::unauthorized(
            "unauthorized",
            "the API needs its key: `Authorization: Bearer KEY`",
        )),
        None if is_local(req) => Ok(()),
        None => Err(loopback_only()),
    }
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    fn local(peer: &str, headers: &[(&'static str, &'static str)]) -> bool {
        let request = TestRequest::get().peer_addr(peer.parse().unwrap());
        let request =
            headers.iter().fold(request, |request, header| request.append_header(*header));
        is_local(&request.to_http_request())
    }

    #[test]
    fn local_is_a_peer_on_this_machine_that_asks_for_this_machine() {
        for host in ["localhost", "LOCALHOST:8080", "127.0.0.1:8080", "127.9.9.9", "[::1]:8080"] {
            assert!(local("127.0.0.1:5000", &[("host", host)]), "{host}");
        }
        assert!(local("[::1]:5000", &[("host", "localhost")]));
        assert!(local("[::ffff:127.0.0.1]:5000", &[("host", "localhost")]));
        assert!(!local("10.0.0.1:5000", &[("host", "localhost")]));
    }

    #[test]
    fn a_proxy_and_a_name_that_was_made_to_lead_here_are_not_local() {
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
    fn bearer_credentials_are_told_from_others() {
        let of = |value: &'static str| {
            let req = TestRequest::get().insert_header(("authorization", value)).to_http_request();
            bearer(&req).map(str::to_owned)
        };
        assert_eq!(of("Bearer k").as_deref(), Some("k"));
        assert_eq!(of("bearer  k ").as_deref(), Some("k"));
        assert_eq!(of("Basic k"), None);
        assert_eq!(of("Bearer"), None);
    }
}
