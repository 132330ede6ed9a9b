pub mod clock;
pub mod model;

pub use model::*;
