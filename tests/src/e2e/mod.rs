//! The end-to-end harness: clusters of real `tandem` processes, foreign clients, and faults done to both.
//!
//! Everything that a test starts ends with the value that started it. A test that fails keeps its directory and prints
//! where it is. A test that lacks root or a tool says so by name through [`skip`] and passes.

pub mod cli;
pub mod cluster;
pub mod floating;
pub mod ganesha;
pub mod kernel_client;
pub mod namespace;
pub mod nbd;
pub mod network;
pub mod node;
pub mod pattern;
pub mod process;
pub mod qemu;
pub mod skip;
pub mod small_disk;
pub mod uml;
pub mod wait;
pub mod writer;

pub use cluster::{Cluster, ClusterOptions};
pub use skip::{Need, require};
pub use wait::{eventually, eventually_some};
