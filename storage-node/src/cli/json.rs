//! JSON for programs: field names as in the API, enums as words, ids as text, sizes in bytes.

use proto::admin as pb;
use proto::admin::event::Kind;
use serde_json::{Map, Value, json};

use super::text;

/// Health.
pub(crate) fn health(health: Option<&pb::Health>) -> Value {
    match health {
        Some(health) => json!({ "level": text::level(health.level()), "text": health.text }),
        None => Value::Null,
    }
}

/// A node.
pub(crate) fn node(view: &pb::NodeView) -> Value {
    let mut value = record(view.record.as_ref());
    let fields = json!({ "voter": view.voter, "raft_leader": view.raft_leader, "reachable": view.reachable });
    merge(&mut value, fields);
    value
}

/// A node's record.
pub(crate) fn record(record: Option<&pb::NodeRecord>) -> Value {
    let Some(record) = record else { return json!({}) };
    json!({
        "id": record.id,
        "name": record.name,
        "kind": text::kind(record.kind()),
        "peer_address": record.peer_address,
        "admin_address": record.admin_address,
        "nbd_address": record.nbd_address,
        "incarnation": record.incarnation,
        "boot": record.boot,
        "feature_level_min": record.feature_level_min,
        "feature_level_max": record.feature_level_max,
    })
}

/// Raft.
pub(crate) fn raft(raft: Option<&pb::RaftView>) -> Value {
    let Some(raft) = raft else { return Value::Null };
    json!({
        "leader": raft.leader,
        "term": raft.term,
        "applied": raft.applied,
        "voters": raft.voters,
        "learners": raft.learners,
        "leaderless_since_unix_micros": nonzero(raft.leaderless_since_unix_micros),
    })
}

/// A line of `volume list`.
pub(crate) fn summary(volume: &pb::VolumeSummary) -> Value {
    json!({
        "id": volume.id,
        "name": volume.name,
        "size_bytes": volume.size_bytes,
        "phase": text::phase(volume.phase()),
        "primary": volume.primary,
        "primary_name": volume.primary_name,
        "in_sync": volume.in_sync,
        "replicas": volume.replicas,
        "health": health(volume.health.as_ref()),
        "nfs": volume.nfs.as_ref().map(nfs_service),
    })
}

/// How a volume is served over NFS.
pub(crate) fn nfs_service(service: &pb::NfsService) -> Value {
    json!({
        "addresses": service.addresses.iter().map(|address| json!({
            "address": address.address,
            "prefix_length": address.prefix_length,
            "interface": address.interface,
        })).collect::<Vec<_>>(),
        "port": service.port,
        "exports": service.exports.iter().map(export_rule).collect::<Vec<_>>(),
        "version": service.version,
        "reached_at": service.reached_at,
    })
}

/// What the clients of one network may do.
pub(crate) fn export_rule(rule: &pb::ExportRule) -> Value {
    json!({
        "client": rule.client,
        "access": text::export_access(rule.access()),
        "squash": text::export_squash(rule.squash()),
        "anonymous_uid": rule.anonymous_uid(),
        "anonymous_gid": rule.anonymous_gid(),
    })
}

/// `volume show`.
pub(crate) fn details(volume: &pb::ShowVolumeReply) -> Value {
    let mut value = volume.summary.as_ref().map_or_else(|| json!({}), summary);
    let fields = json!({
        "ack_policy": text::ack(volume.ack_policy()),
        "feature_level": volume.feature_level,
        "preallocate": volume.preallocate,
        "epoch": volume.epoch,
        "version": volume.version,
        "loss_possible_epoch": nonzero(volume.loss_possible_epoch),
        "unflushed_loss_epoch": nonzero(volume.unflushed_loss_epoch),
        "export_address": volume.export_address,
        "replicas": volume.replicas.iter().map(replica).collect::<Vec<_>>(),
    });
    merge(&mut value, fields);
    value
}

