//! An ext4 filesystem with a jbd2 journal over a [`block_device::BlockDevice`], in user space.
//!
//! `layout` knows what is on disk and nothing else: it decodes, checks and edits blocks that somebody hands it. `journal` does
//! the same for the log. `map` finds and changes where the blocks of a file are, `directory` its names, `attributes` its extended
//! attributes and ACLs, all of them on a [`BlockStore`]. `state_ring` keeps records of the gateways in a file. `engine` is what
//! reads and writes a device: blocks in memory, operations, and the transactions that make them durable.
#![forbid(unsafe_code)]

pub mod attributes;
pub mod directory;
pub mod engine;
pub mod journal;
pub mod layout;
pub mod map;
pub mod state_ring;
pub mod store;
pub mod units;

pub use store::{BlockStore, Refusal, Stop};
pub use units::{BlockNumber, BlockRun, FileBlock, GroupNumber, InodeNumber, TransactionId};
