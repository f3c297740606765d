//! The worker: puts the parts of a node together and keeps them in step with the replicated state.
//!
//! - `worker`: the process: configuration, listeners, signals, and its end.
//! - `core`: what the worker holds from its start, in a cluster or not; `operations` is the admin API's way in.
//! - `membership`: what runs while the node is in a cluster: Raft, links, goodbyes, liveness.
//! - `nfs`: which volumes are served over NFS.
//! - `reconcile`: makes the local volumes follow the replicated state; `volumes` is the table of them.
//! - `export`: the NBD listener; `files`: the way to filesystems in volumes.
//! - `data_dir`, `detached`, `fences`: the node's own durable state.
//!
//! It decides nothing about data or roles: that is the replication core's and the configuration's.

mod core;
pub mod data_dir;
pub mod detached;
mod export;
pub mod fences;
mod files;
mod membership;
mod nfs;
mod operations;
mod pace;
mod reconcile;
mod stop;
mod volumes;
pub mod worker;

pub use operations::Operations;
pub use worker::{WorkerArguments, worker_main};
