//! The orderly stop: hand volumes over, flush, close, and leave Raft in peace.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use proto::NodeId;
use replication::config::VolumeConfig;
use replication::event::Control;
use tracing::{info, warn};

use super::core::Core;
use super::membership::Membership;
use crate::volume::VolumeHandle;

/// How long volumes may take to be handed over. Whoever is not by then serves until its stop.
const SWITCHOVER_MAX: Duration = Duration::from_secs(10);
/// How long volumes may take to drain, flush and close.
const STOP_MAX: Duration = Duration::from_secs(10);
/// How long Raft may take to hand its leadership over.
const RAFT_STOP_MAX: Duration = Duration::from_secs(3);

/// Stops everything that the node runs.
pub(super) async fn stop(core: &Arc<Core>) {
    let Some(membership) = core.membership() else {
        core.closing.cancel();
        return;
    };
    let handles = membership.volumes.handles();
    let switchovers = handles.iter().map(|handle| hand_over(&membership, handle));
    if tokio::time::timeout(SWITCHOVER_MAX, join_all(switchovers)).await.is_err() {
        warn!("not every volume was handed over within {SWITCHOVER_MAX:?}; stopping anyway");
    }
    // Those that nobody takes over.
    join_all(handles.iter().map(|handle| membership.files.close(handle.volume()))).await;
    core.closing.cancel();
    if tokio::time::timeout(STOP_MAX, join_all(handles.iter().map(VolumeHandle::stop))).await.is_err() {
        warn!("not every volume was closed within {STOP_MAX:?}; stopping anyway");
    }
    if tokio::time::timeout(RAFT_STOP_MAX, membership.raft.stop()).await.is_err() {
        warn!("Raft did not stop within {RAFT_STOP_MAX:?}");
    }
}

/// Hands one volume over, if this node serves it and another member can; returns once that member is primary.
async fn hand_over(membership: &Membership, handle: &VolumeHandle) {
    let me = membership.identity.node;
    let mut state = membership.raft.state();
    let target = {
        let now = state.borrow_and_update();
        now.volumes.get(&handle.volume()).and_then(|volume| successor(volume, me))
    };
    let Some(to) = target else { return };
    membership.files.close(handle.volume()).await;
    info!(volume = %handle.volume(), "handing over to node {to}");
    if handle.control(Control::Switchover { to }).await.is_err() {
        return;
    }
    let handed_over = |volume: Option<&VolumeConfig>| volume.is_none_or(|volume| volume.primary != me);
    while !handed_over(state.borrow_and_update().volumes.get(&handle.volume())) {
        if state.changed().await.is_err() {
            return;
        }
    }
}

/// The member that takes over from `me`: the first other one that has not lost power since it came in sync.
fn successor(volume: &VolumeConfig, me: NodeId) -> Option<NodeId> {
    if volume.primary != me {
        return None;
    }
    volume.in_sync.keys().copied().find(|node| *node != me && !volume.is_cold(*node))
}
