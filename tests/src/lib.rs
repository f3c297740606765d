//! Tests of the whole: the deterministic simulator, power losses under the filesystem engine, and what runs real processes.

pub mod crash_fs;
pub mod e2e;
pub mod fuse_ext4;
pub mod image_file;
pub mod interop_fs;
pub mod model;
#[path = "../sim/mod.rs"]
pub mod sim;
pub mod torture;
pub mod workloads;
