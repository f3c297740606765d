//! `tandem recover-quorum`: the last survivor goes on alone, under a new cluster id. Offline, and attested.
//!
//! Every step may be repeated: the new id is kept before the first of them, and the identity is written last.

use std::path::Path;

use proto::NodeId;
use replication::config::ClusterState;
use serde_json::json;

use super::exit::Failure;
use super::session::{confirm, emit};
use crate::config::NodeConfig;
use crate::disk::rehome_stores;
use crate::node::data_dir::{DataDir, DataDirError, NodeIdentity};
use crate::raft::{inspect, recover_quorum};

fn failed(why: impl std::fmt::Display) -> Failure {
    Failure::Failed(why.to_string())
}

/// `lost` names, by name or number, every other voter: the operator attests that they are off for good.
pub(super) fn run(config: &Path, lost: &[String], yes: bool, as_json: bool) -> Result<(), Failure> {
    let config = NodeConfig::load(config).map_err(|why| Failure::Usage(why.to_string()))?;
    let directory = DataDir::open(&config.data_dir).map_err(|why| match why {
        DataDirError::InUse { .. } => Failure::Refused(format!("{why}; stop the node first")),
        _ => failed(why),
    })?;
    if let Some(why) = directory.out_of_service().map_err(failed)? {
        return Err(Failure::Refused(why));
    }
    let held = directory.identity().map_err(failed)?;
    let held =
        held.ok_or_else(|| Failure::Refused("this node is in no cluster: there is nothing to recover".into()))?;
    let new = match directory.recovery().map_err(failed)? {
        Some(begun) => begun,
        None => {
            let (state, voters) = inspect(&directory.raft(), held.node, held.cluster).map_err(failed)?;
            let names = attested(&state, &voters, held.node, lost)?;
            if !yes {
                let question = format!(
                    "{} goes on alone, as a new cluster. You attest that {} are off for good: if one of them still runs, \
                     clients may see two different volumes. What only they knew is lost.",
                    config.name,
                    names.join(" and ")
                );
                confirm(&question, &config.name)?;
            }
            directory.begin_recovery().map_err(failed)?
        }
    };
    let stores = rehome_stores(&directory.stores(), &config.devices, held.cluster, new).map_err(failed)?;
    // Interrupted after this step, the log is the new cluster's already.
    if inspect(&directory.raft(), held.node, new).is_err() {
        recover_quorum(&directory.raft(), held.node, held.cluster, new).map_err(failed)?;
    }
    let identity = NodeIdentity { cluster: new, ..held };
    directory.set_identity(identity).and_then(|()| directory.end_recovery()).map_err(failed)?;
    match as_json {
        true => emit(&format!("{:#}\n", json!({ "cluster": new.to_string(), "stores": stores }))),
        false => emit(&format!(
            "{} is the only voter of cluster {new} now; {stores} stores went with it.\nNext: start it, `tandem cluster \
             status`, and give the lost nodes' copies to new boxes (`tandem node join`, `tandem volume replace`, `tandem \
             node remove`). The lost nodes are refused: reset them before they join again.\n",
            config.name
        )),
    }
}

/// The names of the lost voters, if they are all the others, and a majority.
fn attested(state: &ClusterState, voters: &[NodeId], me: NodeId, lost: &[String]) -> Result<Vec<String>, Failure> {
    let name = |node: &NodeId| state.nodes.get(node).map_or_else(|| node.to_string(), |record| record.name.clone());
    let is_named = |node: &NodeId| lost.iter().any(|text| *text == name(node) || *text == node.to_string());
    let others: Vec<&NodeId> = voters.iter().filter(|node| **node != me).collect();
    let strangers =
        lost.iter().filter(|text| !others.iter().any(|node| **text == name(node) || **text == node.to_string()));
    if let Some(stranger) = strangers.into_iter().next() {
        return Err(Failure::NotFound(format!("{stranger} is no other voter of this cluster")));
    }
    let unnamed: Vec<String> = others.iter().filter(|node| !is_named(node)).map(|node| name(node)).collect();
    if !unnamed.is_empty() {
        return Err(Failure::Refused(format!(
            "{} may be alive: only when every other voter is off for good may this node go on alone (--lost NODE for each). \
             While a majority lives, use `tandem node remove`; a minority that lives must be reset and join again",
            unnamed.join(" and ")
        )));
    }
    if !voters.contains(&me) || others.is_empty() {
        return Err(Failure::Refused("this node has no vote to recover, or needs nobody else's".into()));
    }
    Ok(others.into_iter().map(name).collect())
}

#[cfg(test)]
mod tests {
    use replication::config::NodeRecord;

    use super::*;

    #[test]
    fn every_other_voter_must_be_named() {
        let mut state = ClusterState::default();
        for (id, name) in [(1, "a"), (2, "b"), (3, "w")] {
            state.nodes.insert(NodeId(id), NodeRecord { name: name.into(), ..NodeRecord::default() });
        }
        let voters = [NodeId(1), NodeId(2), NodeId(3)];
        let judge = |lost: &[&str]| {
            let lost: Vec<String> = lost.iter().map(|text| (*text).to_owned()).collect();
            attested(&state, &voters, NodeId(1), &lost)
        };
        assert_eq!(judge(&["b", "3"]).unwrap(), ["b", "w"]);
        assert!(matches!(judge(&["b"]), Err(Failure::Refused(why)) if why.starts_with("w may be alive")));
        assert!(matches!(judge(&["b", "w", "x"]), Err(Failure::NotFound(_))));
        assert!(matches!(judge(&["a", "b", "w"]), Err(Failure::NotFound(_))), "the survivor itself is not lost");
    }
}
