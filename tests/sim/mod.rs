//! The deterministic simulator: the shipped replication core and consensus under a seeded scheduler.
//!
//! One seed is one run of a whole cluster (three boxes, disks, network, clients, an operator) with a random part of all
//! faults; the same seed gives the same run. What the shell of a real node does around the cores is modelled in `node`,
//! `raft` and `dispatch`; `checker` judges what clients saw. Nothing here touches a clock, a file or a socket.

pub mod checker;
pub mod client;
pub mod cluster;
pub mod copy_io;
pub mod disk;
pub mod dispatch;
pub mod engine;
pub mod faults;
pub mod network;
pub mod node;
pub mod operator;
pub mod payload;
pub mod raft;
pub mod run;
pub mod scenario;
pub mod scheduler;
pub mod setup;
pub mod sums;
pub mod trace;
pub mod verdict;

pub use run::{Report, Totals, run_seed, run_seeds};
