//! The pages `GET /`, to try the server with, and `GET /dashboard`, and their assets. Their addresses
//! are relative, so they work wherever the routes are mounted.

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{self, ETag, EntityTag},
};

use crate::response::{ApiError, is_cached};

/// Scripts and styles of the server only, none inline; the pages connect to their own host only.
const CONTENT_SECURITY_POLICY: &str = "default-src 'self'; connect-src 'self' ws: wss:; \
    img-src 'self' data:; style-src 'self'; worker-src 'self'; base-uri 'none'; \
    frame-ancestors 'none'";

/// Name, content type and content.
type Asset = (&'static str, &'static str, &'static str);

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";

const ASSETS: [Asset; 14] = [
    ("base.css", STYLE, include_str!("pages/base.css")),
    ("common.js", SCRIPT, include_str!("pages/common.js")),
    ("index.css", STYLE, include_str!("pages/index.css")),
    ("index.js", SCRIPT, include_str!("pages/index.js")),
    ("room.js", SCRIPT, include_str!("pages/room.js")),
    ("tabs.js", SCRIPT, include_str!("pages/tabs.js")),
    ("people.js", SCRIPT, include_str!("pages/people.js")),
    ("heartbeat.js", SCRIPT, include_str!("pages/heartbeat.js")),
    ("dashboard.css", STYLE, include_str!("pages/dashboard.css")),
    ("dashboard.js", SCRIPT, include_str!("pages/dashboard.js")),
    ("api.js", SCRIPT, include_str!("pages/api.js")),
    ("figures.js", SCRIPT, include_str!("pages/figures.js")),
    ("listing.js", SCRIPT, include_str!("pages/listing.js")),
    ("detail.js", SCRIPT, include_str!("pages/detail.js")),
];

pub(crate) async fn index(req: HttpRequest) -> HttpResponse {
    file(&req, HTML, include_str!("pages/index.html"))
}

/// Leads from a scope's own address to the page in it: `/realtime` to `/realtime/`.
///
/// The address is relative, since a proxy may have removed a prefix.
pub(crate) async fn add_slash(req: HttpRequest) -> HttpResponse {
    let name = req.path().rsplit('/').next().unwrap_or_default();
    let query = match req.query_string() {
        "" => String::new(),
        query => format!("?{query}"),
    };
    HttpResponse::TemporaryRedirect()
        .insert_header((header::LOCATION, format!("./{name}/{query}")))
        .finish()
}

pub(crate) async fn dashboard(req: HttpRequest) -> HttpResponse {
    file(&req, HTML, include_str!("pages/dashboard.html"))
}

/// The name is the end of the address; a scope may have parameters of its own.
pub(crate) async fn asset(req: HttpRequest) -> Result<HttpResponse, ApiError> {
    let name = req.path().rsplit('/').next().unwrap_or_default();
    match ASSETS.iter().find(|(known, ..)| *known == name) {
        Some((_, content_type, body)) => Ok(file(&req, content_type, body)),
        None => Err(ApiError::unknown_route()),
    }
}

fn file(req: &HttpRequest, content_type: &'static str, body: &'static str) -> HttpResponse {
    let tag = EntityTag::new_strong(format!("{:016x}", fingerprint(body.as_bytes())));
    let cached = is_cached(req, &tag);
    let mut response = if cached { HttpResponse::NotModified() } else { HttpResponse::Ok() };
    response
        .insert_header(ETag(tag))
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        .insert_header((header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .insert_header((header::REFERRER_POLICY, "no-referrer"));
    if cached {
        return response.finish();
    }
    response.content_type(content_type).body(body)
}

/// FNV-1a, so that every node computes the same tag.
fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
