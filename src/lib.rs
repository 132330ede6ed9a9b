pub mod clock;
pub mod mirror;
pub mod model;

pub use model::*;
