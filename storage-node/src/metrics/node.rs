//! Metrics of the node itself, and of Raft as it sees it.

use proto::Timestamp;
use replication::config::{ClusterState, NodeKind};

use super::exposition::{Exposition, Kind, seconds};
use crate::admin::NodeFacts;
use crate::raft::RaftStatus;

pub(super) fn put(
    out: &mut Exposition,
    facts: &NodeFacts,
    now: Timestamp,
    (state, raft): (&ClusterState, &RaftStatus),
) {
    let kind = if facts.record.kind == NodeKind::Witness { "witness" } else { "storage" };
    let labels = [("version", facts.software.as_str()), ("node", facts.record.name.as_str()), ("kind", kind)];
    out.family("tandem_build_info", Kind::Gauge, "Version, name and kind of the node; always 1.")
        .sample(&labels, 1_u64);
    let up = seconds(now.since(facts.started).0);
    out.single("tandem_uptime_seconds", Kind::Gauge, "Since this run of the node's worker began.", up);
    let out_of_service = facts.out_of_service.is_some();
    out.single(
        "tandem_out_of_service",
        Kind::Gauge,
        "The node takes no part in its cluster; see its log.",
        out_of_service,
    );
    let Some((_, me)) = facts.identity else { return };
    let has_leader = raft.leader != proto::NodeId::NONE;
    out.single("tandem_raft_term", Kind::Gauge, "Raft term.", raft.term);
    out.single("tandem_raft_applied_index", Kind::Gauge, "Last Raft entry applied here.", raft.applied);
    out.single("tandem_raft_leader", Kind::Gauge, "This node leads.", raft.leader == me);
    out.single("tandem_raft_has_leader", Kind::Gauge, "A leader is known here.", has_leader);
    let voters = raft.members.values().filter(|votes| **votes).count();
    out.single("tandem_raft_voters", Kind::Gauge, "Voters.", voters);
    if raft.leader == me {
        let mut family = out.family("tandem_raft_heard", Kind::Gauge, "Told by the leader: the node answers.");
        for (node, heard) in &raft.heard {
            let name = state.nodes.get(node).map_or_else(|| node.to_string(), |record| record.name.clone());
            family.sample(&[("peer", &name)], *heard);
        }
    }
}
