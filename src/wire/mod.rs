//! Encodes and decodes the frames of both dialects.

pub mod json;
pub mod phoenix;
