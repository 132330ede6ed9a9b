//! A presence server for [actix-presence](actix_presence): routes for WebSockets, Phoenix Channels and
//! REST, pages, tokens, health and metrics; and the binary `presence`, which serves them.
//!
//! # In an app
//!
//! [`configure`] mounts the routes in an actix-web app, in a scope or at the root, next to the app's own;
//! [`configure_sockets`], [`configure_api`], [`configure_pages`] and [`configure_health`] mount a part.
//! The app starts the presence system and decides who may enter which room. [`ServerOptions`] has the
//! keys of tokens and of the API, the allowed origins and the limits.
//!
//! Who a client is says the app's [`IdentityHook`], or a [`Token`] that the app signs and gives to its
//! page.
//!
//! ```no_run
//! use actix_presence::{Decision, PresenceConfig, UserId, configure_tcp, watch_socket};
//! use actix_web::{App, HttpServer, web};
//! use presence_server::{
//!     Identity, IdentityHook, IdentityRefused, ServerOptions, ServerState, configure,
//! };
//!
//! #[actix_web::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let presence = PresenceConfig::new("sqlite://presence.db")
//!         .authorize(|room, user, _| match (room.as_str(), user) {
//!             ("staff", None) => Decision::deny("staff only"),
//!             _ => Decision::Allow,
//!         })
//!         .start()?;
//!     let identity = IdentityHook::new(|req| {
//!         let login = req.cookie("login");
//!         async move {
//!             let login = login.ok_or(IdentityRefused::unauthorized("log in first"))?;
//!             // Here an app asks its table of logins.
//!             let user = UserId::new(login.value());
//!             Ok(Identity::user(user.map_err(|_| IdentityRefused::unauthorized("log in again"))?))
//!         }
//!     });
//!     let options = ServerOptions { identity: Some(identity), ..Default::default() };
//!     let state = ServerState::new(&presence, options);
//!     let stop = async move {
//!         // Ctrl-C. The server waits for open sockets, so they close first.
//!         let _ = actix_web::rt::signal::ctrl_c().await;
//!         if let Err(error) = presence.shutdown(std::time::Duration::from_secs(5)).await {
//!             eprintln!("{error}");
//!         }
//!     };
//!     HttpServer::new(move || {
//!         App::new()
//!             .route("/hello", web::get().to(async || "hello"))
//!             .service(web::scope("/realtime").configure(configure(state.clone())))
//!     })
//!     .on_connect(|io, extensions| {
//!         configure_tcp(io);
//!         watch_socket(io, extensions);
//!     })
//!     .shutdown_signal(stop)
//!     .bind(("127.0.0.1", 8080))?
//!     .run()
//!     .await?;
//!     Ok(())
//! }
//! ```
//!
//! `examples/mount.rs` mounts the routes in a small app, `examples/desk` in a whole one.
//! [`Metrics::install`] collects what `/metrics` answers, unless the app has a recorder of its own.
//! Routes, frames and flags are described in `docs/` of the repository: `clients.md`, `http-api.md`,
//! `server.md`.
//!
//! # As a program
//!
//! `presence` serves the same routes with a flag for each option, and has commands to prune and list a
//! database and to sign tokens. `presence --help` lists the commands, `presence serve --help` the flags
//! of the server; each flag can also be given as an environment variable `PRESENCE_<FLAG>`.
//!
//! # Features
//!
//! - `cli` (default): the binary, with its flags, its log and its signals; an app does not need it
//! - `sqlite` (default): databases in a file or in memory
//! - `postgres`: databases that several nodes share; needs the system's libpq
//! - `redis`: several nodes (implies `postgres`)
#![deny(missing_docs)]

mod api;
#[cfg(feature = "cli")]
mod cli;
mod error_chain;
mod explain;
mod guard;
mod identity;
mod metrics;
mod origin;
mod pages;
mod paging;
mod ranking;
mod refusals;
mod request;
mod response;
mod routes;
mod signing;
mod socket;
mod state;
mod status;
mod token;

#[cfg(feature = "cli")]
pub use self::cli::main;
pub use self::{
    identity::{Identity, IdentityHook, IdentityRefused},
    metrics::{Metrics, MetricsTaken},
    origin::{AllowedOrigin, InvalidOrigin},
    routes::{configure, configure_api, configure_health, configure_pages, configure_sockets},
    signing::{SignError, Token},
    state::{ServerOptions, ServerState},
    token::{EmptySecret, Secret},
};
