//! The Raft-replicated configuration: who may serve what. Commands in, a new state out; every guard is here.

pub mod apply;
pub mod command;
pub mod consensus;
pub mod state;

pub use apply::{ApplyError, Outcome};
pub use command::{Command, NodeCommand, VolumeCommand};
pub use state::{
    AckPolicy, ClusterState, Member, NodeKind, NodeRecord, Phase, Registration, VolumeConfig,
};
