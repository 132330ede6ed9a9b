//! Several servers that are one: the built binary on a PostgreSQL and a Redis of the tests' own, with
//! clients on real sockets.

#[allow(dead_code, unused_imports, reason = "the tests of one server use the rest")]
#[path = "../server/harness/mod.rs"]
mod harness;
#[path = "../../../tests/common/postgres.rs"]
mod postgres;
#[path = "../../../tests/common/redis.rs"]
mod redis;

mod nodes;

mod addressing;
mod commands;
mod deaths;
mod deploys;
mod endings;
mod outages;
mod seeing;
mod sessions;
mod speaking;
mod starting;
mod storm;
mod trouble;
mod trust;
mod unanswered;
mod unheard;
