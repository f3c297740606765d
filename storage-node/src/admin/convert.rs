//! Between the API's messages and the node's own types.

use proto::admin as pb;
use proto::{Boot, Incarnation, NodeId, RequestId, Timestamp};
use replication::ScrubReport;
use replication::config::{AckPolicy, ClusterState, NodeKind, NodeRecord, Phase, VolumeConfig};

use super::context::{Clock, View, name_of};
use super::health::{Health, Level, ReplicaFacts};
use super::nfs_messages::{service_message, service_reached_at};
use super::operations::{NodeFacts, OperationError, ReplicaReport, StoreState};
use crate::raft::RaftStatus;
use crate::volume::handle::CopyStatistics;

/// A node's record as a message.
pub(super) fn node_record(id: NodeId, record: &NodeRecord) -> pb::NodeRecord {
    pb::NodeRecord {
        id: id.0,
        name: record.name.clone(),
        kind: match record.kind {
            NodeKind::Storage => pb::NodeKind::Storage,
            NodeKind::Witness => pb::NodeKind::Witness,
        } as i32,
        peer_address: record.peer_address.clone(),
        admin_address: record.admin_address.clone(),
        nbd_address: record.nbd_address.clone(),
        incarnation: record.incarnation.to_string(),
        boot: record.boot.to_string(),
        feature_level_min: record.feature_levels.0,
        feature_level_max: record.feature_levels.1,
        join_request: record.join_request.to_string(),
    }
}

/// A node's record from a message of another node; everything is checked.
pub(super) fn node_record_from(message: &pb::NodeRecord) -> Result<NodeRecord, OperationError> {
    let invalid = |what: &str| OperationError::Invalid(format!("the node's record has no usable {what}"));
    let hex64 = |text: &str, what| u64::from_str_radix(text, 16).map_err(|_| invalid(what));
    let hex128 = |text: &str, what| u128::from_str_radix(text, 16).map_err(|_| invalid(what));
    Ok(NodeRecord {
        name: message.name.clone(),
        kind: match message.kind() {
            pb::NodeKind::Storage => NodeKind::Storage,
            pb::NodeKind::Witness => NodeKind::Witness,
            pb::NodeKind::Unspecified => return Err(invalid("kind")),
        },
        peer_address: message.peer_address.clone(),
        admin_address: message.admin_address.clone(),
        nbd_address: message.nbd_address.clone(),
        incarnation: Incarnation(hex64(&message.incarnation, "incarnation")?),
        boot: Boot(hex128(&message.boot, "boot id")?),
        feature_levels: (message.feature_level_min, message.feature_level_max),
        join_request: RequestId(hex128(&message.join_request, "join request")?),
    })
}

/// Raft's status as a message.
pub(super) fn raft_view(raft: &RaftStatus, clock: Clock) -> pb::RaftView {
    let voters = raft.members.values().filter(|voter| **voter).count();
    pb::RaftView {
        leader: raft.leader.0,
        term: raft.term,
        applied: raft.applied,
        voters: voters as u32,
        learners: (raft.members.len() - voters) as u32,
        leaderless_since_unix_micros: raft.leaderless_since.map_or(0, |at| clock.unix(Timestamp(at))),
    }
}

/// A node's report on itself.
pub(super) fn node_status(
    facts: &NodeFacts,
    raft: &RaftStatus,
    replicas: &[ReplicaReport],
    clock: Clock,
) -> pb::NodeStatusReply {
    let node = facts.identity.map_or(NodeId::NONE, |(_, node)| node);
    pb::NodeStatusReply {
        cluster: facts.identity.map(|(cluster, _)| cluster.to_string()).unwrap_or_default(),
        record: Some(node_record(node, &facts.record)),
        raft: Some(raft_view(raft, clock)),
        supervisor_pid: facts.supervisor_pid,
        worker_pid: facts.worker_pid,
        started_unix_micros: clock.unix(facts.started),
        software: facts.software.clone(),
        insecure_plaintext: facts.insecure_plaintext,
        out_of_service: facts.out_of_service.clone().unwrap_or_default(),
        nfs_host: facts.nfs_host.clone(),
        replicas: replicas
            .iter()
            .map(|report| pb::LocalReplica {
                volume_id: report.volume.to_string(),
                view: Some(local_replica(node, &facts.record.name, report, clock)),
            })
            .collect(),
    }
}

