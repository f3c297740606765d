//! A volume, the service on it, and a client that speaks by hand: what it sends is written out here, by none of the server's own
//! codecs.

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

use block_device::RamDevice;
use bytes::Bytes;
use filesystem::engine::{Filesystem, Options};
use filesystem::journal::CommitTime;
use filesystem::layout::timestamp::Timestamp;
use filesystem::state_ring::{Record, RecordId};
use gateway_nfs::access::Caller;
use gateway_nfs::ids::Moment;
use gateway_nfs::rpc::auth::Credential;
use gateway_nfs::service::{Beginning, Door, Origin, Service, World};
use gateway_nfs::state::back_channel::ConnectionId;
use gateway_nfs::state::foundation::Foundation;
use gateway_nfs::statistics::Export;
use gateway_nfs::v4::attributes::encode::Location;
use gateway_nfs::v4::attributes::facts::ServiceFacts;
use gateway_nfs::v4::context::OtherVolume;
use gateway_nfs::xdr::{Decoder, Encoder};

const VOLUME_BYTES: u64 = 16 << 20;
const RING_BYTES: u64 = 1 << 20;
/// Of the next service; no two have the same one.
static EPOCH: AtomicU32 = AtomicU32::new(1);
pub(crate) const VOLUME: u64 = 7;
/// A user whom the export refuses.
pub(crate) const REFUSED: u32 = 666;
/// A superuser whom the export lets only read.
pub(crate) const READER: u32 = 667;

/// A volume with an empty filesystem.
pub(crate) fn volume() -> Rc<RamDevice> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    std::fs::File::create(&path).unwrap().set_len(VOLUME_BYTES).unwrap();
    let search = format!("{}:/sbin:/usr/sbin", std::env::var("PATH").unwrap_or_default());
    let made =
        Command::new("mke2fs").env("PATH", search).args(["-q", "-F", "-t", "ext4", "-b", "4096"]).arg(&path).status();
    assert!(made.expect("this test needs mke2fs").success());
    Rc::new(RamDevice::from_image(&std::fs::read(&path).unwrap()))
}

/// The same, and it calls its clients.
pub(crate) async fn serve_calling(device: &Rc<RamDevice>) -> Rc<Service<Rc<RamDevice>>> {
    let service = serve(device).await;
    let calling = Rc::clone(&service);
    tokio::task::spawn_local(async move { calling.deliver().await });
    service
}

/// What a box does when it begins to serve the volume.
pub(crate) async fn serve(device: &Rc<RamDevice>) -> Rc<Service<Rc<RamDevice>>> {
    serve_from(device, |records| records).await
}

/// The same, before it is shared.
pub(crate) async fn begin(device: &Rc<RamDevice>) -> Service<Rc<RamDevice>> {
    start(device, Foundation::default(), EPOCH.fetch_add(1, Ordering::Relaxed), |records| records).await
}

/// The same, with what the state depends on, and an epoch for one that is lost.
pub(crate) async fn serve_upon(
    device: &Rc<RamDevice>,
    foundation: Foundation,
    epoch: u32,
) -> Rc<Service<Rc<RamDevice>>> {
    Rc::new(start(device, foundation, epoch, |records| records).await)
}

/// The same, with what is left of the records.
pub(crate) async fn serve_from(
    device: &Rc<RamDevice>,
    left: impl FnOnce(Vec<Record>) -> Vec<Record>,
) -> Rc<Service<Rc<RamDevice>>> {
    Rc::new(start(device, Foundation::default(), EPOCH.fetch_add(1, Ordering::Relaxed), left).await)
}

/// The volume's filesystem, open.
async fn filesystem_of(device: &Rc<RamDevice>) -> Rc<Filesystem<Rc<RamDevice>>> {
    let clock = || CommitTime { seconds: 1_700_000_000, nanoseconds: 0 };
    let options = Options { cache_bytes_max: 4 << 20, data_bytes_max: 4 << 20, read_only: false, clock };
    let (files, _) = Filesystem::open(Rc::clone(device), &options).await.expect("it opens");
    let files = Rc::new(files);
    let driver = Rc::clone(&files);
    tokio::task::spawn_local(async move { driver.drive().await });
    files
}

fn export_to(address: &str, prefix_length: u8) -> Export {
    Export(Some((address.parse::<IpAddr>().expect("an address").into(), prefix_length)))
}

