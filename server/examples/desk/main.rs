//! A support desk: customers wait in the rooms of their tickets, agents come and help.
//!
//! ```text
//! cargo run -p presence-server --example desk
//! ```
//!
//! Log in as the agent <http://127.0.0.1:8080/login/ada>, in another browser as the customer
//! <http://127.0.0.1:8080/login/bob>, join, and talk. Ctrl-C tells everybody to close with 1001.
//!
//! `app.rs` has the start, the routes and the stop. Agents have an actor of the app's own (`agent.rs`), those
//! who only read a task on actix-ws (`listen.rs`), and customers the server's own socket.

pub mod access;
pub mod agent;
pub mod app;
pub mod journal;
pub mod listen;
pub mod login;
pub mod tables;
pub mod waiting;

use std::{error::Error, net::TcpListener};

#[actix_web::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:8080")?;
    println!("http://127.0.0.1:8080/login/ada and, in another browser, /login/bob; Ctrl-C ends it");
    app::run(listener, tables::open("desk.db")?, "sqlite://presence.db").await
}