fn local_replica(node: NodeId, name: &str, report: &ReplicaReport, clock: Clock) -> pb::ReplicaView {
    let status = &report.status;
    let (waiting, since) = match &status.waiting {
        Some((what, since)) => (what.clone(), clock.unix(*since)),
        None => (String::new(), 0),
    };
    let mut view = pb::ReplicaView {
        node: node.0,
        node_name: name.to_owned(),
        disk_id: report.disk_id.to_string(),
        reachable: true,
        role: status.role.to_owned(),
        serving: status.serving,
        waiting,
        waiting_since_unix_micros: since,
        path: report.path.clone(),
        operations: status.operations as u64,
        nbd_clients: report.nbd_clients as u64,
        peers: status
            .peers
            .iter()
            .map(|(node, state, remaining, done)| pb::PeerView {
                node: node.0,
                state: (*state).to_owned(),
                resync_remaining_blocks: *remaining,
                resync_done_blocks: *done,
                dirty_blocks: *remaining,
                resync_left_micros: report
                    .resync_left
                    .iter()
                    .find(|(peer, _)| peer == node)
                    .map_or(0, |(_, left)| left.0.max(1)),
            })
            .collect(),
        data_offset_bytes: report.data_offset,
        copy: report.copy.map(copy),
        scrub: status.scrub.map(|found| pb::ScrubView {
            left_micros: report.scrub_left.map_or(0, |left| left.0.max(1)),
            ..scrub(&found)
        }),
        last_scrub: last_scrub(report, clock),
        ..pb::ReplicaView::default()
    };
    let store = match &report.store {
        StoreState::Missing => pb::StoreState::Missing,
        StoreState::Creating { done, total } => {
            view.create_done_bytes = *done;
            view.create_total_bytes = *total;
            pb::StoreState::Creating
        }
        StoreState::Open => pb::StoreState::Open,
        StoreState::Detached => pb::StoreState::Detached,
        StoreState::Failed(why) => {
            view.store_error = why.clone();
            pb::StoreState::Failed
        }
    };
    view.set_store(store);
    view
}

/// The last scrub by this run, or else the one that the copy remembers.
fn last_scrub(report: &ReplicaReport, clock: Clock) -> Option<pb::ScrubView> {
    let of_this_run = report.status.last_scrub.map(|(at, found)| pb::ScrubView {
        ended_unix_micros: clock.unix(at),
        ended_boot_micros: at.0,
        ..scrub(&found)
    });
    let remembered = report.copy.and_then(|copy| copy.last_scrub);
    of_this_run.or_else(|| remembered.map(|(ended, found)| pb::ScrubView { ended_unix_micros: ended, ..scrub(&found) }))
}

/// What a copy knows of its content, as a message.
fn copy(copy: CopyStatistics) -> pb::CopyView {
    let CopyStatistics { counters, hot_extents, last_scrub: _ } = copy;
    pb::CopyView {
        checksum_errors: counters.mismatches,
        checksum_errors_reread: counters.reread,
        checksum_errors_repaired: counters.repaired,
        checksum_pages_damaged: counters.pages_damaged,
        blocks_unverified: counters.unverified,
        hot_extents,
    }
}

/// What a scrub has found, as a message without times.
pub(super) fn scrub(report: &ScrubReport) -> pb::ScrubView {
    pb::ScrubView {
        verify_only: report.verify_only,
        blocks: report.blocks,
        done_blocks: report.done_blocks,
        bad_on_primary: report.bad_here,
        bad_on_peers: report.bad_at_peers,
        differing: report.differing,
        repaired: report.repaired,
        skipped_parts: report.skipped_steps,
        ..pb::ScrubView::default()
    }
}

/// The facts that health is worded from, out of a node's report.
pub(super) fn replica_facts(view: &pb::ReplicaView) -> ReplicaFacts {
    ReplicaFacts {
        role: view.role.clone(),
        serving: view.serving,
        waiting: (!view.waiting.is_empty()).then(|| (view.waiting.clone(), view.waiting_since_unix_micros)),
        store: match view.store() {
            pb::StoreState::Creating => {
                StoreState::Creating { done: view.create_done_bytes, total: view.create_total_bytes }
            }
            pb::StoreState::Open => StoreState::Open,
            pb::StoreState::Detached => StoreState::Detached,
            pb::StoreState::Failed => StoreState::Failed(view.store_error.clone()),
            _ => StoreState::Missing,
        },
        peers: view
            .peers
            .iter()
            .map(|peer| {
                let blocks = (peer.resync_remaining_blocks, peer.resync_done_blocks);
                (NodeId(peer.node), peer.state.clone(), blocks.0, blocks.1)
            })
            .collect(),
    }
}

/// Health as a message.
pub(super) fn health(health: Health) -> pb::Health {
    let level = match health.level {
        Level::Healthy => pb::HealthLevel::Healthy,
        Level::Busy => pb::HealthLevel::Busy,
        Level::Degraded => pb::HealthLevel::Degraded,
        Level::Down => pb::HealthLevel::Down,
    };
    pb::Health { level: level as i32, text: health.text }
}

/// A phase as a message.
pub(super) fn phase(phase: Phase) -> pb::Phase {
    match phase {
        Phase::Creating => pb::Phase::Creating,
        Phase::Active => pb::Phase::Active,
    }
}

/// An acknowledgement policy as a message.
pub(super) fn ack_policy(policy: AckPolicy) -> pb::AckPolicy {
    match policy {
        AckPolicy::Flush => pb::AckPolicy::Flush,
        AckPolicy::Durable => pb::AckPolicy::Durable,
    }
}

