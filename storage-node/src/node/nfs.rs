//! Which volumes are served over NFS: those that have a service, on the node that is their primary. Listens first, then opens
//! the filesystem with its service, and then moves the floating addresses here; takes them away first when it ends.
//!
//! A change of a service's place (addresses, port) ends it and begins it anew; its rules are looked at for each request, and so
//! hold at once (`crate::nfs`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use gateway_nfs::port_mapper;
use proto::{NodeId, VolumeId};
use rand::Rng;
use replication::config::nfs::{FloatingAddress as Configured, NfsService};
use replication::config::{ClusterState, Phase, VolumeConfig};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::core::Core;
use super::membership::Membership;
use crate::files::error::FilesError;
use crate::files::registry::NfsBinding;
use crate::net::address::{self, ClientConnection, FloatingAddress, take_over};
use crate::net::address_text::to_std;
use crate::net::transport::bind_early;
use crate::nfs::Start;
use crate::supervisor::SupervisorSockets;
use crate::volume::VolumeHandle;

/// A service that ended begins anew after this: longer than a switchover takes, for which it ended.
const PAUSE: Duration = Duration::from_secs(1);
/// A service that could not begin tries again after this, and then after twice as long each time, up to [`PAUSE`]: what is on
/// record comes a moment before this node's copy is primary.
const PAUSE_FIRST: Duration = Duration::from_millis(10);
/// What is served is looked at this often, if nothing else tells of a change.
const PASS_INTERVAL: Duration = Duration::from_secs(1);

/// Where a service is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    addresses: Vec<Configured>,
    port: u16,
    name: String,
    size_bytes: u64,
}

struct Serving {
    place: Place,
    cancel: CancellationToken,
    task: JoinHandle<()>,
}

