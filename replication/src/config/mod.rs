//! The Raft-replicated configuration: who may serve what. Commands in, a new state out; every guard is here.

pub mod apply;
pub mod command;
pub mod consensus;
pub mod network;
pub mod nfs;
pub mod state;
#[cfg(test)]
mod tests;
mod wire;

pub use apply::{ApplyError, Outcome};
pub use command::{Command, CommandBody, NfsCommand, NodeCommand, VolumeCommand};
pub use nfs::NfsService;
pub use state::{AckPolicy, ClusterState, ForcePlan, Member, NodeKind, NodeRecord, Phase, Registration, VolumeConfig};
