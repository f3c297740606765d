//! Where the nodes of a cluster live: all on loopback, or each in a network namespace of its own.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::namespace::{FLOATING_ADDRESS, NamespaceNetwork};

/// The ports of a node in a namespace: replication and Raft, the admin API, NBD clients, metrics.
const PORTS: [u16; 4] = [7400, 7401, 10809, 7402];
/// The lowest port of a node on loopback; below those that the system gives to outgoing connections.
const LOWEST_PORT: u16 = 10_000;
const ADDRESSES_TRIED_MAX: usize = 1000;
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// The network under a cluster.
#[derive(Clone, Debug)]
pub enum Network {
    /// Every node on a loopback address of its own.
    Loopback,
    /// Every node in its own namespace, joined by a bridge whose ports can be cut.
    Namespaces(Arc<NamespaceNetwork>),
}

/// The listening addresses of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeAddresses {
    /// Replication and Raft.
    pub peer: SocketAddr,
    /// The admin API.
    pub admin: SocketAddr,
    /// NBD clients.
    pub nbd: SocketAddr,
    /// Metrics.
    pub metrics: SocketAddr,
}

impl Network {
    /// Addresses for the node with this index.
    pub fn addresses(&self, index: usize) -> NodeAddresses {
        let [peer, admin, nbd, metrics] = match self {
            Self::Loopback => own_loopback_addresses(),
            Self::Namespaces(network) => PORTS.map(|port| SocketAddr::new(network.node_ip(index), port)),
        };
        NodeAddresses { peer, admin, nbd, metrics }
    }

    /// A command that runs where the node with this index lives.
    pub fn command_at(&self, index: usize, program: &std::path::Path) -> Command {
        match self {
            Self::Loopback => Command::new(program),
            Self::Namespaces(network) => network.command_at_node(index, program),
        }
    }

    /// A command that runs where clients live.
    pub fn client_command(&self, program: &str) -> Command {
        match self {
            Self::Loopback => Command::new(program),
            Self::Namespaces(network) => {
                let mut command = network.command_at_hub(program);
                // The command line asks nodes on other machines without encryption only when it is told to.
                command.env("TANDEM_INSECURE_PLAINTEXT", "1");
                command
            }
        }
    }

    /// Connects from where clients live.
    pub fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        match self {
            Self::Loopback => TcpStream::connect_timeout(&address, CONNECT_LIMIT),
            Self::Namespaces(network) => network.connect_from_hub(address, CONNECT_LIMIT),
        }
    }

    /// The namespaces.
    ///
    /// # Panics
    /// On loopback.
    pub fn namespaces(&self) -> &NamespaceNetwork {
        match self {
            Self::Loopback => panic!("this test runs on loopback"),
            Self::Namespaces(network) => network,
        }
    }

    /// The address that a test moves from node to node (namespaces only).
    pub fn floating_ip(&self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(FLOATING_ADDRESS))
    }
}

/// An address of its own on loopback for each node, with ports that are free: neither another cluster nor an outgoing
/// connection takes them later, also not while the node is down.
///
/// # Panics
/// When the machine allows no such address.
fn own_loopback_addresses() -> [SocketAddr; 4] {
    static NODES: AtomicU64 = AtomicU64::new(0);
    for _ in 0..ADDRESSES_TRIED_MAX {
        let mut hasher = RandomState::new().build_hasher();
        hasher.write_u64(NODES.fetch_add(1, Ordering::Relaxed));
        let [a, b, c, d, e, ..] = hasher.finish().to_le_bytes();
        let first_port = LOWEST_PORT + u16::from_le_bytes([d, e]) % 16_384;
        let addresses =
            [0, 1, 2, 3].map(|port| SocketAddr::from(([127, a.max(1), b, c.clamp(1, 254)], first_port + port)));
        if addresses.iter().all(|address| TcpListener::bind(address).is_ok()) {
            return addresses;
        }
    }
    panic!("no address below 127.0.0.0/8 can be listened on");
}
