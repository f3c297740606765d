//! The way out when a majority of the voters is gone for good: the survivor starts over alone.

use std::path::Path;

use proto::{ClusterId, NodeId};
use replication::config::ClusterState;
use replication::config::consensus::{Consensus, ConsensusConfig, LOG_ENTRIES_MAX, Restored};

use super::{LOG_NAME, Log, LogIdentity, RaftError};

/// Rewrites the log in `directory` so that `node` is the only voter of the cluster `new`, which the old voters refuse.
/// The driver must not run (the log's lock sees to that). An operator must have attested that the other voters stay off:
/// what only they had committed is lost. Gives the state that the node starts from: everything in its log is taken as
/// committed, because a command that may have been acknowledged must not vanish.
pub fn recover_quorum(
    directory: &Path,
    node: NodeId,
    old: ClusterId,
    new: ClusterId,
) -> Result<ClusterState, RaftError> {
    let refused = |why: String| RaftError::LogRefused { path: directory.join(LOG_NAME), why };
    let opened = Log::open(directory, LogIdentity { cluster: old, node })?;
    let (mut log, mut restored) = opened.ok_or_else(|| refused("there is no log to recover from".into()))?;
    if new == old {
        return Err(refused("a recovered cluster needs a new id".into()));
    }
    let last = restored.entries.last().map(|entry| entry.index);
    restored.hard_state.commit = last.unwrap_or(0).max(restored.hard_state.commit);
    let term = restored.hard_state.term;
    let config =
        ConsensusConfig { node, election_ticks: 10, heartbeat_ticks: 2, seed: 0, log_entries_max: LOG_ENTRIES_MAX };
    let mut core = Consensus::new(config, restored).map_err(|error| refused(error.to_string()))?;
    while let Some(turn) = core.ready() {
        core.persisted(turn.persist.number);
    }
    if let Some(halt) = core.halted() {
        return Err(refused(halt.to_string()));
    }
    let mut state = core.state().clone();
    if !state.nodes.contains_key(&node) {
        return Err(refused("the cluster's state does not know this node".into()));
    }
    state.cluster = new;
    let image = Restored::founding_at(&[node], &state, core.applied() + 1, term + 1);
    log.replace_as(LogIdentity { cluster: new, node }, &image)?;
    Ok(state)
}