async fn start(
    device: &Rc<RamDevice>,
    foundation: Foundation,
    epoch: u32,
    left: impl FnOnce(Vec<Record>) -> Vec<Record>,
) -> Service<Rc<RamDevice>> {
    let files = filesystem_of(device).await;
    let records = left(files.open_state_ring(RING_BYTES).await.expect("a ring").records);
    let ticks = Cell::new(0);
    let start = tokio::time::Instant::now();
    let world = World {
        now: Box::new(move || {
            ticks.set(ticks.get() + 1);
            Timestamp { seconds: 1_700_000_000, nanoseconds: ticks.get() }
        }),
        moment: Box::new(move || Moment(1_000_000 + start.elapsed().as_millis() as u64)),
        caller: Box::new(|_, credential| match credential {
            Credential::Sys(sys) if sys.user == REFUSED => Caller { refused: true, ..Caller::default() },
            Credential::Sys(sys) if sys.user == READER => Caller { read_only: true, ..Caller::default() },
            Credential::Sys(sys) => {
                Caller { user: sys.user, group: sys.group, groups: sys.groups.clone(), ..Caller::default() }
            }
            _ => Caller { user: 65_534, group: 65_534, ..Caller::default() },
        }),
        others: Box::new(|| vec![elsewhere()]),
        exports: Box::new(|| {
            let networks = [("192.0.2.0", 96 + 24), ("2001:db8::", 32)];
            networks.map(|(address, prefix)| export_to(address, prefix)).into()
        }),
        export: Box::new(|_| Some(export_to("192.0.2.0", 96 + 24))),
        port: 2049,
    };
    let facts = ServiceFacts {
        volume: VOLUME,
        name: b"vol".to_vec(),
        lease_seconds: 90,
        io_bytes_max: 1 << 20,
        file_bytes_max: 1 << 44,
        write_verifier: [9; 8],
        since: Timestamp { seconds: 1_700_000_000, nanoseconds: 0 },
    };
    let beginning = Beginning { records, foundation, epoch };
    Service::start(files, beginning, facts, world).await.expect("it starts").0
}

/// A volume that another service has.
fn elsewhere() -> OtherVolume {
    let location = Location { servers: vec!["192.0.2.9".to_owned()], path: vec![b"far".to_vec()] };
    OtherVolume { volume: VOLUME + 1, name: b"far".to_vec(), location }
}

/// Where a request of this box comes from, over a stream.
pub(crate) fn local_origin() -> Origin {
    let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
    Origin { connection: ConnectionId(1), address: here, local: here, door: Door::Service }
}

/// The volume when somebody has written among the records of its service what no service wrote.
pub(crate) async fn spoil(device: &Rc<RamDevice>) -> Rc<RamDevice> {
    let found = Rc::new(RamDevice::from_image(&device.to_vec()));
    let files = filesystem_of(&found).await;
    files.open_state_ring(RING_BYTES).await.expect("a ring");
    let id = RecordId { kind: 999, key: 0 };
    let written = files.run(|handle| handle.append_record(id, b"?")).await.expect("there is room");
    files.kept_durably(written.pending).await.expect("it is written");
    found
}

/// The head of a call.
fn put_call(out: &mut Encoder, xid: u32, (program, version, procedure): (u32, u32, u32), (machine, user): (&str, u32)) {
    for word in [xid, 0, 2, program, version, procedure] {
        out.u32(word);
    }
    let mut credential = Encoder::new();
    credential.u32(0);
    credential.opaque(machine.as_bytes());
    credential.u32(user);
    credential.u32(user);
    credential.u32(0);
    out.u32(1);
    out.opaque(&credential.to_bytes());
    out.u64(0);
}

/// A whole call, of any program.
pub(crate) fn rpc(procedure: (u32, u32, u32), machine: &str, user: u32, arguments: &[u8]) -> Bytes {
    let mut out = Encoder::new();
    put_call(&mut out, 77, procedure, (machine, user));
    out.encoded(arguments);
    out.to_bytes()
}

/// Runs a test to its end.
pub(crate) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

/// The arguments of one operation, its number before them.
pub(crate) fn operation(number: u32, put: impl FnOnce(&mut Encoder)) -> Vec<u8> {
    let mut out = Encoder::new();
    out.u32(number);
    put(&mut out);
    out.to_bytes().to_vec()
}

pub(crate) fn put_root() -> Vec<u8> {
    operation(24, |_| ())
}

pub(crate) fn lookup(name: &str) -> Vec<u8> {
    operation(15, |out| out.opaque(name.as_bytes()))
}

pub(crate) fn get_handle() -> Vec<u8> {
    operation(10, |_| ())
}

pub(crate) fn put_handle(handle: &[u8]) -> Vec<u8> {
    operation(22, |out| out.opaque(handle))
}

