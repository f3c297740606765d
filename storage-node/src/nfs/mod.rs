//! The NFS service of a volume: started on the volume's open filesystem, on its shard, and ended with it.
//!
//! What the gateway takes from the world comes from the replicated state: whom the exports let do what is looked up for every
//! request, so a changed rule holds at once. Which volumes are served, and when, is decided in `node/nfs`.

mod companions;
mod kept;
mod owners;
pub mod report;
#[cfg(test)]
pub(crate) mod test_report;

use std::io;
use std::net::{IpAddr, TcpListener};
use std::rc::Rc;
use std::sync::{Arc, mpsc as std_mpsc};
use std::time::Instant;

use block_device::BlockDevice;
use filesystem::engine::{Failure, Filesystem, OpenedRing};
use filesystem::layout::timestamp::Timestamp;
use filesystem::state_ring::RING_BYTES_DEFAULT;
use gateway_nfs::access::Caller;
use gateway_nfs::ids::Moment;
use gateway_nfs::rpc::auth::{Credential, SysCredential};
use gateway_nfs::server::{self, Ended, Hold};
use gateway_nfs::service::{Beginning, Service, World};
use gateway_nfs::state::foundation::Foundation;
use gateway_nfs::state::lease::LEASE_MS;
use gateway_nfs::statistics::Export;
use gateway_nfs::v4::attributes::encode::Location;
use gateway_nfs::v4::attributes::facts::ServiceFacts;
use gateway_nfs::v4::context::OtherVolume;
use proto::VolumeId;
use replication::config::nfs::{ANONYMOUS_ID, Access, Client, ExportRule, Squash};
use replication::config::{ClusterState, VolumeConfig};
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::info;

use self::companions::Companions;
use self::kept::Kept;
use crate::files::{now, real_time};
use crate::net::address::ClientConnection;
use crate::net::address_text::{from_std, host_of, to_std};
use crate::supervisor::SupervisorSockets;
pub use owners::Lookups;
use owners::NameService;

/// Bytes of the blocks that records of clients need.
const RECORD_BLOCK_BYTES: u32 = 4096;
/// Of a small volume the state of its clients takes this part at most.
const RING_PART_OF_VOLUME: u64 = 32;
/// And never less than this.
const RING_BYTES_MIN: u64 = 1 << 20;
/// Bits of an address of IPv6.
const IPV6_BITS: u8 = 128;
/// Bytes of one READ or WRITE.
const IO_BYTES_MAX: u32 = 1 << 20;
/// Bytes of the largest file: 2^32 - 1 blocks of 4 KiB.
const FILE_BYTES_MAX: u64 = (u32::MAX as u64) << 12;

/// What starts a service; crosses to the volume's shard.
pub struct Start {
    /// The volume.
    pub volume: VolumeId,
    /// Its name: that of the directory that clients mount.
    pub name: String,
    /// Bytes of the volume.
    pub size_bytes: u64,
    /// Where clients connect to.
    pub listeners: Vec<TcpListener>,
    /// The port of them.
    pub port: u16,
    /// The floating addresses, on which the port mapper and datagrams are answered, too. None: on the node's own address they are
    /// not, since that has a port mapper of its own, or none wanted.
    pub floating: Vec<IpAddr>,
    /// The replicated state.
    pub cluster: watch::Receiver<Arc<ClusterState>>,
    /// Tells this run of the service from all others.
    pub write_verifier: u64,
    /// Who keeps connections, so that they do not end with this process.
    pub sockets: Option<Arc<SupervisorSockets>>,
    /// Told when the service has begun: the connections of the node that served before.
    pub former: std_mpsc::Sender<Vec<ClientConnection>>,
    /// Who wants to know what it has counted.
    pub questions: mpsc::Receiver<report::Question>,
    /// The domain of owners' names, if they are told by name, and the places of lookups.
    pub names: Option<(String, Lookups)>,
}

/// Why a service does not begin.
#[derive(Debug, Error)]
pub enum StartError {
    /// Records of what clients have would not fit.
    #[error(
        "NFS needs a filesystem with blocks of {RECORD_BLOCK_BYTES} bytes, and this one has blocks of {0}; `tandem fs make` \
         makes such a one"
    )]
    SmallBlocks(u32),
    /// The filesystem.
    #[error(transparent)]
    Files(#[from] Failure),
    /// What clients connect to.
    #[error("a listener cannot be used: {0}")]
    Listener(#[from] io::Error),
}

/// A service that runs.
pub struct Running {
    stop: watch::Sender<bool>,
    serving: JoinSet<Ended>,
}

impl Running {
    /// Waits until the service has nothing to say any more.
    pub async fn ended(&mut self) {
        self.serving.join_next().await;
    }

    /// Ends it: connections are closed, requests under way dropped.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        while self.serving.join_next().await.is_some() {}
    }
}

