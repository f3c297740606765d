//! `tandem volume …`.

use proto::admin as pb;
use proto::admin::volume_client::VolumeClient;
use serde_json::json;

use super::arguments::{AckPolicy, FilesystemKind, VolumeCommand};
use super::exit::Failure;
use super::session::{Session, confirm};
use super::table::{Align, Table};
use super::{fs, json, nfs, progress, scrub, text};
use crate::files::mke2fs::FILESYSTEM_BYTES_MIN;

pub(super) async fn run(session: &Session, command: VolumeCommand) -> Result<(), Failure> {
    match command {
        VolumeCommand::Create { name, size, nodes, ack, preallocate, fs, wait } => {
            let mut request = pb::CreateVolumeRequest { name, size_bytes: size, preallocate, nodes, ack_policy: 0 };
            request.set_ack_policy(match ack {
                AckPolicy::Flush => pb::AckPolicy::Flush,
                AckPolicy::Durable => pb::AckPolicy::Durable,
            });
            match fs {
                Some(FilesystemKind::Ext4) => create_with_filesystem(session, request).await,
                None => create(session, request, wait).await,
            }
        }
        VolumeCommand::List => list(session).await,
        VolumeCommand::Show { volume, follow: false } => show(session, &volume).await,
        VolumeCommand::Show { volume, follow: true } => progress::follow(session, &volume).await,
        VolumeCommand::Delete { volume, yes } => delete(session, &volume, yes).await,
        VolumeCommand::Switchover { volume, to, timeout } => switchover(session, &volume, to, timeout).await,
        VolumeCommand::ForcePrimary { volume, token: Some(token), .. } => force(session, &volume, token).await,
        VolumeCommand::ForcePrimary { volume, to, attest_off, token: None } => {
            prepare_force(session, &volume, to.unwrap_or_default(), attest_off.unwrap_or_default()).await
        }
        VolumeCommand::Scrub { volume, no_wait } => scrub::run(session, &volume, false, no_wait).await,
        VolumeCommand::Verify { volume, no_wait } => scrub::run(session, &volume, true, no_wait).await,
        VolumeCommand::Detach { volume, node } => detach(session, &volume, &node).await,
        VolumeCommand::Attach { volume, node } => attach(session, &volume, &node).await,
        VolumeCommand::AddReplica { volume, node } => add_replica(session, &volume, &node).await,
        VolumeCommand::Replace { volume, old, new, no_wait } => {
            replace(session, pb::ReplaceRequest { volume, old, new }, no_wait).await
        }
        VolumeCommand::RemoveReplica { volume, node } => remove_replica(session, &volume, &node).await,
    }
}

async fn create(session: &Session, request: pb::CreateVolumeRequest, wait: bool) -> Result<(), Failure> {
    let request = &request;
    let reply = session.call(|channel| async move { VolumeClient::new(channel).create(request.clone()).await }).await?;
    if wait {
        progress::until_serving(session, &request.name).await?;
        return show(session, &request.name).await;
    }
    let name = &request.name;
    let text = format!(
        "Volume {name} is being created; its stores are made in the background.\nSee: tandem volume show {name} --follow\n"
    );
    session.print(&json!({ "id": reply.volume, "name": name }), &text)
}

async fn create_with_filesystem(session: &Session, request: pb::CreateVolumeRequest) -> Result<(), Failure> {
    if request.size_bytes < FILESYSTEM_BYTES_MIN {
        return Err(Failure::Usage("a volume with a filesystem has at least 16M; nothing was done".into()));
    }
    let (name, request) = (&request.name, &request);
    session.call(|channel| async move { VolumeClient::new(channel).create(request.clone()).await }).await?;
    let made = async {
        progress::until_all_in_sync(session, name).await?;
        fs::make(session, name, false).await
    };
    made.await.map_err(|failure| {
        failure.map(|why| {
            format!(
                "{why}\nVolume {name} was created, and has no filesystem. See: tandem volume show {name}\n\
                 To make it: tandem fs make {name}    To give up: tandem volume delete {name}"
            )
        })
    })?;
    show(session, name).await
}

