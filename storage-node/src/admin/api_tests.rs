//! The services over real connections on loopback, with nodes that have no disks.

mod nfs;
mod nfs_statistics;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use proto::admin as pb;
use proto::admin::cluster_client::ClusterClient;
use proto::admin::event::Kind;
use proto::admin::node_client::NodeClient;
use proto::admin::volume_client::VolumeClient;
use proto::admin::watch_client::WatchClient;
use proto::{DiskId, Micros, NodeId, Timestamp};
use replication::config::command::CommandBody;
use replication::config::{NodeCommand, NodeRecord, Phase, VolumeCommand};
use replication::local_copy::Counters;
use replication::{Notice, ScrubReport};
use tokio::sync::oneshot;
use tonic::Code;
use tonic::transport::Channel;

use super::client::{connect, follow};
use super::fake_node::FakeNode;
use super::operations::{NodeEvent, NodeEventKind, ReplicaReport, StoreState};
use super::serve;
use crate::net::transport::Transport;
use crate::volume::handle::{Acknowledged, CopyStatistics};

/// A node that serves its API until dropped.
struct Served {
    node: Arc<FakeNode>,
    address: String,
    _stop: oneshot::Sender<()>,
}

async fn served(name: &str) -> Served {
    let transport = Transport::default();
    let listener = transport.listen("127.0.0.1:0").await.unwrap();
    let address = listener.local_address().unwrap().to_string();
    let node = FakeNode::new(name, &address);
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = serve(listener, transport, node.clone(), async {
        // Dropping the sender is the signal.
        let _ = stopped.await;
    });
    tokio::spawn(serving);
    Served { node, address, _stop: stop }
}

impl Served {
    async fn channel(&self) -> Channel {
        connect(&Transport::default(), &self.address).await.unwrap()
    }

    async fn volumes(&self) -> VolumeClient<Channel> {
        VolumeClient::new(self.channel().await)
    }

    async fn cluster(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel().await)
    }
}

/// A node that made a cluster, and a second storage node that joined it.
async fn pair() -> (Served, Served) {
    let (first, second) = (served("box-a").await, served("box-b").await);
    first.cluster().await.init(pb::InitRequest {}).await.unwrap();
    let request = pb::JoinRequest { member_address: first.address.clone() };
    second.cluster().await.join(request).await.unwrap();
    (first, second)
}

fn create(name: &str) -> pb::CreateVolumeRequest {
    pb::CreateVolumeRequest { name: name.into(), size_bytes: 1 << 30, ..Default::default() }
}

/// Creates a volume and makes its stores stand.
async fn active_volume(first: &Served, name: &str) {
    first.volumes().await.create(create(name)).await.unwrap();
    let state = first.node.state.borrow().clone();
    let config = state.volumes.values().find(|config| config.name == name).unwrap();
    for (node, registration) in &config.replicas {
        let command = VolumeCommand::ReplicaReady { node: *node, disk_id: registration.disk_id };
        let expect_version = first.node.state.borrow().volumes[&config.id].version;
        first.node.apply(CommandBody::Volume { volume: config.id, expect_version, command });
    }
    assert_eq!(first.node.state.borrow().volumes[&config.id].phase, Phase::Active);
}

#[tokio::test]
async fn a_node_joins_with_a_vote_and_a_repeated_join_is_fine() {
    let (first, second) = pair().await;
    assert_eq!(second.node.identity.lock().unwrap().unwrap().1, NodeId(2));
    assert!(first.node.raft.borrow().members[&NodeId(2)]);
    let again = pb::JoinRequest { member_address: first.address.clone() };
    assert_eq!(second.cluster().await.join(again).await.unwrap().into_inner().node, 2);
    let nodes = first.cluster().await.list_nodes(pb::ListNodesRequest {}).await.unwrap().into_inner().nodes;
    assert!(nodes.iter().all(|node| node.reachable && node.voter), "{nodes:?}");
}

#[tokio::test]
async fn a_second_node_of_the_same_name_is_refused() {
    let (first, _second) = pair().await;
    let third = served("box-b").await;
    let request = pb::JoinRequest { member_address: first.address.clone() };
    let refused = third.cluster().await.join(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
    assert!(refused.message().contains("box-b"));
}

#[tokio::test]
async fn a_node_that_is_out_of_service_joins_nobody_and_leaves_no_trace_there() {
    let (first, _second) = pair().await;
    let third = served("box-c").await;
    *third.node.out_of_service.lock().unwrap() = Some("removed: do this".into());
    let request = pb::JoinRequest { member_address: first.address.clone() };
    let refused = third.cluster().await.join(request.clone()).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::FailedPrecondition, "removed: do this"));
    assert_eq!(first.node.state.borrow().nodes.len(), 2, "no newcomer is on record");
    *third.node.out_of_service.lock().unwrap() = None;
    assert_eq!(third.cluster().await.join(request).await.unwrap().into_inner().node, 3);
}

