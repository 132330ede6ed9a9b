//! Who somebody is: a cookie, looked up in a table.

use std::error::Error;

use actix_presence::{Info, RoomName, UserId};
use actix_web::{HttpRequest, HttpResponse, cookie::Cookie, cookie::SameSite, http::header, web};
use diesel::prelude::*;
use futures_util::TryFutureExt;
use presence_server::{Identity, IdentityHook, IdentityRefused};
use serde_json::json;

use super::access::Access;
use super::tables::{Database, logins, tickets};

/// A person that is known.
#[derive(Clone, Debug)]
pub struct Person {
    pub user: UserId,
    pub is_agent: bool,
    /// The rooms of a customer's tickets.
    pub tickets: Vec<RoomName>,
    /// What the others see, and `waiting.rs` counts by.
    pub info: Info,
}

fn find(database: &Database, cookie: &str) -> Result<Option<Person>, Box<dyn Error + Send + Sync>> {
    let mut database = database.get()?;
    let login = logins::table.find(cookie).select((logins::name, logins::agent));
    let login = login.first::<(String, bool)>(&mut database).optional()?;
    let Some((name, is_agent)) = login else { return Ok(None) };
    let own = tickets::table.filter(tickets::customer.eq(&name)).select(tickets::room);
    let own: Vec<String> = own.load(&mut database)?;
    let tickets = own.into_iter().map(RoomName::new).collect::<Result<_, _>>()?;
    let info = Info::new(json!({ "agent": is_agent }))?;
    Ok(Some(Person { user: UserId::new(name)?, is_agent, tickets, info }))
}

/// Answers who sends a request.
#[derive(Clone)]
pub struct Logins {
    pub database: Database,
    pub access: Access,
}

impl Logins {
    /// The person who sends a request, whose rooms the access hook knows from then on.
    pub fn person(
        &self,
        req: &HttpRequest,
    ) -> impl Future<Output = Result<Person, IdentityRefused>> + use<> {
        let (logins, cookie) = (self.clone(), req.cookie("desk"));
        async move {
            let cookie = cookie.ok_or(IdentityRefused::unauthorized("log in first"))?;
            let found = web::block(move || find(&logins.database, cookie.value())).await;
            let found = found.map_err(actix_web::Error::from)?;
            let person = found.map_err(|error| IdentityRefused::unavailable(error.to_string()))?;
            let person = person.ok_or(IdentityRefused::unauthorized("log in again"))?;
            logins.access.learn(&person);
            Ok(person)
        }
    }

    /// The same for the server's own routes.
    pub fn hook(self) -> IdentityHook {
        IdentityHook::new(move |req| {
            self.person(req).map_ok(|it| Identity::user(it.user).fixed_info(it.info))
        })
    }
}

/// `GET /login/{name}`. A real app asks for a password, and makes up what is in the cookie.
pub async fn log_in(name: web::Path<String>) -> HttpResponse {
    // Strict: pages of other sites open no socket in the name of their visitor.
    let cookie = Cookie::build("desk", name.into_inner()).path("/").http_only(true);
    let cookie = cookie.same_site(SameSite::Strict).finish();
    let page = (header::LOCATION, "/realtime/#ticket:1");
    HttpResponse::SeeOther().cookie(cookie).insert_header(page).finish()
}