async fn list(session: &Session) -> Result<(), Failure> {
    let reply =
        session.call(|channel| async move { VolumeClient::new(channel).list(pb::ListVolumesRequest {}).await }).await?;
    session.print(&reply.volumes.iter().map(json::summary).collect(), &volumes_table(&reply.volumes))
}

async fn show(session: &Session, volume: &str) -> Result<(), Failure> {
    let reply = session.show(volume).await?;
    session.print(&json::details(&reply), &details_text(&reply))
}

async fn delete(session: &Session, volume: &str, yes: bool) -> Result<(), Failure> {
    let reply = session.show(volume).await?;
    let summary = reply.summary.unwrap_or_default();
    if !yes {
        let question = format!(
            "Volume {} ({}) and its data on {} will be deleted for ever.",
            summary.name,
            text::size(summary.size_bytes),
            summary.replicas.join(" and ")
        );
        confirm(&question, &summary.name)?;
    }
    let id = &summary.id;
    session
        .call(|channel| async move {
            VolumeClient::new(channel).delete(pb::DeleteVolumeRequest { volume: id.clone() }).await
        })
        .await?;
    session.print(&json!({ "deleted": summary.name, "id": id }), &format!("Volume {} deleted.\n", summary.name))
}

async fn switchover(session: &Session, volume: &str, to: Option<String>, seconds: u32) -> Result<(), Failure> {
    let request = &pb::SwitchoverRequest {
        volume: volume.to_owned(),
        to: to.unwrap_or_default(),
        timeout_ms: seconds.saturating_mul(1000),
    };
    let reply =
        session.call(|channel| async move { VolumeClient::new(channel).switchover(request.clone()).await }).await?;
    let value = json!({
        "primary": reply.primary,
        "primary_name": reply.primary_name,
        "epoch": reply.epoch,
        "took_ms": reply.took_ms,
    });
    let text =
        format!("{} is primary of {volume} (epoch {}, {} ms).\n", reply.primary_name, reply.epoch, reply.took_ms);
    session.print(&value, &text)
}

async fn prepare_force(session: &Session, volume: &str, target: String, attest_off: String) -> Result<(), Failure> {
    let request = &pb::PrepareForceRequest { volume: volume.to_owned(), target, attest_off };
    let plan =
        session.call(|channel| async move { VolumeClient::new(channel).prepare_force(request.clone()).await }).await?;
    let value = json!({
        "token": plan.token,
        "target": plan.target,
        "target_name": plan.target_name,
        "attested": plan.attested,
        "attested_name": plan.attested_name,
        "attested_incarnation": plan.attested_incarnation,
        "warnings": plan.warnings,
    });
    session.print(&value, &force_text(volume, &session.address, &plan))
}

async fn force(session: &Session, volume: &str, token: u64) -> Result<(), Failure> {
    let reply = session
        .call(|channel| async move {
            let request = pb::ForcePrimaryRequest { volume: volume.to_owned(), token };
            VolumeClient::new(channel).force_primary(request).await
        })
        .await?;
    let text = format!(
        "Forced: node {} is primary of {volume} at epoch {}. `tandem volume show {volume}` keeps a note that writes may \
         be missing.\n",
        reply.primary, reply.epoch
    );
    session.print(&json!({ "primary": reply.primary, "epoch": reply.epoch }), &text)
}

async fn detach(session: &Session, volume: &str, node: &str) -> Result<(), Failure> {
    session
        .call(|channel| async move {
            let request = pb::DetachRequest { volume: volume.to_owned(), node: node.to_owned() };
            VolumeClient::new(channel).detach(request).await
        })
        .await?;
    let text = format!(
        "The copy of {volume} on {node} is being detached; the other copy serves. To use it again: tandem volume attach \
         {volume} --node {node}\n"
    );
    session.print(&json!({ "volume": volume, "detached": node }), &text)
}

