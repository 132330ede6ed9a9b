//! One sentence each.
