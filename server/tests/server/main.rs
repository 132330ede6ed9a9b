//! The whole server: the built binary, asked over real sockets.
//!
//! Each test starts servers of its own on free loopback ports, in a directory of its own. Whatever a
//! test waits for is a condition with an upper bound.

mod harness;

mod backlog;
mod commands;
mod connections;
mod crowd;
mod database;
mod dialects;
mod documents;
mod endings;
mod files;
mod flags;
mod floods;
mod frames;
mod fuzz;
mod hanging;
mod hostile;
mod identity;
mod large_lists;
mod life;
mod limits;
mod log;
mod naming;
mod newcomers;
mod operations;
mod origins;
mod overdue;
mod phoenix;
mod removing;
mod rest;
mod resuming;
mod sessions;
mod stopping;
mod tcp_ends;
mod threads;
