//! A floating address for clients on loopback: a relay that leads each new connection to the node that serves.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::nbd::NbdConnection;

const PROBE_LIMIT: Duration = Duration::from_secs(5);
/// How long a client is kept waiting for a node that serves before its connection is closed.
const SERVE_LIMIT: Duration = Duration::from_secs(30);

/// A listening address behind which the serving node is found anew for each connection.
#[derive(Debug)]
pub struct FloatingAddress {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    nodes: Vec<SocketAddr>,
    export: String,
    stop: AtomicBool,
    bytes_to_node: AtomicU64,
    connections: AtomicU64,
}

impl FloatingAddress {
    /// Listens on a free port of loopback.
    pub fn start(nodes: Vec<SocketAddr>, export: &str) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            nodes,
            export: export.to_owned(),
            stop: AtomicBool::new(false),
            bytes_to_node: AtomicU64::new(0),
            connections: AtomicU64::new(0),
        });
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if shared.stop.load(Ordering::Acquire) {
                    return;
                }
                let (Ok(client), shared) = (client, Arc::clone(&shared)) else { continue };
                std::thread::spawn(move || relay(client, &shared));
            }
        });
        Ok(Self { address, state })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Bytes that clients have sent through it.
    pub fn bytes_to_node(&self) -> u64 {
        self.state.bytes_to_node.load(Ordering::Acquire)
    }

    /// Connections that were led to a node.
    pub fn connections(&self) -> u64 {
        self.state.connections.load(Ordering::Acquire)
    }
}

impl Drop for FloatingAddress {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Release);
        // Wakes the listener so that it sees the flag.
        let _ = TcpStream::connect(self.address);
    }
}

fn relay(client: TcpStream, state: &Arc<State>) {
    let Some(node) = find_serving(state) else { return };
    state.connections.fetch_add(1, Ordering::AcqRel);
    let both = |a: &TcpStream, b: &TcpStream| Some((a.try_clone().ok()?, b.try_clone().ok()?));
    let Some((client_reader, node_writer)) = both(&client, &node) else { return };
    let counting = Arc::clone(state);
    let upstream = std::thread::spawn(move || {
        copy(client_reader, node_writer, |bytes| {
            counting.bytes_to_node.fetch_add(bytes, Ordering::AcqRel);
        })
    });
    copy(node, client, |_| {});
    let _ = upstream.join();
}

fn find_serving(state: &State) -> Option<TcpStream> {
    let deadline = Instant::now() + SERVE_LIMIT;
    while Instant::now() < deadline && !state.stop.load(Ordering::Acquire) {
        for node in &state.nodes {
            let connect = || TcpStream::connect_timeout(node, PROBE_LIMIT).ok();
            let Some(probe) = connect() else { continue };
            if let Ok(connection) = NbdConnection::negotiate(probe, &state.export, PROBE_LIMIT) {
                connection.disconnect();
                if let Some(stream) = connect() {
                    return Some(stream);
                }
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    None
}

fn copy(mut from: TcpStream, mut to: TcpStream, count: impl Fn(u64)) {
    let mut buffer = vec![0; 256 << 10];
    let _ = to.set_nodelay(true);
    while let Ok(length) = from.read(&mut buffer) {
        if length == 0 || to.write_all(&buffer[..length]).is_err() {
            break;
        }
        count(length as u64);
    }
    // One side's end is the other's: a client must notice at once that its node is gone.
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