pub(crate) fn make_directory(name: &str) -> Vec<u8> {
    operation(6, |out| {
        out.u32(2);
        out.opaque(name.as_bytes());
        put_mode(out, 0o755);
    })
}

pub(crate) fn remove(name: &str) -> Vec<u8> {
    operation(28, |out| out.opaque(name.as_bytes()))
}

/// A set of attributes: the mode alone.
pub(crate) fn put_mode(out: &mut Encoder, mode: u32) {
    out.u32(2);
    out.u32(0);
    out.u32(1 << (33 - 32));
    out.u32(4);
    out.u32(mode);
}

/// OPEN for reading and writing; `guarded` makes it, and it must not be there.
pub(crate) fn open(owner: &str, name: &str, guarded: bool) -> Vec<u8> {
    operation(18, |out| {
        out.u32(0);
        out.u32(3);
        out.u32(0);
        out.u64(0);
        out.opaque(owner.as_bytes());
        out.u32(u32::from(guarded));
        if guarded {
            out.u32(1);
            put_mode(out, 0o644);
        }
        out.u32(0);
        out.opaque(name.as_bytes());
    })
}

pub(crate) fn close(stateid: &[u8; 16]) -> Vec<u8> {
    operation(4, |out| {
        out.u32(0);
        out.fixed(stateid);
    })
}

pub(crate) fn write(stateid: &[u8; 16], offset: u64, stable: u32, data: &[u8]) -> Vec<u8> {
    operation(38, |out| {
        out.fixed(stateid);
        out.u64(offset);
        out.u32(stable);
        out.opaque(data);
    })
}

pub(crate) fn commit() -> Vec<u8> {
    operation(5, |out| {
        out.u64(0);
        out.u32(0);
    })
}

pub(crate) fn read(stateid: &[u8; 16], offset: u64, length: u32) -> Vec<u8> {
    operation(25, |out| {
        out.fixed(stateid);
        out.u64(offset);
        out.u32(length);
    })
}

pub(crate) fn lock(open: &[u8; 16], owner: &str, offset: u64, length: u64) -> Vec<u8> {
    operation(12, |out| {
        out.u32(2);
        out.bool(false);
        out.u64(offset);
        out.u64(length);
        out.bool(true);
        out.u32(0);
        out.fixed(open);
        out.u32(0);
        out.u64(0);
        out.opaque(owner.as_bytes());
    })
}

/// A result as it came: the whole compound's status, and what follows the head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u32,
    pub(crate) count: u32,
    pub(crate) results: Bytes,
    /// All of it, without the RPC head.
    pub(crate) whole: Bytes,
}

impl Answer {
    /// At the body of the last result, when all before it have the given lengths (number and status not counted).
    pub(crate) fn body(&self, lengths: &[usize]) -> Decoder {
        let before: usize = lengths.iter().map(|length| 8 + length).sum();
        Decoder::new(self.results.slice(before + 8..))
    }
}

/// Stateid and handle from the answer to SEQUENCE, PUTFH, OPEN, GETFH; `made`: OPEN has made the file.
pub(crate) fn stateid_and_handle(answer: &Answer, made: bool) -> ([u8; 16], Bytes) {
    assert_eq!(answer.status, 0);
    let mut body = answer.body(&[SEQUENCE_BYTES, 0]);
    let stateid = body.fixed::<16>().unwrap();
    let attributes_set = if made { 12 } else { 4 };
    for _ in 0..(20 + 4 + attributes_set + 4 + 8) / 4 {
        body.u32().unwrap();
    }
    (stateid, body.opaque(128).unwrap())
}

/// Bytes of SEQUENCE's result.
pub(crate) const SEQUENCE_BYTES: usize = 16 + 5 * 4;

/// A client with one session and one slot.
pub(crate) struct Client {
    pub(crate) service: Rc<Service<Rc<RamDevice>>>,
    name: &'static str,
    pub(crate) session: [u8; 16],
    /// By which it speaks; that of [`Client::new`] carries no callbacks.
    pub(crate) connection: u64,
    pub(crate) sequence: u32,
    pub(crate) user: u32,
    xid: Cell<u32>,
}

impl Client {
    /// With a session that lasts, and nothing to reclaim.
    pub(crate) async fn new(service: &Rc<Service<Rc<RamDevice>>>, name: &'static str) -> Self {
        let mut client = Self::connect(service, name).await;
        client.complete().await;
        client
    }

