//! `GET /`, a page to try the server with, and `GET /dashboard`. They work where the routes are mounted
//! at the root.

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{self, ETag, EntityTag, Header, IfNoneMatch},
    web,
};

/// No script, style or address but our own; the pages talk to their own host only.
const CONTENT_SECURITY_POLICY: &str = "default-src 'self'; connect-src 'self' ws: wss:; \
    img-src 'self' data:; style-src 'self'; worker-src 'self'; base-uri 'none'; \
    frame-ancestors 'none'";

/// An asset: its name, its type and its bytes.
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

pub(super) async fn index(req: HttpRequest) -> HttpResponse {
    answer(&req, HTML, include_str!("pages/index.html"))
}

pub(super) async fn dashboard(req: HttpRequest) -> HttpResponse {
    answer(&req, HTML, include_str!("pages/dashboard.html"))
}

pub(super) async fn asset(req: HttpRequest, name: web::Path<String>) -> HttpResponse {
    match ASSETS.iter().find(|(known, ..)| *known == name.as_str()) {
        Some((_, content_type, body)) => answer(&req, content_type, body),
        None => super::not_found(req).await,
    }
}

fn answer(req: &HttpRequest, content_type: &'static str, body: &'static str) -> HttpResponse {
    let tag = EntityTag::new_strong(format!("{:016x}", fingerprint(body.as_bytes())));
    let known = is_known(req, &tag);
    let mut response = if known { HttpResponse::NotModified() } else { HttpResponse::Ok() };
    response
        .insert_header(ETag(tag))
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        .insert_header((header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .insert_header((header::REFERRER_POLICY, "no-referrer"));
    if known {
        return response.finish();
    }
    response.content_type(content_type).body(body)
}

/// Whether the client has this version already.
pub(super) fn is_known(req: &HttpRequest, tag: &EntityTag) -> bool {
    if !req.headers().contains_key(header::IF_NONE_MATCH) {
        return false;
    }
    match IfNoneMatch::parse(req) {
        Ok(IfNoneMatch::Any) => true,
        Ok(IfNoneMatch::Items(tags)) => tags.iter().any(|known| known.weak_eq(tag)),
        Err(_) => false,
    }
}

/// FNV-1a: the same for the same bytes on every node.
fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
