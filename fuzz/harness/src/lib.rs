//! Hostile images: bytes of any origin become damage to a small valid filesystem, and the engine works on what is left. And hostile
//! messages and records for the NFS gateway ([`nfs`]).
//!
//! Used by the fuzzer (`fuzz/fuzz_targets`), by the programs `hostile` and `hostile-messages`, which need no fuzzer, and by the
//! tests that replay `fuzz/regressions`. An input finds something when the code panics, does not end, or takes too much memory;
//! what it answers is not judged here.
#![forbid(unsafe_code)]

mod device;
pub mod hunt;
mod input;
mod log;
mod mutate;
pub mod nfs;
mod seal;
pub mod seed;
mod survey;
mod targets;

pub use device::ImageDevice;
pub use targets::{Reached, Target};