    /// Says that there is nothing more to reclaim.
    pub(crate) async fn complete(&mut self) {
        let complete = operation(58, |out| out.bool(false));
        assert_eq!(self.call(&[complete]).await.status, 0);
    }

    /// With a session that lasts.
    pub(crate) async fn connect(service: &Rc<Service<Rc<RamDevice>>>, name: &'static str) -> Self {
        Self::connect_by(service, name, 1, false).await
    }

    /// With nothing to reclaim, by any connection, which carries callbacks or not.
    pub(crate) async fn connected(
        service: &Rc<Service<Rc<RamDevice>>>,
        name: &'static str,
        connection: u64,
        calls_back: bool,
    ) -> Self {
        let mut client = Self::connect_by(service, name, connection, calls_back).await;
        client.complete().await;
        client
    }

    async fn connect_by(
        service: &Rc<Service<Rc<RamDevice>>>,
        name: &'static str,
        connection: u64,
        calls_back: bool,
    ) -> Self {
        let service = Rc::clone(service);
        let mut client = Self { service, name, session: [0; 16], connection, sequence: 0, user: 0, xid: Cell::new(0) };
        let exchange = operation(42, |out| {
            out.fixed(&[1; 8]);
            out.opaque(name.as_bytes());
            out.u32(0);
            out.u32(0);
            out.u32(0);
        });
        let answer = client.send(&[exchange]).await;
        assert_eq!(answer.status, 0);
        let mut body = answer.body(&[]);
        let (id, sequence) = (body.u64().unwrap(), body.u32().unwrap());
        let create = operation(43, |out| {
            out.u64(id);
            out.u32(sequence);
            out.u32(if calls_back { 3 } else { 1 });
            for _ in 0..2 {
                for value in [0, 1 << 20, 1 << 20, 2048, 16, 16] {
                    out.u32(value);
                }
                out.u32(0);
            }
            out.u32(0x4000_0000);
            out.u32(0);
        });
        let answer = client.send(&[create]).await;
        assert_eq!(answer.status, 0);
        let mut body = answer.body(&[]);
        client.session = body.fixed().unwrap();
        body.u32().unwrap();
        assert_eq!(body.u32(), Ok(if calls_back { 3 } else { 1 }), "the session lasts");
        client
    }

    /// Sends operations in the session, as the next request of the slot.
    pub(crate) async fn call(&mut self, operations: &[Vec<u8>]) -> Answer {
        self.sequence += 1;
        self.again(operations).await
    }

    /// Sends them with the sequence of the last request.
    pub(crate) async fn again(&self, operations: &[Vec<u8>]) -> Answer {
        let sequence = operation(53, |out| {
            out.fixed(&self.session);
            out.u32(self.sequence);
            out.u32(0);
            out.u32(0);
            out.bool(true);
        });
        let all: Vec<_> = [sequence].into_iter().chain(operations.iter().cloned()).collect();
        self.send(&all).await
    }

    pub(crate) async fn send(&self, operations: &[Vec<u8>]) -> Answer {
        let reply = self.send_raw(operations).await;
        let mut head = Decoder::new(reply.clone());
        for expected in [self.xid.get(), 1, 0, 0, 0, 0] {
            assert_eq!(head.u32(), Ok(expected), "an accepted reply");
        }
        let whole = reply.slice(head.position()..);
        let (status, tag, count) = (head.u32().unwrap(), head.opaque(16).unwrap(), head.u32().unwrap());
        assert_eq!(tag, &b"tag"[..]);
        Answer { status, count, results: reply.slice(head.position()..), whole }
    }

    /// The same; gives the reply with its RPC head.
    pub(crate) async fn send_raw(&self, operations: &[Vec<u8>]) -> Bytes {
        self.xid.set(self.xid.get() + 1);
        let mut out = Encoder::new();
        put_call(&mut out, self.xid.get(), (100_003, 4, 1), (self.name, self.user));
        out.opaque(b"tag");
        out.u32(2);
        out.u32(operations.len() as u32);
        operations.iter().for_each(|operation| out.encoded(operation));
        let origin = Origin { connection: ConnectionId(self.connection), ..local_origin() };
        let reply = self.service.call(origin, out.to_bytes()).await.expect("the volume is there");
        Bytes::from(reply.expect("a call has an answer").concat())
    }

    /// The handle of the volume's root.
    pub(crate) async fn root(&mut self) -> Bytes {
        let answer = self.call(&[put_root(), lookup("vol"), get_handle()]).await;
        assert_eq!(answer.status, 0);
        answer.body(&[SEQUENCE_BYTES, 0, 0]).opaque(128).unwrap()
    }
}
