//! Tests of the whole: the deterministic simulator, and what runs real processes.

#[path = "../sim/mod.rs"]
pub mod sim;
