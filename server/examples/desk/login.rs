//! Who somebody is: a cookie, looked up in a table.

use actix_presence::{Info, UserId};
use actix_web::cookie::{Cookie, SameSite};
use actix_web::{FromRequest, HttpRequest, HttpResponse, dev::Payload, http::header, web};
use diesel::prelude::*;
use futures_util::{TryFutureExt, future::LocalBoxFuture};
use presence_server::{Identity, IdentityHook, IdentityRefused};
use serde_json::json;

use super::tables::{Database, Failure, ask, logins};

/// A person that is known.
#[derive(Clone, Debug)]
pub struct Person {
    pub user: UserId,
    pub is_agent: bool,
    /// What the others see, and `waiting.rs` counts by.
    pub info: Info,
}

impl Person {
    /// This person, if it is an agent.
    pub fn agent(self) -> Result<Self, IdentityRefused> {
        if self.is_agent { Ok(self) } else { Err(IdentityRefused::forbidden("for agents only")) }
    }
}

fn find(database: &mut SqliteConnection, cookie: &str) -> Result<Option<Person>, Failure> {
    let login = logins::table.find(cookie).select((logins::name, logins::agent));
    let login = login.first::<(String, bool)>(database).optional()?;
    let Some((name, is_agent)) = login else { return Ok(None) };
    let info = Info::new(json!({ "agent": is_agent }))?;
    Ok(Some(Person { user: UserId::new(name)?, is_agent, info }))
}

/// Who has this cookie.
async fn known(db: Option<Database>, cookie: Option<String>) -> Result<Person, IdentityRefused> {
    let cookie = cookie.ok_or(IdentityRefused::unauthorized("log in first"))?;
    let database = db.ok_or(IdentityRefused::unavailable("no database"))?;
    let found = ask(database, move |database| find(database, &cookie)).await;
    let person = found.map_err(|error| {
        eprintln!("a login cannot be looked up: {error}"); // not for the client
        IdentityRefused::unavailable("try again later")
    })?;
    person.ok_or(IdentityRefused::unauthorized("log in again"))
}

impl FromRequest for Person {
    type Error = IdentityRefused;
    type Future = LocalBoxFuture<'static, Result<Self, IdentityRefused>>;

    fn from_request(req: &HttpRequest, _: &mut Payload) -> Self::Future {
        let cookie = req.cookie("desk").map(|cookie| cookie.value().to_owned());
        Box::pin(known(req.app_data().cloned(), cookie))
    }
}

/// The same for the server's own routes.
pub fn hook() -> IdentityHook {
    IdentityHook::new(|req| {
        Person::extract(req).map_ok(|it| Identity::user(it.user).fixed_info(it.info))
    })
}

/// `GET /login/{name}`. A real app asks for a password, and makes up what is in the cookie.
pub async fn log_in(req: HttpRequest, name: web::Path<String>) -> actix_web::Result<HttpResponse> {
    known(req.app_data().cloned(), Some(name.clone())).await?;
    // Strict: pages of other sites open no socket in the name of their visitor.
    let cookie = Cookie::build("desk", name.into_inner()).path("/").http_only(true);
    let cookie = cookie.same_site(SameSite::Strict).finish();
    let page = (header::LOCATION, "/realtime/#ticket:1");
    Ok(HttpResponse::SeeOther().cookie(cookie).insert_header(page).finish())
}