async fn attach(session: &Session, volume: &str, node: &str) -> Result<(), Failure> {
    session
        .call(|channel| async move {
            let request = pb::AttachRequest { volume: volume.to_owned(), node: node.to_owned() };
            VolumeClient::new(channel).attach(request).await
        })
        .await?;
    let text = format!(
        "The copy of {volume} on {node} is attached; what it lacks is resynced: tandem volume show {volume} --follow\n"
    );
    session.print(&json!({ "volume": volume, "attached": node }), &text)
}

async fn add_replica(session: &Session, volume: &str, node: &str) -> Result<(), Failure> {
    let reply = session
        .call(|channel| async move {
            let request = pb::AddReplicaRequest { volume: volume.to_owned(), node: node.to_owned() };
            VolumeClient::new(channel).add_replica(request).await
        })
        .await?;
    let text = format!("{node} gets a copy of {volume}; it resyncs: tandem volume show {volume} --follow\n");
    session.print(&json!({ "volume": volume, "node": node, "disk_id": reply.disk_id }), &text)
}

async fn replace(session: &Session, request: pb::ReplaceRequest, no_wait: bool) -> Result<(), Failure> {
    let request = &request;
    let reply =
        session.call(|channel| async move { VolumeClient::new(channel).replace(request.clone()).await }).await?;
    let (volume, new) = (&request.volume, &request.new);
    if !no_wait {
        progress::until_in_sync(session, volume, reply.new_node).await?;
    }
    let in_sync = reply.in_sync || !no_wait;
    let text = match in_sync {
        true => format!("The copy of {volume} on {new} is in sync; {} holds none any more.\n", request.old),
        false => format!("{new} gets the copy of {volume}; it resyncs: tandem volume show {volume} --follow\n"),
    };
    let value =
        json!({ "volume": volume, "old": request.old, "new": new, "disk_id": reply.disk_id, "in_sync": in_sync });
    session.print(&value, &text)
}

async fn remove_replica(session: &Session, volume: &str, node: &str) -> Result<(), Failure> {
    session
        .call(|channel| async move {
            let request = pb::RemoveReplicaRequest { volume: volume.to_owned(), node: node.to_owned() };
            VolumeClient::new(channel).remove_replica(request).await
        })
        .await?;
    session
        .print(&json!({ "volume": volume, "removed": node }), &format!("{node} holds no copy of {volume} any more.\n"))
}

fn force_text(volume: &str, address: &str, plan: &pb::PrepareForceReply) -> String {
    let mut text = format!("Nothing has been forced yet. Making {} primary of {volume} means:\n", plan.target_name);
    for warning in &plan.warnings {
        text += &format!("  - {warning}\n");
    }
    text += &format!(
        "\nAttested to be off: {} (run {}). If that is true and you accept the loss, run:\n\n  tandem --admin {address} \
         volume force-primary {volume} --token {}\n",
        plan.attested_name, plan.attested_incarnation, plan.token
    );
    text
}

/// The table of `volume list` and `cluster status`.
pub(super) fn volumes_table(volumes: &[pb::VolumeSummary]) -> String {
    let mut table = Table::new(&[
        ("VOLUME", Align::Left),
        ("SIZE", Align::Right),
        ("PRIMARY", Align::Left),
        ("IN SYNC", Align::Left),
        ("HEALTH", Align::Left),
    ]);
    for volume in volumes {
        table.row([
            volume.name.clone(),
            text::size(volume.size_bytes),
            volume.primary_name.clone(),
            format!("{} of {}", volume.in_sync.len(), volume.replicas.len()),
            text::health(volume.health.as_ref()),
        ]);
    }
    table.render()
}

