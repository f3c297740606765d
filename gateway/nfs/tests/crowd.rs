//! Clients over real sockets that are too many, that are idle, that do not read, or that do not end what they begin: others are
//! served beside them, and memory stays bounded. A program of its own, since it measures itself; its tests run one after the other.

#[allow(dead_code, reason = "shared with the tests of the service, which need more of it")]
#[path = "service/world.rs"]
mod world;

use std::rc::Rc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use gateway_nfs::server;
use gateway_nfs::xdr::{Decoder, Encoder};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use world::{Client, get_handle, lookup, open, operation, put_handle, put_root, rpc, serve, volume};

const NFS3: u32 = 3;
const READ: u32 = 6;
const WRITE: u32 = 7;
const READDIRPLUS: u32 = 17;
const READ_BYTES: u32 = 1 << 20;
/// Ends a test that would never end.
const NEVER: Duration = Duration::from_secs(120);
const MIB: usize = 1 << 20;

/// One at a time: they measure the memory of all.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes of this process that are in memory.
fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("a process has a status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line of it");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") << 10
}

struct Scene {
    address: std::net::SocketAddr,
    file: Bytes,
    root: Bytes,
    _stop: watch::Sender<bool>,
}

/// A service on a socket, with a file of [`READ_BYTES`].
async fn scene() -> Scene {
    let service = serve(&volume()).await;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let address = listener.local_addr().expect("its address");
    let (stop, stopped) = watch::channel(false);
    let hold: server::Hold = Rc::new(|_| Ok(Box::new(())));
    tokio::task::spawn_local(server::serve(Rc::clone(&service), vec![listener], hold, stopped));
    let mut client = Client::new(&service, "maker").await;
    let root = client.root().await;
    assert_eq!(client.call(&[put_handle(&root), open("maker", "file", true)]).await.status, 0);
    let answer = client.call(&[put_root(), lookup("vol"), lookup("file"), get_handle()]).await;
    let file = answer.body(&[world::SEQUENCE_BYTES, 0, 0, 0]).opaque(128).expect("a handle");
    let scene = Scene { address, file, root, _stop: stop };
    let mut good = scene.connect().await;
    let written = scene.v3(WRITE, &[&scene.file], |out| {
        out.u64(0);
        out.u32(READ_BYTES);
        out.u32(2);
        out.opaque(&vec![7; READ_BYTES as usize]);
    });
    assert!(good.ask(&written).await.len() > 100);
    scene
}

impl Scene {
    fn v3(&self, procedure: u32, handles: &[&[u8]], put: impl FnOnce(&mut Encoder)) -> Bytes {
        let mut out = Encoder::new();
        handles.iter().for_each(|handle| out.opaque(handle));
        put(&mut out);
        rpc((100_003, NFS3, procedure), "box", 0, &out.to_bytes())
    }

    fn read(&self) -> Bytes {
        self.v3(READ, &[&self.file], |out| {
            out.u64(0);
            out.u32(READ_BYTES);
        })
    }

    fn list(&self) -> Bytes {
        self.v3(READDIRPLUS, &[&self.root], |out| {
            out.u64(0);
            out.u64(0);
            out.u32(READ_BYTES);
            out.u32(READ_BYTES);
        })
    }

    async fn connect(&self) -> Peer {
        Peer(TcpStream::connect(self.address).await.expect("it is taken"))
    }

    /// A client that reads its answers has every one of them.
    async fn serves_well(&self) {
        let mut good = self.connect().await;
        for _ in 0..20 {
            assert!(good.ask(&self.read()).await.len() > READ_BYTES as usize);
            assert!(good.ask(&self.list()).await.len() > 100);
        }
    }
}

/// One end of a connection.
struct Peer(TcpStream);

impl Peer {
    async fn send(&mut self, message: &[u8]) {
        let mark = message.len() as u32 | 1 << 31;
        self.0.write_all(&mark.to_be_bytes()).await.expect("it is sent");
        self.0.write_all(message).await.expect("it is sent");
    }

    /// The next reply; what the service calls is passed by.
    async fn receive(&mut self) -> Vec<u8> {
        loop {
            let mark = self.0.read_u32().await.expect("a reply");
            let mut reply = vec![0; (mark & !(1 << 31)) as usize];
            self.0.read_exact(&mut reply).await.expect("all of it");
            if reply.get(4..8) != Some(&[0; 4][..]) {
                assert_eq!(reply.get(8..28), Some(&[0; 20][..]), "an accepted call that succeeded");
                return reply;
            }
        }
    }

    async fn ask(&mut self, message: &[u8]) -> Vec<u8> {
        self.send(message).await;
        self.receive().await
    }

    /// The other side has closed it.
    async fn is_closed(&mut self) -> bool {
        matches!(self.0.read(&mut [0; 16]).await, Ok(0) | Err(_))
    }
}

fn run(test: impl Future<Output = ()>) {
    let _turn = turn();
    world::run(async { tokio::time::timeout(NEVER, test).await.expect("it ends") });
}

/// A compound without a session; its result behind the head of results.
async fn compound(peer: &mut Peer, name: &str, operations: &[Vec<u8>]) -> Decoder {
    let mut out = Encoder::new();
    out.opaque(b"");
    out.u32(2);
    out.u32(operations.len() as u32);
    operations.iter().for_each(|operation| out.encoded(operation));
    let reply = peer.ask(&rpc((100_003, 4, 1), name, 0, &out.to_bytes())).await;
    // RPC, status, tag, count, number, status.
    Decoder::new(Bytes::from(reply).slice(24 + 12 + 8..))
}

