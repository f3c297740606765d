//! x
pub mod fences;
