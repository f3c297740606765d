//! The NBD listener: negotiates on the control plane, then moves the connection to the volume's shard.

use std::sync::Arc;

use gateway_nbd::{Export, ExportDirectory, Lookup, NegotiateError, Statistics};
use proto::NodeId;
use replication::config::{ClusterState, Phase, VolumeConfig};
use tokio::sync::Semaphore;
use tracing::{debug, info, warn};

use super::core::Core;
use super::membership::Membership;
use crate::net::transport::{Listener, Stream};
use crate::volume::{SessionKind, SessionStart};

/// Connections of NBD clients to one node, in negotiation or in use; more wait to be accepted.
pub(crate) const NBD_CONNECTIONS_MAX: usize = 1024;

/// Accepts until the node closes its listeners.
pub(super) async fn serve(listener: Listener, core: Arc<Core>) {
    let statistics = Arc::new(Statistics::default());
    let places = Arc::new(Semaphore::new(NBD_CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = core.closing.cancelled() => return,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(why) => {
                // Mostly too many open files: accepting goes on once there is room.
                warn!("NBD: accept failed: {why}");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let (core, statistics) = (Arc::clone(&core), Arc::clone(&statistics));
        tokio::spawn(async move {
            if let Err(why) = hand_over(stream, &core, statistics, place).await {
                debug!(%from, "NBD: {why}");
            }
        });
    }
}

async fn hand_over(
    stream: Stream,
    core: &Arc<Core>,
    statistics: Arc<Statistics>,
    place: tokio::sync::OwnedSemaphorePermit,
) -> Result<(), NegotiateError> {
    let directory = Directory { core: Arc::clone(core) };
    let negotiated = gateway_nbd::negotiate(stream, &directory).await?;
    let agreed = negotiated.agreed;
    let Some(handle) =
        directory.find(&agreed.export.name).and_then(|(membership, volume)| membership.volumes.handle(volume.id))
    else {
        return Ok(());
    };
    let stream = negotiated.stream.detach()?;
    let session: SessionStart = Box::new(move |device, ended| {
        Box::pin(async move {
            let _place = place;
            let Ok(stream) = stream.attach() else { return };
            let name = agreed.export.name.clone();
            info!(volume = %name, "NBD client connected");
            let why = gateway_nbd::serve(stream, &agreed, &*device, ended.cancelled(), &statistics).await;
            info!(volume = %name, "NBD client gone: {why}");
        })
    });
    if handle.run_session(SessionKind::Client, session).await.is_err() {
        debug!("the volume ended while a client connected");
    }
    Ok(())
}

/// The volumes as NBD clients see them.
struct Directory {
    core: Arc<Core>,
}

impl Directory {
    fn state(&self) -> Option<(Arc<Membership>, Arc<ClusterState>)> {
        let membership = self.core.membership()?;
        let state = membership.raft.state().borrow().clone();
        Some((membership, state))
    }

    fn find(&self, name: &str) -> Option<(Arc<Membership>, VolumeConfig)> {
        let (membership, state) = self.state()?;
        let volume = match name {
            // The default export is the only volume, where there is one.
            "" if state.volumes.len() == 1 => state.volumes.values().next(),
            _ => state.volumes.values().find(|volume| volume.name == name),
        };
        let volume = volume?.clone();
        Some((membership, volume))
    }
}

fn export_of(volume: &VolumeConfig) -> Export {
    Export {
        name: volume.name.clone(),
        description: format!("tandem volume {}", volume.id),
        size_bytes: volume.size_bytes,
    }
}

/// What this node has of a volume whose primary it is.
struct Here {
    /// It is primary by this run, and not by a former one.
    is_this_run: bool,
    /// The volume has been started.
    has_actor: bool,
    /// The engine has its filesystem open.
    has_files_open: bool,
}

/// What to tell a client about `volume`, seen from node `me`.
fn lookup(state: &ClusterState, volume: &VolumeConfig, me: NodeId, here: Here) -> Lookup {
    let name = &volume.name;
    if volume.phase == Phase::Creating {
        return Lookup::NotNow { message: format!("volume `{name}` is still being created; try again shortly") };
    }
    if volume.primary != me {
        let message = match state.nodes.get(&volume.primary) {
            Some(primary) => format!("volume `{name}` is served by node `{}` ({})", primary.name, primary.nbd_address),
            None => format!("volume `{name}` is served by no node now; see `tandem volume show {name}`"),
        };
        return Lookup::NotHere { message };
    }
    if !here.is_this_run || !here.has_actor {
        let message = format!("volume `{name}` is not served again yet; see `tandem volume show {name}`");
        return Lookup::NotNow { message };
    }
    if here.has_files_open {
        let message = format!(
            "volume `{name}`: its filesystem is in use on this node, and two must not write at once; `tandem fs close \
             {name}` ends that"
        );
        return Lookup::NotNow { message };
    }
    Lookup::Serve(export_of(volume))
}

impl ExportDirectory for Directory {
    fn list(&self) -> Vec<Export> {
        let Some((_, state)) = self.state() else { return Vec::new() };
        state.volumes.values().filter(|volume| volume.phase == Phase::Active).map(export_of).collect()
    }

    fn lookup(&self, name: &str) -> Lookup {
        let Some((membership, state)) = self.state() else {
            return Lookup::NotNow { message: "this node is in no cluster yet".into() };
        };
        let Some((_, volume)) = self.find(name) else {
            let message = match name {
                "" => "name the volume: there is no default export unless the cluster has exactly one volume".into(),
                _ => format!("no volume is named `{name}`; see `tandem volume list`"),
            };
            return Lookup::NotHere { message };
        };
        let me = membership.identity;
        let here = Here {
            is_this_run: volume.primary_incarnation == me.incarnation,
            has_actor: membership.volumes.handle(volume.id).is_some(),
            has_files_open: membership.files.is_in_use(volume.id),
        };
        lookup(&state, &volume, me.node, here)
    }
}
