//! The buses, and what they have to do.

mod memory;