/// One copy.
pub(crate) fn replica(replica: &pb::ReplicaView) -> Value {
    json!({
        "node": replica.node,
        "node_name": replica.node_name,
        "disk_id": replica.disk_id,
        "ready": replica.ready,
        "in_sync": replica.in_sync,
        "cold": replica.cold,
        "reachable": replica.reachable,
        "role": replica.role,
        "serving": replica.serving,
        "waiting": replica.waiting,
        "waiting_since_unix_micros": nonzero(replica.waiting_since_unix_micros),
        "store": text::store(replica.store()),
        "store_error": replica.store_error,
        "create_done_bytes": replica.create_done_bytes,
        "create_total_bytes": replica.create_total_bytes,
        "path": replica.path,
        "data_offset_bytes": replica.data_offset_bytes,
        "operations": replica.operations,
        "nbd_clients": replica.nbd_clients,
        "peers": replica.peers.iter().map(|peer| json!({
            "node": peer.node,
            "state": peer.state,
            "resync_remaining_blocks": peer.resync_remaining_blocks,
            "resync_done_blocks": peer.resync_done_blocks,
            "resync_left_micros": nonzero(peer.resync_left_micros),
            "dirty_blocks": peer.dirty_blocks,
        })).collect::<Vec<_>>(),
        "copy": replica.copy.as_ref().map(|copy| json!({
            "checksum_errors": copy.checksum_errors,
            "checksum_errors_reread": copy.checksum_errors_reread,
            "checksum_errors_repaired": copy.checksum_errors_repaired,
            "checksum_pages_damaged": copy.checksum_pages_damaged,
            "blocks_unverified": copy.blocks_unverified,
            "hot_extents": copy.hot_extents,
        })),
        "scrub": replica.scrub.as_ref().map(scrub),
        "last_scrub": replica.last_scrub.as_ref().map(scrub),
    })
}

/// A scrub under way, or one that ended.
pub(crate) fn scrub(scrub: &pb::ScrubView) -> Value {
    json!({
        "verify_only": scrub.verify_only,
        "blocks": scrub.blocks,
        "done_blocks": scrub.done_blocks,
        "bad_on_primary": scrub.bad_on_primary,
        "bad_on_peers": scrub.bad_on_peers,
        "differing": scrub.differing,
        "repaired": scrub.repaired,
        "skipped_parts": scrub.skipped_parts,
        "ended_unix_micros": nonzero(scrub.ended_unix_micros),
        "left_micros": nonzero(scrub.left_micros),
    })
}

/// `node status`.
pub(crate) fn node_status(status: &pb::NodeStatusReply) -> Value {
    let mut value = record(status.record.as_ref());
    let fields = json!({
        "cluster": status.cluster,
        "raft": raft(status.raft.as_ref()),
        "supervisor_pid": status.supervisor_pid,
        "worker_pid": status.worker_pid,
        "started_unix_micros": status.started_unix_micros,
        "software": status.software,
        "insecure_plaintext": status.insecure_plaintext,
        "out_of_service": status.out_of_service,
        "replicas": status.replicas.iter().filter_map(|local| {
            let mut value = replica(local.view.as_ref()?);
            merge(&mut value, json!({ "volume_id": local.volume_id }));
            Some(value)
        }).collect::<Vec<_>>(),
    });
    merge(&mut value, fields);
    value
}