/// The number of a volume as the gateway knows it.
fn number_of(volume: VolumeId) -> u64 {
    (volume.0 >> 64) as u64 ^ volume.0 as u64
}

/// Takes over what clients have, gives back what nobody has open any more, and serves. Gives how many files were given back, too.
/// Errors: as [`StartError`] says.
pub async fn start<D: BlockDevice + 'static>(
    files: &Rc<Filesystem<D>>,
    start: Start,
) -> Result<(Running, usize), StartError> {
    let Start {
        volume,
        name,
        size_bytes,
        listeners,
        port,
        floating,
        cluster,
        write_verifier,
        sockets,
        former,
        questions,
        names,
    } = start;
    let began = Instant::now();
    let block_bytes = files.statistics().block_size;
    if block_bytes < RECORD_BLOCK_BYTES {
        return Err(StartError::SmallBlocks(block_bytes));
    }
    let ring_bytes = (size_bytes / RING_PART_OF_VOLUME).clamp(RING_BYTES_MIN, RING_BYTES_DEFAULT);
    let OpenedRing { records, disturbed } = files.open_state_ring(ring_bytes).await?;
    let clock = real_time();
    let beginning = Beginning {
        foundation: foundation(&cluster.borrow(), volume, disturbed),
        epoch: clock.seconds as u32,
        records,
    };
    let count = beginning.records.len();
    let facts = ServiceFacts {
        volume: number_of(volume),
        name: name.clone().into_bytes(),
        lease_seconds: (LEASE_MS / 1000) as u32,
        io_bytes_max: IO_BYTES_MAX,
        file_bytes_max: FILE_BYTES_MAX,
        write_verifier: write_verifier.to_be_bytes(),
        since: Timestamp { seconds: clock.seconds as i64, nanoseconds: clock.nanoseconds },
    };
    let world = world(volume, cluster, began, port);
    let (service, orphans) = Service::start(Rc::clone(files), beginning, facts, world).await?;
    let service = Rc::new(match names {
        Some((domain, lookups)) => service.with_owners(Box::new(NameService::new(domain, &lookups))),
        None => service,
    });
    let connections = service.take_former_connections().into_iter();
    let connections = connections.map(|ends| ClientConnection { client: ends.client, service: ends.service }).collect();
    // Whoever does not listen any more does not want this service.
    let _ = former.send(connections);
    let mut companions = Companions::new(Rc::clone(&service), &name, (&floating, port), sockets.clone());
    companions.open().await;
    let hold: Hold = Rc::new(move |stream| Ok(Box::new(Kept::new(stream, &floating, sockets.as_ref())?)));
    let (stop, stopped) = watch::channel(false);
    let listeners = listeners.into_iter().map(tokio::net::TcpListener::from_std).collect::<Result<Vec<_>, _>>()?;
    let mut serving = JoinSet::new();
    serving.spawn_local(companions.run(stopped.clone()));
    serving.spawn_local(server::call_hosts(Rc::clone(&service), stopped.clone()));
    let answering = report::answer(Rc::clone(&service), questions);
    serving.spawn_local(async move {
        tokio::select! {
            ended = server::serve(service, listeners, hold, stopped) => ended,
            never = answering => match never {},
        }
    });
    let took = began.elapsed().as_millis();
    info!(volume = %name, records = count, ms = took as u64, "NFS served");
    Ok((Running { stop, serving }, orphans))
}

/// What the records of clients depend on.
fn foundation(state: &ClusterState, volume: VolumeId, disturbed: u64) -> Foundation {
    let config = state.volumes.get(&volume);
    let service = config.and_then(|config| config.nfs.as_ref()).map_or(0, |service| service.since.0);
    let loss = config.and_then(|config| config.loss_possible).map_or(0, |epoch| epoch.0);
    let unflushed = config.and_then(|config| config.unflushed_loss).map_or(0, |epoch| epoch.0);
    Foundation { service, loss, unflushed, disturbed }
}

