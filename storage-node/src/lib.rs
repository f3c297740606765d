//! The storage node: the shells around the pure cores, and the composition root.

pub mod admin;
pub mod cli;
pub mod config;
pub mod demo;
pub mod disk;
pub mod fault;
pub mod files;
mod lock_wait;
mod metrics;
pub mod net;
pub mod nfs;
pub mod node;
pub mod peer;
pub mod raft;
pub mod supervisor;
pub mod volume;
