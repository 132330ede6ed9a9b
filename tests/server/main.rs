//! The whole server: the built binary, asked over real sockets.
//!
//! Each test starts servers of its own on free loopback ports, in a directory of its own. Whatever a
//! test waits for is a condition with an upper bound.

mod harness;

mod commands;
mod crowd;
mod database;
mod dialects;
mod endings;
mod flags;
mod frames;
mod hostile;
mod identity;
mod life;
mod limits;
mod operations;
mod phoenix;
mod rest;
mod resuming;
mod sessions;