/// The text of `volume show`.
pub(super) fn details_text(volume: &pb::ShowVolumeReply) -> String {
    let summary = volume.summary.clone().unwrap_or_default();
    let text = format!(
        "Volume   {} ({}, {})\nHealth   {}\nAck      {}\nEpoch    {} (version {})\nExport   nbd://{}/{}\n{}{}\n",
        summary.name,
        text::size(summary.size_bytes),
        text::phase(summary.phase()),
        text::health(summary.health.as_ref()),
        text::ack(volume.ack_policy()),
        volume.epoch,
        volume.version,
        volume.export_address,
        summary.name,
        summary.nfs.as_ref().map(nfs_line).unwrap_or_default(),
        scrub::lines(volume),
    );
    let mut table = Table::new(&[
        ("COPY ON", Align::Left),
        ("ROLE", Align::Left),
        ("IN SYNC", Align::Left),
        ("STORE", Align::Left),
        ("CLIENTS", Align::Right),
        ("NOTE", Align::Left),
    ]);
    for replica in &volume.replicas {
        let in_sync = if replica.in_sync { "yes" } else { "no" };
        table.row([
            replica.node_name.clone(),
            if replica.reachable { replica.role.clone() } else { "no answer".to_owned() },
            in_sync.to_owned(),
            text::store(replica.store()).to_owned(),
            replica.nbd_clients.to_string(),
            replica_note(replica, &volume.replicas),
        ]);
    }
    text + &table.render() + "\n" + &content_table(&volume.replicas)
}

/// How it is served over NFS, and whether anybody may use it.
fn nfs_line(service: &pb::NfsService) -> String {
    let exports = match service.exports.len() {
        0 => "no client has access".to_owned(),
        1 => "1 export rule".to_owned(),
        count => format!("{count} export rules"),
    };
    format!("NFS      {}; {exports}\n", nfs::place_text(service))
}

/// What is known of the content of each copy: what it lacks, and what its checksums have told since its store was opened.
fn content_table(all: &[pb::ReplicaView]) -> String {
    let mut table = Table::new(&[
        ("COPY ON", Align::Left),
        ("DIRTY", Align::Right),
        ("HOT EXTENTS", Align::Right),
        ("CHECKSUM ERRORS", Align::Right),
        ("REREAD", Align::Right),
        ("REPAIRED", Align::Right),
        ("BAD PAGES", Align::Right),
        ("UNVERIFIED", Align::Right),
    ]);
    for replica in all {
        let dirty = dirty_blocks(replica.node, all).map(text::blocks).unwrap_or_default();
        let mut cells = vec![replica.node_name.clone(), dirty];
        if let Some(copy) = &replica.copy {
            let counts = [
                copy.hot_extents,
                copy.checksum_errors,
                copy.checksum_errors_reread,
                copy.checksum_errors_repaired,
                copy.checksum_pages_damaged,
                copy.blocks_unverified,
            ];
            cells.extend(counts.map(|count| count.to_string()));
        }
        table.row(cells);
    }
    table.render()
}

/// Blocks that the copy on `node` may lack, if the primary tells.
fn dirty_blocks(node: u64, all: &[pb::ReplicaView]) -> Option<u64> {
    all.iter().flat_map(|replica| &replica.peers).find(|peer| peer.node == node).map(|peer| peer.dirty_blocks)
}

/// What is worth saying about one copy.
fn replica_note(replica: &pb::ReplicaView, all: &[pb::ReplicaView]) -> String {
    if !replica.store_error.is_empty() {
        return replica.store_error.clone();
    }
    if replica.store() == pb::StoreState::Creating {
        return format!("{} %", text::percent(replica.create_done_bytes, replica.create_total_bytes));
    }
    if let Some((remaining, done)) = resync_of(replica.node, all) {
        let time = match all.iter().flat_map(|copy| &copy.peers).find(|peer| peer.node == replica.node) {
            Some(peer) if peer.resync_left_micros > 0 => format!(" ({})", text::duration(peer.resync_left_micros)),
            _ => String::new(),
        };
        return format!("resync {} %, {} left{time}", text::percent(done, remaining + done), text::blocks(remaining));
    }
    if !replica.waiting.is_empty() {
        return format!("{} (since {} UTC)", replica.waiting, text::clock_time(replica.waiting_since_unix_micros));
    }
    if replica.cold { "restarted after a power loss".to_owned() } else { String::new() }
}