/// Names of the nodes of a set, in order of their ids.
pub(super) fn node_names<'a>(state: &ClusterState, nodes: impl IntoIterator<Item = &'a NodeId>) -> Vec<String> {
    nodes.into_iter().map(|node| name_of(state, *node)).collect()
}

/// One line of `volume list`; without health.
pub(super) fn volume_summary(state: &ClusterState, config: &VolumeConfig) -> pb::VolumeSummary {
    pb::VolumeSummary {
        id: config.id.to_string(),
        name: config.name.clone(),
        size_bytes: config.size_bytes,
        phase: phase(config.phase) as i32,
        primary: config.primary.0,
        primary_name: name_of(state, config.primary),
        in_sync: node_names(state, config.in_sync.keys()),
        replicas: node_names(state, config.replicas.keys()),
        health: None,
        nfs: config.nfs.as_ref().map(|service| service_message(state, config, service)),
    }
}

/// One line of `volume list`.
pub(super) fn volume_summary_in(view: &View, config: &VolumeConfig) -> pb::VolumeSummary {
    let mut summary = volume_summary(&view.state, config);
    summary.health = Some(health(view.volume_health(config)));
    summary.nfs = nfs_service_in(view, config);
    summary
}

/// How a volume is served over NFS. The primary knows better than the state where it listens.
pub(super) fn nfs_service_in(view: &View, config: &VolumeConfig) -> Option<pb::NfsService> {
    let service = config.nfs.as_ref()?;
    match view.nodes.get(&config.primary).map(|primary| primary.nfs_host.as_str()) {
        None | Some("") => Some(service_message(&view.state, config, service)),
        Some(own_host) => Some(service_reached_at(service, own_host)),
    }
}

/// Everything about a volume.
pub(super) fn volume_details(view: &View, config: &VolumeConfig) -> pb::ShowVolumeReply {
    let replicas = config.replicas.iter().map(|(node, registration)| {
        let live = view
            .replica(*node, config.id)
            .cloned()
            .unwrap_or_else(|| pb::ReplicaView { store: pb::StoreState::Unknown as i32, ..pb::ReplicaView::default() });
        pb::ReplicaView {
            node: node.0,
            node_name: view.name(*node),
            disk_id: registration.disk_id.to_string(),
            ready: registration.ready,
            in_sync: config.in_sync.contains_key(node),
            cold: config.is_cold(*node),
            reachable: view.nodes.contains_key(node),
            ..live
        }
    });
    pb::ShowVolumeReply {
        summary: Some(volume_summary_in(view, config)),
        ack_policy: ack_policy(config.ack_policy) as i32,
        feature_level: config.feature_level,
        preallocate: config.preallocate,
        epoch: config.epoch.0,
        version: config.version.0,
        loss_possible_epoch: config.loss_possible.map_or(0, |epoch| epoch.0),
        unflushed_loss_epoch: config.unflushed_loss.map_or(0, |epoch| epoch.0),
        export_address: view.state.nodes.get(&config.primary).map(|node| node.nbd_address.clone()).unwrap_or_default(),
        replicas: replicas.collect(),
    }
}

/// Every node, with what is known of it.
pub(super) fn node_views(view: &View) -> Vec<pb::NodeView> {
    let nodes = view.state.nodes.iter();
    nodes
        .map(|(node, record)| pb::NodeView {
            record: Some(node_record(*node, record)),
            voter: view.raft.members.get(node).copied().unwrap_or(false),
            raft_leader: view.raft.leader == *node,
            reachable: view.nodes.contains_key(node),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_the_way_to_another_node() {
        let record = NodeRecord {
            name: "box-b".into(),
            kind: NodeKind::Storage,
            peer_address: "10.0.0.2:7400".into(),
            admin_address: "10.0.0.2:7401".into(),
            nbd_address: "10.0.0.2:10809".into(),
            incarnation: Incarnation(0xfeed),
            boot: Boot(u128::MAX),
            feature_levels: (1, 3),
            join_request: RequestId(42),
        };
        assert_eq!(node_record_from(&node_record(NodeId(2), &record)), Ok(record));
    }

    #[test]
    fn a_hostile_record_is_invalid_not_a_panic() {
        let good = node_record(NodeId(2), &NodeRecord::default());
        for spoil in [
            (|record| record.kind = 77) as fn(&mut pb::NodeRecord),
            |record| record.boot = "not hex".into(),
            |record| record.incarnation = "1ffffffffffffffff".into(),
            |record| record.join_request = String::new(),
        ] {
            let mut bad = good.clone();
            spoil(&mut bad);
            assert!(matches!(node_record_from(&bad), Err(OperationError::Invalid(_))), "{bad:?}");
        }
    }

    #[test]
    fn boot_time_stamps_become_calendar_time() {
        let clock = Clock::now(Timestamp(10_000_000));
        assert_eq!(clock.unix_now() - clock.unix(Timestamp(4_000_000)), 6_000_000);
        assert_eq!(clock.unix(Timestamp(99_000_000)), clock.unix_now());
    }
}
