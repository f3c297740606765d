//! Where the nodes of a cluster live: all on loopback, or each in a network namespace of its own.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use super::namespace::{FLOATING_ADDRESS, NamespaceNetwork};

const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// The network under a cluster.
#[derive(Clone, Debug)]
pub enum Network {
    /// Every node on 127.0.0.1 with free ports.
    Loopback,
    /// Every node in its own namespace, joined by a bridge whose ports can be cut.
    Namespaces(Arc<NamespaceNetwork>),
}

/// The three listening addresses of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeAddresses {
    /// Replication and Raft.
    pub peer: SocketAddr,
    /// The admin API.
    pub admin: SocketAddr,
    /// NBD clients.
    pub nbd: SocketAddr,
}

impl Network {
    /// Addresses for the node with this index.
    pub fn addresses(&self, index: usize) -> NodeAddresses {
        match self {
            Self::Loopback => {
                let [peer, admin, nbd] = free_ports().map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
                NodeAddresses { peer, admin, nbd }
            }
            Self::Namespaces(network) => {
                let at = |port| SocketAddr::new(network.node_ip(index), port);
                NodeAddresses { peer: at(7400), admin: at(7401), nbd: at(10809) }
            }
        }
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

/// Three ports that nobody listens on now. They are held together while they are chosen, so that they differ; a process
/// that asks for a free port later may still take one, which shows as a node that does not start.
fn free_ports() -> [u16; 3] {
    let held: Vec<TcpListener> = (0..3)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap_or_else(|error| panic!("no free port: {error}")))
        .collect();
    let port = |index: usize| held[index].local_addr().map_or(0, |address| address.port());
    [port(0), port(1), port(2)]
}