#[tokio::test]
async fn before_a_cluster_commands_say_how_to_get_one() {
    let alone = served("box-a").await;
    let refused = alone.volumes().await.list(pb::ListVolumesRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("tandem cluster init"));
    alone.cluster().await.init(pb::InitRequest {}).await.unwrap();
    let again = alone.cluster().await.init(pb::InitRequest {}).await.unwrap_err();
    assert_eq!(again.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn names_sizes_and_duplicates_are_checked_by_the_server() {
    let (first, _second) = pair().await;
    let mut volumes = first.volumes().await;
    let bad_name = volumes.create(create("a/b")).await.unwrap_err();
    assert_eq!(bad_name.code(), Code::InvalidArgument);
    let bad_size = pb::CreateVolumeRequest { size_bytes: 5000, ..create("vm") };
    assert!(volumes.create(bad_size).await.unwrap_err().message().contains("multiple of 4 KiB"));
    volumes.create(create("vm")).await.unwrap();
    assert_eq!(volumes.create(create("vm")).await.unwrap_err().code(), Code::AlreadyExists);
    assert_eq!(volumes.list(pb::ListVolumesRequest {}).await.unwrap().into_inner().volumes.len(), 1);
}

#[tokio::test]
async fn a_command_for_the_leader_is_redirected_there() {
    let (first, second) = pair().await;
    // The second node learns the state, as Raft would tell it.
    second.node.state.send_replace(first.node.state.borrow().clone());
    second.node.raft.send_replace(first.node.raft.borrow().clone());
    let request = || pb::RemoveNodeRequest { node: "nobody".into(), force: false };
    let refused = second.cluster().await.remove_node(request()).await.unwrap_err();
    assert_eq!(super::errors::redirect_of(&refused), Some(first.address.clone()));
    let transport = Transport::default();
    let followed = follow(&transport, &second.address, |channel| async move {
        ClusterClient::new(channel).remove_node(request()).await
    });
    assert_eq!(followed.await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_switchover_that_the_core_refuses_says_why() {
    let (first, _second) = pair().await;
    active_volume(&first, "vm").await;
    let id = *first.node.state.borrow().volumes.keys().next().unwrap();
    let node = first.node.clone();
    let answer = async {
        while node.controls.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        let kind = NodeEventKind::Notice(Notice::SwitchoverRefused { why: "the peer is silent" });
        node.events.send(NodeEvent { at: Timestamp(1), volume: Some(id), kind }).unwrap();
    };
    let request = pb::SwitchoverRequest { volume: "vm".into(), to: "box-b".into(), timeout_ms: 0 };
    let mut volumes = first.volumes().await;
    let (refused, ()) = tokio::join!(volumes.switchover(request), answer);
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("the peer is silent"));
}

/// Waits for the wish of a scrub, then lets the node say something of its volume.
async fn answer_scrub(node: &FakeNode, notices: &[Notice]) {
    while node.controls.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    let volume = node.controls.lock().unwrap().pop().map(|(volume, _)| volume);
    for notice in notices {
        let kind = NodeEventKind::Notice(notice.clone());
        node.events.send(NodeEvent { at: Timestamp(1), volume, kind }).unwrap();
    }
}

fn scrub_report(verify_only: bool, done_blocks: u64) -> ScrubReport {
    ScrubReport { verify_only, blocks: 4096, done_blocks, ..ScrubReport::default() }
}

#[tokio::test]
async fn a_scrub_returns_once_it_has_begun_and_reports_of_another_do_not_count() {
    let (first, _second) = pair().await;
    active_volume(&first, "vm").await;
    let late = Notice::Scrub { report: scrub_report(true, 256), done: false };
    let refused = Notice::ScrubRefused { why: "another one is under way" };
    let request = || pb::StartScrubRequest { volume: "vm".into(), verify_only: true };
    let mut volumes = first.volumes().await;
    let notices = [late.clone(), refused];
    let (reply, ()) = tokio::join!(volumes.start_scrub(request()), answer_scrub(&first.node, &notices));
    let reply = reply.unwrap_err();
    assert_eq!((reply.code(), reply.message()), (Code::FailedPrecondition, "another one is under way"));
    let notices = [late, Notice::Scrub { report: scrub_report(true, 0), done: false }];
    let (reply, ()) = tokio::join!(volumes.start_scrub(request()), answer_scrub(&first.node, &notices));
    let reply = reply.unwrap().into_inner();
    assert_eq!((reply.primary_name.as_str(), reply.begun_boot_micros), ("box-a", 1_000_000));
}

#[tokio::test]
async fn a_scrub_is_asked_of_the_primary_and_needs_its_copy() {
    let (first, second) = pair().await;
    active_volume(&first, "vm").await;
    second.node.state.send_replace(first.node.state.borrow().clone());
    let request = || pb::StartScrubRequest { volume: "vm".into(), verify_only: false };
    let elsewhere = second.volumes().await.start_scrub(request()).await.unwrap_err();
    assert_eq!(super::errors::redirect_of(&elsewhere), Some(first.address.clone()));
    first.node.state.send_modify(|state| {
        let config = Arc::make_mut(state).volumes.values_mut().next().unwrap();
        config.in_sync.remove(&NodeId(1));
    });
    let refused = first.volumes().await.start_scrub(request()).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("tandem volume attach vm --node box-a"), "{}", refused.message());
    assert!(first.node.controls.lock().unwrap().is_empty());
}

#[tokio::test]
async fn show_tells_counters_scrubs_and_dirty_blocks() {
    let (first, _second) = pair().await;
    active_volume(&first, "vm").await;
    let volume = *first.node.state.borrow().volumes.keys().next().unwrap();
    let last = ScrubReport { bad_here: 2, repaired: 2, ..scrub_report(false, 4096) };
    let status = replication::Status {
        role: "primary",
        serving: true,
        peers: vec![(NodeId(2), "resyncing", 7, 3)],
        scrub: Some(scrub_report(true, 1024)),
        last_scrub: Some((Timestamp(400_000), last)),
        ..replication::Status::default()
    };
    let counters = Counters { mismatches: 5, reread: 1, repaired: 4, pages_damaged: 2, unverified: 9 };
    first.node.replicas.lock().unwrap().push(ReplicaReport {
        volume,
        disk_id: DiskId(1),
        path: "/store".into(),
        store: StoreState::Open,
        status,
        nbd_clients: 0,
        data_offset: 1 << 20,
        copy: Some(CopyStatistics { counters, hot_extents: 6, last_scrub: None }),
        acknowledged: Acknowledged::default(),
        scrub_left: Some(Micros::from_secs(3)),
        resync_left: vec![(NodeId(2), Micros::from_secs(4))],
    });
    let request = pb::ShowVolumeRequest { volume: "vm".into() };
    let shown = first.volumes().await.show(request).await.unwrap().into_inner();
    let replica = &shown.replicas[0];
    let copy = replica.copy.unwrap();
    assert_eq!((copy.checksum_errors, copy.checksum_errors_reread, copy.checksum_errors_repaired), (5, 1, 4));
    assert_eq!((copy.checksum_pages_damaged, copy.blocks_unverified, copy.hot_extents), (2, 9, 6));
    let (scrub, last) = (replica.scrub.unwrap(), replica.last_scrub.unwrap());
    assert_eq!((scrub.done_blocks, scrub.left_micros, scrub.ended_unix_micros), (1024, 3_000_000, 0));
    assert_eq!((last.bad_on_primary, last.repaired, last.ended_boot_micros), (2, 2, 400_000));
    assert!(last.ended_unix_micros > 0);
    assert_eq!((replica.peers[0].dirty_blocks, replica.peers[0].resync_left_micros), (7, 4_000_000));
    assert_eq!(replica.data_offset_bytes, 1 << 20);
}

#[tokio::test]
async fn a_switchover_returns_once_the_new_primary_is_on_record() {
    let (first, _second) = pair().await;
    active_volume(&first, "vm").await;
    let config = first.node.state.borrow().volumes.values().next().unwrap().clone();
    let node = first.node.clone();
    let hand_over = async {
        while node.controls.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        node.state.send_modify(|state| {
            let config = Arc::make_mut(state).volumes.get_mut(&config.id).unwrap();
            config.primary = NodeId(2);
            config.epoch = config.epoch.next();
        });
    };
    let request = pb::SwitchoverRequest { volume: "vm".into(), ..Default::default() };
    let mut volumes = first.volumes().await;
    let (reply, ()) = tokio::join!(volumes.switchover(request), hand_over);
    assert_eq!(reply.unwrap().into_inner().primary_name, "box-b");
}

#[tokio::test]
async fn a_switchover_in_vain_times_out() {
    let (first, _second) = pair().await;
    active_volume(&first, "vm").await;
    let request = pb::SwitchoverRequest { volume: "vm".into(), to: "box-b".into(), timeout_ms: 50 };
    let late = first.volumes().await.switchover(request).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn force_is_refused_while_the_attested_node_answers() {
    let (first, second) = pair().await;
    active_volume(&first, "vm").await;
    second.node.state.send_replace(first.node.state.borrow().clone());
    let request = pb::PrepareForceRequest { volume: "vm".into(), target: "box-b".into(), ..Default::default() };
    let refused = first.volumes().await.prepare_force(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("answers"), "{}", refused.message());
    let unknown = pb::ForcePrimaryRequest { volume: "vm".into(), token: 7 };
    assert_eq!(first.volumes().await.force_primary(unknown).await.unwrap_err().code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn watchers_see_notices_and_configurations() {
    let (first, _second) = pair().await;
    active_volume(&first, "vm").await;
    let mut watch = WatchClient::new(first.channel().await);
    let request = pb::EventsRequest { volume: "vm".into() };
    let mut events = watch.events(request).await.unwrap().into_inner();
    let snapshot = events.message().await.unwrap().unwrap();
    assert!(matches!(snapshot.kind, Some(Kind::Snapshot(snapshot)) if snapshot.volumes.len() == 1));
    let id = *first.node.state.borrow().volumes.keys().next().unwrap();
    let kind = NodeEventKind::Notice(Notice::Peer { node: NodeId(2), state: "in_sync" });
    first.node.events.send(NodeEvent { at: Timestamp(1), volume: Some(id), kind }).unwrap();
    let peer = events.message().await.unwrap().unwrap();
    assert!(matches!(peer.kind, Some(Kind::Peer(peer)) if peer.node_name == "box-b" && peer.state == "in_sync"));
    let kind = NodeEventKind::Notice(Notice::Scrub { report: scrub_report(false, 512), done: true });
    first.node.events.send(NodeEvent { at: Timestamp(2), volume: Some(id), kind }).unwrap();
    let scrub = events.message().await.unwrap().unwrap();
    let seen = |progress: pb::ScrubProgress| progress.done && progress.scrub.unwrap().done_blocks == 512;
    assert!(matches!(scrub.kind, Some(Kind::Scrub(progress)) if seen(progress)));
    // Another volume is not this watcher's business; its own deletion is.
    first.volumes().await.create(create("other")).await.unwrap();
    let request = pb::DeleteVolumeRequest { volume: "vm".into() };
    first.volumes().await.delete(request).await.unwrap();
    let deleted = events.message().await.unwrap().unwrap();
    assert_eq!(deleted.volume, "vm");
    assert!(matches!(&deleted.kind, Some(Kind::Configuration(change)) if change.deleted), "{deleted:?}");
}

#[tokio::test]
async fn a_silent_node_shows_as_such_and_does_not_hold_up_the_rest() {
    let (first, _second) = pair().await;
    let gone = NodeRecord {
        name: "gone".into(),
        admin_address: "127.0.0.1:9".into(),
        join_request: 77.into(),
        ..NodeRecord::default()
    };
    first.node.apply(CommandBody::Node(NodeCommand::Join { node: gone }));
    let status = first.cluster().await.status(pb::ClusterStatusRequest {}).await.unwrap().into_inner();
    let gone = status.nodes.iter().find(|node| node.record.as_ref().is_some_and(|record| record.name == "gone"));
    assert!(!gone.unwrap().reachable);
    assert!(status.health.unwrap().text.contains("no answer from gone"));
}

#[tokio::test]
async fn stop_reaches_the_node() {
    let alone = served("box-a").await;
    NodeClient::new(alone.channel().await).stop(pb::StopRequest {}).await.unwrap();
    assert!(alone.node.stopped.load(Ordering::SeqCst));
}

#[tokio::test]
async fn nobody_there_is_unavailable_with_the_address() {
    let error = connect(&Transport::default(), "127.0.0.1:9").await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().contains("127.0.0.1:9"), "{}", error.message());
}
