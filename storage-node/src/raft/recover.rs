//! The way out when a majority of the voters is gone for good: the survivor starts over alone.

use std::path::Path;

use proto::{ClusterId, NodeId};
use replication::config::ClusterState;
use replication::config::consensus::{Consensus, ConsensusConfig, LOG_ENTRIES_MAX, Restored};

use super::{LOG_NAME, Log, LogIdentity, RaftError};

/// What the log in `directory` says: the newest state, and who votes.
pub fn inspect(directory: &Path, node: NodeId, cluster: ClusterId) -> Result<(ClusterState, Vec<NodeId>), RaftError> {
    let (_, core) = replay(directory, node, cluster)?;
    let voters = core.members().into_iter().filter(|(_, voter)| *voter).map(|(id, _)| id).collect();
    Ok((core.state().clone(), voters))
}

/// Rewrites the log in `directory` so that `node` is the only voter of the cluster `new`, which the old voters refuse.
/// The driver must not run (the log's lock sees to that). An operator must have attested that the other voters stay
/// off: what only they had committed is lost. Gives the state that the node starts from: everything in its log is taken
/// as committed, because a command that may have been acknowledged must not vanish.
pub fn recover_quorum(
    directory: &Path,
    node: NodeId,
    old: ClusterId,
    new: ClusterId,
) -> Result<ClusterState, RaftError> {
    if new == old {
        return Err(refused(directory, "a recovered cluster needs a new id".into()));
    }
    let (mut log, core) = replay(directory, node, old)?;
    let mut state = core.state().clone();
    if !state.nodes.contains_key(&node) {
        return Err(refused(directory, "the cluster's state does not know this node".into()));
    }
    state.cluster = new;
    let image = Restored::founding_at(&[node], &state, core.applied() + 1, core.term() + 1);
    log.replace_as(LogIdentity { cluster: new, node }, &image)?;
    Ok(state)
}

fn refused(directory: &Path, why: String) -> RaftError {
    RaftError::LogRefused { path: directory.join(LOG_NAME), why }
}

/// Opens the log and applies all of it.
fn replay(directory: &Path, node: NodeId, cluster: ClusterId) -> Result<(Log, Consensus), RaftError> {
    let opened = Log::open(directory, LogIdentity { cluster, node })?;
    let (log, mut restored) = opened.ok_or_else(|| refused(directory, "there is no log to recover from".into()))?;
    let last = restored.entries.last().map(|entry| entry.index);
    restored.hard_state.commit = last.unwrap_or(0).max(restored.hard_state.commit);
    let config =
        ConsensusConfig { node, election_ticks: 10, heartbeat_ticks: 2, seed: 0, log_entries_max: LOG_ENTRIES_MAX };
    let mut core = Consensus::new(config, restored).map_err(|error| refused(directory, error.to_string()))?;
    while let Some(turn) = core.ready() {
        core.persisted(turn.persist.number);
    }
    match core.halted() {
        Some(halt) => Err(refused(directory, halt.to_string())),
        None => Ok((log, core)),
    }
}
