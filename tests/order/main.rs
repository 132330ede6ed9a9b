//! What one member hears of a room is one sequence: the state, then changes and messages, and nobody of
//! this node is heard before their join has been told or after their leave. The whole way of it: a
//! registry, sessions on several threads and on none that is known.

#[path = "../common/mod.rs"]
mod common;

mod guests;
mod histories;
mod log;
mod single;
mod views;