/// Keeps the services as the replicated state has them, until the node ends.
pub(super) async fn run(core: Arc<Core>, membership: Arc<Membership>) {
    let mut state = membership.raft.state();
    let mut interval = tokio::time::interval(PASS_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut serving: BTreeMap<VolumeId, Serving> = BTreeMap::new();
    let mut given_up = BTreeSet::new();
    loop {
        tokio::select! {
            changed = state.changed() => if changed.is_err() { break },
            _ = interval.tick() => {}
            () = core.closing.cancelled() => break,
        }
        let now = state.borrow_and_update().clone();
        let wanted = wanted(&now, &membership);
        let gone: Vec<_> = serving
            .iter()
            .filter(|(volume, serving)| wanted.get(volume) != Some(&serving.place))
            .map(|(volume, _)| *volume)
            .collect();
        for volume in gone {
            if let Some(serving) = serving.remove(&volume) {
                end(serving).await;
            }
        }
        clear_left_behind(&now, &wanted).await;
        give_up_listeners(&core, (membership.identity.node, &now), &wanted, &mut given_up);
        for (volume, place) in wanted {
            serving.entry(volume).or_insert_with(|| {
                let cancel = CancellationToken::new();
                let (core, membership) = (Arc::clone(&core), Arc::clone(&membership));
                let task = tokio::spawn(serve(core, membership, volume, place.clone(), cancel.clone()));
                Serving { place, cancel, task }
            });
        }
    }
    for serving in serving.into_values() {
        end(serving).await;
    }
}

async fn end(serving: Serving) {
    serving.cancel.cancel();
    if let Err(why) = serving.task.await {
        warn!("NFS: {why}");
    }
}

/// The volumes that this run of this node has to serve.
fn wanted(state: &ClusterState, membership: &Membership) -> BTreeMap<VolumeId, Place> {
    let me = membership.identity;
    let is_here = |volume: &&VolumeConfig| {
        volume.phase == Phase::Active
            && volume.primary == me.node
            && volume.primary_incarnation == me.incarnation
            && membership.volumes.handle(volume.id).is_some()
    };
    let place = |volume: &VolumeConfig| {
        let NfsService { addresses, port, .. } = volume.nfs.as_ref()?;
        let (name, size_bytes) = (volume.name.clone(), volume.size_bytes);
        Some((volume.id, Place { addresses: addresses.clone(), port: *port, name, size_bytes }))
    };
    state.volumes.values().filter(is_here).filter_map(place).collect()
}

/// Serves one volume until it is cancelled, beginning anew whenever it ends.
async fn serve(
    core: Arc<Core>,
    membership: Arc<Membership>,
    volume: VolumeId,
    place: Place,
    cancel: CancellationToken,
) {
    let mut said = String::new();
    let mut again = PAUSE_FIRST;
    loop {
        let served = once(&core, &membership, volume, &place, &cancel).await;
        membership.files.set_nfs(volume, None);
        let has_served = matches!(served, Ok(true));
        match served {
            Ok(true) => said.clear(),
            Ok(false) => {}
            // Whoever waits for NBD clients to go would fill the log.
            Err(why) if why == said => {}
            Err(why) => {
                warn!(volume = %place.name, "NFS is not served: {why}");
                said = why;
            }
        }
        let pause = if has_served { PAUSE } else { again };
        again = if has_served { PAUSE_FIRST } else { (again * 2).min(PAUSE) };
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Serves until the filesystem is closed or this is cancelled. False if it did not come to that: the copy here is not primary.
async fn once(
    core: &Arc<Core>,
    membership: &Arc<Membership>,
    volume: VolumeId,
    place: &Place,
    cancel: &CancellationToken,
) -> Result<bool, String> {
    let Some(handle) = membership.volumes.handle(volume) else { return Ok(false) };
    let sockets = core.announcer.sockets.clone();
    let addresses = place.addresses.iter().map(floating).collect::<Result<Vec<_>, _>>()?;
    let ips = match &*addresses {
        [] => vec![core.config.nfs_listen()],
        addresses => addresses.iter().map(FloatingAddress::address).collect(),
    };
    let places: Vec<_> = ips.into_iter().map(|ip| SocketAddr::new(ip, place.port)).collect();
    let port_mappers = addresses.iter().map(|floating| SocketAddr::new(floating.address(), port_mapper::PORT));
    let listeners = listen(sockets.clone(), places.clone()).await?;
    let served = with_listeners(core, membership, (volume, handle), place, (listeners, &addresses), cancel).await;
    if let Some(sockets) = sockets {
        let is_floating = !addresses.is_empty();
        for at in places.into_iter().chain(port_mappers) {
            // A supervisor that is gone keeps nothing.
            let _ = sockets.drop_listener(at, is_floating);
        }
    }
    served
}

/// The same, when it listens.
async fn with_listeners(
    core: &Arc<Core>,
    membership: &Arc<Membership>,
    (volume, handle): (VolumeId, VolumeHandle),
    place: &Place,
    (listeners, addresses): (Vec<TcpListener>, &[FloatingAddress]),
    cancel: &CancellationToken,
) -> Result<bool, String> {
    let sockets = core.announcer.sockets.clone();
    // One that was opened without its service.
    membership.files.close(volume).await;
    let release: Arc<dyn Fn() + Send + Sync> = {
        let (addresses, sockets, name) = (addresses.to_vec(), sockets.clone(), place.name.clone());
        Arc::new(move || addresses.iter().for_each(|floating| take_away(floating, sockets.as_deref(), &name)))
    };
    let reports = Arc::clone(&membership.nfs_reports);
    let names = core.config.idmap_domain.clone().map(|domain| (domain, membership.nfs_lookups.clone()));
    let (cluster, place_of, held_by) = (membership.raft.state(), place.clone(), sockets.clone());
    let (tell_former, former) = mpsc::channel();
    let floating_ips: Vec<_> = addresses.iter().map(FloatingAddress::address).collect();
    let start = move || {
        let listeners = listeners.iter().map(TcpListener::try_clone).collect::<Result<Vec<_>, _>>().ok()?;
        listeners.iter().try_for_each(|listener| listener.set_nonblocking(true)).ok()?;
        Some(Start {
            volume,
            name: place_of.name.clone(),
            size_bytes: place_of.size_bytes,
            listeners,
            port: place_of.port,
            floating: floating_ips.clone(),
            cluster: cluster.clone(),
            write_verifier: rand::rng().random(),
            sockets: held_by.clone(),
            former: tell_former.clone(),
            questions: reports.open(volume),
            names: names.clone(),
        })
    };
    let binding = NfsBinding { start: Box::new(start), release: Arc::clone(&release) };
    membership.files.set_nfs(volume, Some(binding));
    let files = match membership.files.get(&place.name, &handle).await {
        Ok(files) => files,
        // The role has just gone, or is yet to come.
        Err(FilesError::Ended) => return Ok(false),
        Err(why) => return Err(why.to_string()),
    };
    let mut announcing = Vec::new();
    // None from a service that began before somebody asked for it here.
    let former: Vec<_> = former.try_iter().flatten().collect();
    for floating in addresses {
        let is_its = |client: &&ClientConnection| client.service.ip().to_canonical() == floating.address();
        let clients = former.iter().filter(is_its).copied().collect();
        match bring(floating, clients, sockets.clone()).await {
            Ok(task) => announcing.push(task),
            Err(why) => warn!(volume = %place.name, "{floating}: {why}"),
        }
    }
    info!(volume = %place.name, port = place.port, addresses = addresses.len(), "NFS service begins");
    tokio::select! {
        () = files.ended() => {}
        () = cancel.cancelled() => {}
    }
    announcing.iter().for_each(JoinHandle::abort);
    let _ = tokio::task::spawn_blocking(move || release()).await;
    membership.files.close(volume).await;
    Ok(true)
}

/// Listens, with the supervisor's help where there is one: what waits to be accepted outlives this process then.
async fn listen(sockets: Option<Arc<SupervisorSockets>>, places: Vec<SocketAddr>) -> Result<Vec<TcpListener>, String> {
    let listening = tokio::task::spawn_blocking(move || {
        let one = |at: SocketAddr| {
            let listener = match &sockets {
                Some(sockets) => sockets.listen(at).map_err(|why| why.to_string()),
                None => bind_early(at).map_err(|why| why.to_string()),
            };
            listener.map_err(|why| format!("cannot listen on {at}: {why}"))
        };
        places.into_iter().map(one).collect()
    });
    listening.await.map_err(|why| why.to_string())?
}

/// Takes an address away, if it is here.
fn take_away(floating: &FloatingAddress, sockets: Option<&SupervisorSockets>, volume: &str) {
    match address::remove(floating) {
        Ok(_) => {
            if let Some(Err(why)) = sockets.map(|sockets| sockets.address_gone(floating)) {
                warn!(volume, "{floating}: {why}");
            }
        }
        Err(why) => warn!(volume, "{floating} is not taken away: {why}"),
    }
}

fn floating(configured: &Configured) -> Result<FloatingAddress, String> {
    let Configured { address, prefix_length, interface } = configured;
    FloatingAddress::new(to_std(*address), *prefix_length, interface).map_err(|why| why.to_string())
}

/// Puts an address on its interface, and goes on telling the neighbours, and the clients of the node that had it before.
async fn bring(
    floating: &FloatingAddress,
    clients: Vec<ClientConnection>,
    sockets: Option<Arc<SupervisorSockets>>,
) -> Result<JoinHandle<()>, String> {
    let wanted = floating.clone();
    let taken = tokio::task::spawn_blocking(move || {
        if let Some(sockets) = &sockets {
            sockets.address_comes(&wanted).map_err(|why| why.to_string())?;
        }
        // Whoever listens does so already.
        take_over(&wanted, clients, || Ok::<_, std::convert::Infallible>(())).map_err(|why| why.to_string())
    });
    let ((), follow_up) = taken.await.map_err(|why| why.to_string())??;
    Ok(tokio::spawn(follow_up.run()))
}

/// Takes away addresses of volumes that are served elsewhere: a node that was killed together with its supervisor has left
/// them behind.
async fn clear_left_behind(state: &ClusterState, wanted: &BTreeMap<VolumeId, Place>) {
    let others = state.volumes.values().filter(|volume| !wanted.contains_key(&volume.id));
    let services = others.filter_map(|volume| Some((volume.name.clone(), volume.nfs.as_ref()?)));
    let left: Vec<(String, FloatingAddress)> = services
        .flat_map(|(name, service)| {
            service.addresses.iter().map(move |configured| (name.clone(), floating(configured)))
        })
        .filter_map(|(name, floating)| Some((name, floating.ok()?)))
        .collect();
    if left.is_empty() {
        return;
    }
    let clearing = move || {
        for (name, floating) in left {
            if address::is_present(&floating).unwrap_or(false) {
                warn!(volume = %name, "{floating} is here, though the volume is served elsewhere: taken away");
                take_away(&floating, None, &name);
            }
        }
    };
    let _ = tokio::task::spawn_blocking(clearing).await;
}

/// Gives up what the supervisor listens to for a run of this node that has died, where another node is primary now. Clients that
/// know both nodes by their own addresses would wait here for somebody to take their connections. While this node is the one on
/// record, they do well to wait: it serves again in a moment.
fn give_up_listeners(
    core: &Core,
    (me, state): (NodeId, &ClusterState),
    wanted: &BTreeMap<VolumeId, Place>,
    given_up: &mut BTreeSet<SocketAddr>,
) {
    let Some(sockets) = &core.announcer.sockets else { return };
    let own = |port: u16| SocketAddr::new(core.config.nfs_listen(), port);
    let elsewhere: BTreeSet<_> = state
        .volumes
        .values()
        .filter(|volume| volume.primary != me)
        .filter_map(|volume| volume.nfs.as_ref().filter(|service| service.addresses.is_empty()))
        .map(|service| own(service.port))
        .filter(|at| !wanted.values().any(|place| place.addresses.is_empty() && own(place.port) == *at))
        .collect();
    for at in elsewhere.difference(given_up) {
        // A supervisor that is gone keeps nothing.
        let _ = sockets.drop_listener(*at, false);
    }
    *given_up = elsewhere;
}
