//! What goes over a socket: values to bytes and back, and nothing else.

pub mod json;
pub mod phoenix;