/// Blocks left and done of a resync towards `node`, if one runs.
pub(super) fn resync_of(node: u64, all: &[pb::ReplicaView]) -> Option<(u64, u64)> {
    let source = all.iter().find(|replica| replica.serving)?;
    let peer = source.peers.iter().find(|peer| peer.node == node)?;
    let running = peer.state == "resyncing" && peer.resync_remaining_blocks > 0;
    running.then_some((peer.resync_remaining_blocks, peer.resync_done_blocks))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(node: u64, serving: bool) -> pb::ReplicaView {
        pb::ReplicaView {
            node,
            node_name: format!("box-{node}"),
            serving,
            reachable: true,
            ..pb::ReplicaView::default()
        }
    }

    #[test]
    fn show_tells_a_resync_with_what_is_left() {
        let mut primary = copy(1, true);
        primary.peers.push(pb::PeerView {
            node: 2,
            state: "resyncing".into(),
            resync_remaining_blocks: 256,
            resync_done_blocks: 768,
            dirty_blocks: 256,
            resync_left_micros: 5_000_000,
        });
        primary.copy = Some(pb::CopyView { checksum_errors: 3, hot_extents: 17, ..pb::CopyView::default() });
        let reply = pb::ShowVolumeReply { replicas: vec![primary, copy(2, false)], ..pb::ShowVolumeReply::default() };
        let text = details_text(&reply);
        assert!(text.contains("resync 75 %, 1 MiB left (5 s)"), "{text}");
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert!(lines.contains(&vec!["box-1", "-", "17", "3", "0", "0", "0", "0"]), "{text}");
        assert!(lines.contains(&vec!["box-2", "1", "MiB", "-", "-", "-", "-", "-", "-"]), "{text}");
    }

    #[test]
    fn show_tells_where_a_volume_is_served_over_nfs_and_nothing_if_it_is_not() {
        let mut reply = pb::ShowVolumeReply { summary: Some(pb::VolumeSummary::default()), ..Default::default() };
        assert!(!details_text(&reply).contains("NFS"));
        let service = pb::NfsService { port: 2049, reached_at: vec!["box-a:2049".into()], ..Default::default() };
        reply.summary.as_mut().unwrap().nfs = Some(service);
        let text = details_text(&reply);
        let line = "\nNFS      the primary's own address, now box-a:2049; no client has access\n";
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn show_marks_a_silent_node() {
        let silent = pb::ReplicaView { reachable: false, ..copy(2, false) };
        let reply = pb::ShowVolumeReply { replicas: vec![silent], ..pb::ShowVolumeReply::default() };
        assert!(details_text(&reply).contains("no answer"));
    }

    #[test]
    fn the_first_step_of_force_prints_the_second_command() {
        let plan = pb::PrepareForceReply {
            token: 77,
            target_name: "box-b".into(),
            attested_name: "box-a".into(),
            attested_incarnation: "00000000000000ff".into(),
            warnings: vec!["Writes will be gone.".into()],
            ..pb::PrepareForceReply::default()
        };
        let text = force_text("vm", "10.0.0.2:7401", &plan);
        assert!(text.starts_with("Nothing has been forced yet"));
        assert!(text.contains("  - Writes will be gone."));
        assert!(text.contains("box-a (run 00000000000000ff)"));
        assert!(text.contains("tandem --admin 10.0.0.2:7401 volume force-primary vm --token 77\n"));
    }
}