fn world(volume: VolumeId, cluster: watch::Receiver<Arc<ClusterState>>, began: Instant, port: u16) -> World {
    let (for_callers, for_exports, for_export) = (cluster.clone(), cluster.clone(), cluster.clone());
    World {
        now: Box::new(now),
        moment: Box::new(move || Moment(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX))),
        caller: Box::new(move |address, credential| {
            let state = for_callers.borrow();
            let service = state.volumes.get(&volume).and_then(|volume| volume.nfs.as_ref());
            let rule = service.and_then(|service| service.exports.for_client(from_std(address)));
            caller(rule, credential)
        }),
        others: Box::new(move || others(&cluster.borrow(), volume)),
        exports: Box::new(move || exports(&for_exports.borrow(), volume)),
        export: Box::new(move |address| {
            let state = for_export.borrow();
            let service = state.volumes.get(&volume).and_then(|volume| volume.nfs.as_ref());
            let rule = service.and_then(|service| service.exports.for_client(from_std(address)));
            rule.map(|rule| export(rule.client))
        }),
        port,
    }
}

/// What a rule makes of a caller; without one it may do nothing.
fn caller(rule: Option<&ExportRule>, credential: &Credential) -> Caller {
    let nobody = SysCredential { user: ANONYMOUS_ID, group: ANONYMOUS_ID, ..SysCredential::default() };
    let Some(rule) = rule else {
        return Caller { user: nobody.user, group: nobody.group, refused: true, ..Caller::default() };
    };
    let read_only = rule.access == Access::ReadOnly;
    let Credential::Sys(sys) = credential else {
        let (user, group) = (rule.anonymous_uid, rule.anonymous_gid);
        return Caller { user, group, read_only, ..Caller::default() };
    };
    let groups = match rule.squash {
        Squash::All => Vec::new(),
        _ => sys.groups.iter().map(|group| rule.group(*group)).collect(),
    };
    Caller { user: rule.user(sys.user), group: rule.group(sys.group), groups, read_only, refused: false }
}

/// Whom the exports of a volume are about.
fn exports(state: &ClusterState, volume: VolumeId) -> Vec<Export> {
    let service = state.volumes.get(&volume).and_then(|volume| volume.nfs.as_ref());
    let rules = service.map(|service| service.exports.as_slice().iter());
    rules.into_iter().flatten().map(|rule| export(rule.client)).collect()
}

fn export(client: Client) -> Export {
    Export(match client {
        Client::Any => None,
        Client::Network(network) => {
            let in_front = IPV6_BITS - network.address().width();
            Some((to_std(network.address()).into(), in_front + network.prefix_length()))
        }
    })
}

/// The cluster's other volumes that are served, and where.
fn others(state: &ClusterState, own: VolumeId) -> Vec<OtherVolume> {
    let other = |volume: &VolumeConfig| {
        let service = volume.nfs.as_ref().filter(|_| volume.id != own)?;
        let servers = match &*service.addresses {
            [] => vec![host_of(&state.nodes.get(&volume.primary)?.nbd_address).to_owned()],
            addresses => addresses.iter().map(|floating| to_std(floating.address).to_string()).collect(),
        };
        let name = volume.name.clone().into_bytes();
        let location = Location { servers, path: vec![name.clone()] };
        Some(OtherVolume { volume: number_of(volume.id), name, location })
    };
    state.volumes.values().filter_map(other).collect()
}

#[cfg(test)]
mod tests {
    use replication::config::nfs::Client;

    use super::*;

    fn rule(access: Access, squash: Squash) -> ExportRule {
        ExportRule { client: Client::Any, access, squash, anonymous_uid: 77, anonymous_gid: 88 }
    }

    fn sys(user: u32, group: u32, groups: &[u32]) -> Credential {
        Credential::Sys(SysCredential { user, group, groups: groups.to_vec(), ..SysCredential::default() })
    }

    #[test]
    fn rules_make_callers() {
        let root = sys(0, 0, &[0, 5]);
        let user = sys(1000, 100, &[5]);
        let table = [
            (Squash::Root, &root, (77, 88, vec![88, 5])),
            (Squash::Root, &user, (1000, 100, vec![5])),
            (Squash::All, &user, (77, 88, vec![])),
            (Squash::None, &root, (0, 0, vec![0, 5])),
            (Squash::None, &Credential::None, (77, 88, vec![])),
        ];
        for (squash, credential, (uid, gid, groups)) in table {
            let made = caller(Some(&rule(Access::ReadWrite, squash)), credential);
            assert_eq!((made.user, made.group, made.groups), (uid, gid, groups), "{squash:?} {credential:?}");
            assert!(!made.read_only && !made.refused);
        }
        assert!(caller(Some(&rule(Access::ReadOnly, Squash::Root)), &user).read_only);
        assert!(caller(None, &user).refused, "whom no rule names may do nothing");
    }
}