/// One line of `watch --json`.
pub(crate) fn event(event: &pb::Event) -> Value {
    let (kind, mut value) = match event.kind.as_ref() {
        None => ("unknown", json!({})),
        Some(Kind::Snapshot(snapshot)) => (
            "snapshot",
            json!({
                "raft_leader": snapshot.raft_leader,
                "volumes": snapshot.volumes.iter().map(summary).collect::<Vec<_>>(),
            }),
        ),
        Some(Kind::Role(role)) => ("role", json!({ "from": role.from, "to": role.to, "epoch": role.epoch })),
        Some(Kind::Peer(peer)) => {
            ("peer", json!({ "peer": peer.node, "peer_name": peer.node_name, "state": peer.state }))
        }
        Some(Kind::Resync(resync)) => (
            "resync",
            json!({
                "peer": resync.node,
                "peer_name": resync.node_name,
                "remaining_blocks": resync.remaining_blocks,
                "sent_blocks": resync.sent_blocks,
                "done": resync.done,
            }),
        ),
        Some(Kind::DiskDetached(detached)) => ("disk_detached", json!({ "failed": detached.failed })),
        Some(Kind::SwitchoverRefused(refused)) => ("switchover_refused", json!({ "why": refused.why })),
        Some(Kind::RaftLeader(leader)) => {
            ("raft_leader", json!({ "leader": leader.leader, "leader_name": leader.leader_name, "term": leader.term }))
        }
        Some(Kind::Configuration(configuration)) => (
            "configuration",
            json!({
                "phase": text::phase(configuration.phase()),
                "epoch": configuration.epoch,
                "version": configuration.version,
                "primary": configuration.primary,
                "primary_name": configuration.primary_name,
                "in_sync": configuration.in_sync,
                "deleted": configuration.deleted,
            }),
        ),
        Some(Kind::Nfs(change)) => {
            ("nfs", json!({ "service": change.service.as_ref().map(nfs_service), "version": change.version }))
        }
        Some(Kind::StoreProgress(progress)) => {
            ("store_progress", json!({ "done_bytes": progress.done_bytes, "total_bytes": progress.total_bytes }))
        }
        Some(Kind::Scrub(progress)) => {
            let mut value = scrub(&progress.scrub.unwrap_or_default());
            merge(&mut value, json!({ "done": progress.done }));
            ("scrub", value)
        }
        Some(Kind::ScrubRefused(refused)) => ("scrub_refused", json!({ "why": refused.why })),
        Some(Kind::Membership(membership)) => ("membership", json!({ "nodes": membership.nodes })),
        Some(Kind::Missed(missed)) => ("missed", json!({ "events": missed })),
        Some(Kind::Text(text)) => ("text", json!({ "text": text })),
    };
    let common = json!({
        "at_unix_micros": event.at_unix_micros,
        "node": event.node,
        "node_name": event.node_name,
        "volume": event.volume,
        "kind": kind,
    });
    merge(&mut value, common);
    value
}

fn nonzero(number: u64) -> Value {
    if number == 0 { Value::Null } else { number.into() }
}

/// Adds the fields of `more` to `value`; both are objects.
fn merge(value: &mut Value, more: Value) {
    let (Value::Object(value), Value::Object(more)) = (value, more) else { return };
    let mut fields: Map<String, Value> = more;
    value.append(&mut fields);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_flat_objects_with_their_kind() {
        let role = pb::Event {
            node: 1,
            volume: "vm".into(),
            kind: Some(Kind::Role(pb::RoleChange { from: "secondary".into(), to: "primary".into(), epoch: 4 })),
            ..pb::Event::default()
        };
        let value = event(&role);
        assert_eq!(value["kind"], "role");
        assert_eq!(value["to"], "primary");
        assert_eq!(value["volume"], "vm");
        assert_eq!(event(&pb::Event::default())["kind"], "unknown");
    }

    #[test]
    fn details_carry_words_for_enums_and_null_for_never() {
        let mut summary = pb::VolumeSummary { name: "vm".into(), ..pb::VolumeSummary::default() };
        summary.set_phase(pb::Phase::Active);
        let value = details(&pb::ShowVolumeReply { summary: Some(summary), ..pb::ShowVolumeReply::default() });
        assert_eq!(value["phase"], "active");
        assert_eq!(value["loss_possible_epoch"], Value::Null);
        assert_eq!(value["replicas"], json!([]));
    }
}