/// EXCHANGE_ID and CREATE_SESSION.
async fn create_session(peer: &mut Peer, name: &str) {
    let exchange = operation(42, |out| {
        out.fixed(&[1; 8]);
        out.opaque(name.as_bytes());
        (0..3).for_each(|_| out.u32(0));
    });
    let mut answer = compound(peer, name, &[exchange]).await;
    let (id, sequence) = (answer.u64().unwrap(), answer.u32().unwrap());
    let create = operation(43, |out| {
        out.u64(id);
        out.u32(sequence);
        out.u32(3);
        for _ in 0..2 {
            [0, 1 << 20, 1 << 20, 2048, 16, 64, 0].iter().for_each(|word| out.u32(*word));
        }
        out.u32(0x4000_0000);
        out.u32(0);
    });
    compound(peer, name, &[create]).await;
}

#[test]
fn a_thousand_idle_clients_with_sessions_take_little_memory() {
    run(async {
        let scene = scene().await;
        let before = resident_bytes();
        let mut idle = Vec::new();
        for number in 0..1000 {
            let mut peer = scene.connect().await;
            create_session(&mut peer, &format!("client {number}")).await;
            idle.push(peer);
        }
        let grown = resident_bytes().saturating_sub(before);
        println!("1000 idle clients: {} KiB", grown >> 10);
        assert!(grown < 128 * MIB, "{grown} bytes");
        scene.serves_well().await;
        drop(idle);
    });
}

#[test]
fn two_hundred_clients_that_never_read_their_replies_keep_nothing_from_a_good_one() {
    run(async {
        let scene = scene().await;
        let before = resident_bytes();
        let mut slow = Vec::new();
        for number in 0..200 {
            let mut peer = scene.connect().await;
            let message = if number % 4 == 0 { scene.list() } else { scene.read() };
            // As many as are worked on together, and more.
            for _ in 0..200 {
                peer.send(&message).await;
            }
            slow.push(peer);
        }
        scene.serves_well().await;
        let grown = resident_bytes().saturating_sub(before);
        println!("200 clients that do not read: {} KiB", grown >> 10);
        // A reply may take twice its length, and the allocator its own.
        assert!(grown < 2 * server::REPLY_BYTES_TOTAL_MAX + 128 * MIB, "{grown} bytes");
        // Whoever reads after all has every answer.
        let mut late = slow.pop().expect("there are some");
        for _ in 0..200 {
            late.receive().await;
        }
    });
}

#[test]
fn more_that_do_not_read_than_there_is_memory_for_are_closed_when_others_want_it() {
    run(async {
        let scene = scene().await;
        let mut slow = Vec::new();
        for _ in 0..400 {
            let mut peer = scene.connect().await;
            for _ in 0..20 {
                peer.send(&scene.read()).await;
            }
            slow.push(peer);
        }
        scene.serves_well().await;
    });
}

#[test]
fn half_records_keep_room_from_nobody() {
    run(async {
        let scene = scene().await;
        let before = resident_bytes();
        let mut halves = Vec::new();
        for _ in 0..300 {
            let mut peer = scene.connect().await;
            peer.0.write_all(&(READ_BYTES | 1 << 31).to_be_bytes()).await.expect("it is sent");
            peer.0.write_all(&[0; 1000]).await.expect("it is sent");
            halves.push(peer);
        }
        scene.serves_well().await;
        let grown = resident_bytes().saturating_sub(before);
        println!("300 half records: {} KiB", grown >> 10);
        assert!(grown < server::REQUEST_BYTES_TOTAL_MAX + 128 * MIB, "{grown} bytes");
        assert!(halves.first_mut().expect("there are some").is_closed().await, "it kept room that others wanted");
    });
}

#[test]
fn records_of_four_gigabytes_are_refused_when_they_are_announced() {
    run(async {
        let scene = scene().await;
        let before = resident_bytes();
        for mark in [u32::MAX, u32::MAX >> 1, 1 << 31 | 2 << 20] {
            let mut peer = scene.connect().await;
            peer.0.write_all(&mark.to_be_bytes()).await.expect("it is sent");
            assert!(peer.is_closed().await);
        }
        assert!(resident_bytes().saturating_sub(before) < 64 * MIB);
        scene.serves_well().await;
    });
}

#[test]
fn of_five_thousand_connections_those_beyond_the_bound_are_closed_and_the_others_served() {
    run(async {
        let scene = scene().await;
        let mut first = scene.connect().await;
        let before = resident_bytes();
        let mut all = Vec::new();
        for _ in 0..5000 {
            all.push(scene.connect().await);
        }
        assert!(all.last_mut().expect("the last one").is_closed().await);
        assert!(first.ask(&scene.list()).await.len() > 100, "who was there before is served");
        let grown = resident_bytes().saturating_sub(before);
        println!("5000 connections: {} KiB", grown >> 10);
        assert!(grown < 128 * MIB, "{grown} bytes");
        drop(all);
        // Places become free as the service notices.
        loop {
            let mut peer = scene.connect().await;
            peer.0.write_all(&0x8000_0000_u32.to_be_bytes()).await.ok();
            let reply = tokio::time::timeout(Duration::from_millis(50), peer.is_closed()).await;
            if reply.is_err() {
                break;
            }
        }
        scene.serves_well().await;
    });
}
