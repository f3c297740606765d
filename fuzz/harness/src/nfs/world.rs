//! A service in memory: on an image that never changes, with a client that has a session, an open file and a lock on it.
//!
//! Time stands still for whoever computes and jumps when all wait (`tokio` with its clock paused), so a request that is never
//! answered is noticed at once. The clock of leases does not move.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use filesystem::engine::{Filesystem, Options};
use filesystem::journal::CommitTime;
use filesystem::layout::timestamp::Timestamp;
use filesystem::state_ring::Record;
use gateway_nfs::access::Caller;
use gateway_nfs::ids::Moment;
use gateway_nfs::rpc::auth::Credential;
use gateway_nfs::service::{Beginning, Door, Origin, Service, World};
use gateway_nfs::state::back_channel::ConnectionId;
use gateway_nfs::state::foundation::Foundation;
use gateway_nfs::statistics::Export;
use gateway_nfs::v4::attributes::facts::ServiceFacts;

use super::messages::{self, Messages};
use crate::{ImageDevice, seed};

const RING_BYTES: u64 = 1 << 20;
const EPOCH: u32 = 5;
/// The time of leases.
pub(super) const NOW: Moment = Moment(1_000_000);
/// Longer than anything that a service waits for.
const NEVER: Duration = Duration::from_secs(3600);

/// A volume with the state that one client has left on it, and what was said meanwhile.
pub(super) struct Prepared {
    /// The volume, closed.
    pub(super) image: Bytes,
    /// What its ring holds.
    pub(super) records: Vec<Record>,
    /// What the client and others say, and what they were answered.
    pub(super) messages: Messages,
}

/// Made once.
pub(super) fn prepared() -> &'static Prepared {
    static PREPARED: OnceLock<Prepared> = OnceLock::new();
    PREPARED.get_or_init(|| {
        run(async {
            let device = Rc::new(ImageDevice::new(seed::served()));
            let (service, files, _) = serve(&device).await;
            let messages = messages::exchange(&service).await;
            files.close().await.expect("the seed is sound");
            let image = device.to_image();
            let device = Rc::new(ImageDevice::new(image.clone()));
            let files = open(&device).await;
            let records = files.open_state_ring(RING_BYTES).await.expect("the ring is there").records;
            Prepared { image, records, messages }
        })
    })
}

/// Runs to the end, which must come.
pub(super) fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    tokio::task::LocalSet::new().block_on(&runtime.expect("a runtime without sockets"), work)
}

/// Waits for what must come.
///
/// # Panics
/// When everybody waits.
pub(super) async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(NEVER, work).await {
        Ok(value) => value,
        Err(_) => panic!("{what} never comes"),
    }
}

pub(super) type Served = Service<Rc<ImageDevice>>;
type Files = Filesystem<Rc<ImageDevice>>;

async fn open(device: &Rc<ImageDevice>) -> Rc<Files> {
    let clock = || CommitTime { seconds: 1_700_000_000, nanoseconds: 0 };
    let options = Options { cache_bytes_max: 2 << 20, data_bytes_max: 2 << 20, read_only: false, clock };
    let (files, _) = Filesystem::open(Rc::clone(device), &options).await.expect("a sound volume");
    let files = Rc::new(files);
    let driver = Rc::clone(&files);
    tokio::task::spawn_local(async move { driver.drive().await });
    files
}

/// What a box does when it begins to serve the volume. Gives also how many records it found.
pub(super) async fn serve(device: &Rc<ImageDevice>) -> (Rc<Served>, Rc<Files>, Vec<Record>) {
    let files = open(device).await;
    let records = files.open_state_ring(RING_BYTES).await.expect("a ring").records;
    let time = Timestamp { seconds: 1_700_000_000, nanoseconds: 0 };
    let world = World {
        now: Box::new(move || time),
        moment: Box::new(|| NOW),
        caller: Box::new(|_, credential| match credential {
            Credential::Sys(sys) => {
                Caller { user: sys.user, group: sys.group, groups: sys.groups.clone(), ..Caller::default() }
            }
            _ => Caller { user: 65_534, group: 65_534, ..Caller::default() },
        }),
        others: Box::new(Vec::new),
        exports: Box::new(|| vec![Export(None)]),
        export: Box::new(|_| Some(Export(None))),
        port: 2049,
    };
    let facts = ServiceFacts {
        volume: 7,
        name: b"vol".to_vec(),
        lease_seconds: 90,
        io_bytes_max: 1 << 20,
        file_bytes_max: 1 << 44,
        write_verifier: [9; 8],
        since: time,
    };
    let beginning = Beginning { records: records.clone(), foundation: Foundation::default(), epoch: EPOCH };
    let (service, _) = Service::start(Rc::clone(&files), beginning, facts, world).await.expect("it starts");
    let service = Rc::new(service);
    let calling = Rc::clone(&service);
    tokio::task::spawn_local(async move { calling.deliver().await });
    (service, files, records)
}

/// Where a message of this connection comes from.
pub(super) fn origin(connection: u8, door: Door) -> Origin {
    let address = IpAddr::V4(Ipv4Addr::new(192, 0, 2, connection % 4));
    Origin { connection: ConnectionId(connection.into()), address, local: IpAddr::V4(Ipv4Addr::LOCALHOST), door }
}
