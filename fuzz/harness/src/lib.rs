//! Hostile images: bytes of any origin become damage to a small valid filesystem, and the engine works on what is left.
//!
//! Used by the fuzzer (`fuzz/fuzz_targets`), by the program `hostile`, which needs no fuzzer, and by the test that replays
//! `fuzz/regressions`. An input finds something when the engine panics, does not end, or takes too much memory; what the
//! engine answers is not judged here.
#![forbid(unsafe_code)]

mod device;
mod input;
mod log;
mod mutate;
mod seal;
pub mod seed;
mod survey;
mod targets;

pub use device::ImageDevice;
pub use targets::{Reached, Target};
