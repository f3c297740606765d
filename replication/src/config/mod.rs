//! The Raft-replicated configuration: who may serve what. Commands in, a new state out; every guard is here.

pub mod apply;
pub mod command;
pub mod consensus;
pub mod state;
#[cfg(test)]
mod tests;
mod wire;

pub use apply::{ApplyError, Outcome};
pub use command::{Command, CommandBody, NodeCommand, VolumeCommand};
pub use state::{AckPolicy, ClusterState, ForcePlan, Member, NodeKind, NodeRecord, Phase, Registration, VolumeConfig};
