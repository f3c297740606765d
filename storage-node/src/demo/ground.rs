//! Where the demo's machines run: on loopback, or, for a kernel client, in network namespaces of their own behind a floating
//! address, as boxes in a rack would.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command};

use anyhow::{Context, bail};
use proto::admin as pb;

use crate::net::namespaces::{At, BOX_INTERFACE, NamespaceNetwork, PREFIX_LENGTH, address, address_of_host};
use crate::net::transport::Transport;

/// Machines: two with storage, and the witness.
pub(super) const MACHINES: u8 = 3;
/// Ports of each machine: replication and Raft, the admin API, NBD.
const PORTS: [u16; 3] = [7400, 7401, 10809];
/// The port of NFS.
const NFS_PORT: u16 = 2049;
/// A service has one port on all boxes, so each box on loopback has an address of its own for it.
const LOOPBACK_NFS_ADDRESSES: [Ipv4Addr; MACHINES as usize] =
    [Ipv4Addr::new(127, 0, 0, 1), Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3)];
/// Ports that are tried for it.
const NFS_PORTS_TRIED_MAX: usize = 64;
/// The number of the floating address in its network, and that of the kernel client's.
const FLOATING_HOST: u8 = 100;
const KERNEL_CLIENT_HOST: u8 = 50;
/// The kernel client's tap device.
pub(super) const TAP: &str = "tap0";

/// See the module. What was made is removed when this is dropped.
#[derive(Debug)]
pub(super) enum Ground {
    /// All on loopback, told apart by their ports; it needs no rights.
    Loopback,
    /// Each in its namespace. The demo and its clients are where the bridge is.
    Namespaces(NamespaceNetwork),
}

/// Where one machine listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Addresses {
    /// Replication and Raft.
    pub(super) peer: String,
    /// The admin API.
    pub(super) admin: String,
    /// NBD.
    pub(super) nbd: String,
    /// NFS, where there is no floating address.
    pub(super) nfs: IpAddr,
}

/// Where a volume's files are served, and to whom.
#[derive(Clone, Debug)]
pub(super) struct Service {
    /// None: at the own address of whichever box is primary.
    pub(super) floating: Option<pb::FloatingAddress>,
    /// The port.
    pub(super) port: u16,
    /// The clients that may use it.
    pub(super) clients: String,
    /// Where clients look for it, one after the other.
    pub(super) found_at: Vec<SocketAddr>,
}

impl Ground {
    /// Namespaces with a tap device for a kernel client. The calling thread, and all that it starts from now on, is in the
    /// client's.
    pub(super) fn namespaces() -> anyhow::Result<Self> {
        let network = NamespaceNetwork::new(MACHINES)?;
        network.add_tap(TAP)?;
        network.enter(At::Client)?;
        Ok(Self::Namespaces(network))
    }

    /// How the demo and its clients speak to the machines. A network of namespaces leaves this machine as little as loopback does.
    pub(super) fn transport(&self) -> Transport {
        Transport { insecure_plaintext: matches!(self, Self::Namespaces(_)) }
    }

    /// The addresses of every machine, in order.
    pub(super) fn addresses(&self) -> io::Result<Vec<Addresses>> {
        let of = |ip: IpAddr, nfs, ports: &[u16]| {
            let at = |port| SocketAddr::new(ip, port).to_string();
            Addresses { peer: at(ports[0]), admin: at(ports[1]), nbd: at(ports[2]), nfs }
        };
        Ok(match self {
            Self::Loopback => {
                let ports = free_ports(PORTS.len() * usize::from(MACHINES))?;
                let ports = ports.chunks_exact(PORTS.len()).zip(LOOPBACK_NFS_ADDRESSES);
                ports.map(|(ports, nfs)| of(Ipv4Addr::LOCALHOST.into(), nfs.into(), ports)).collect()
            }
            Self::Namespaces(_) => {
                let boxes = (0..MACHINES).map(|number| address(At::Box(number)));
                boxes.map(|ip| of(ip, ip, &PORTS)).collect()
            }
        })
    }

    /// Starts a process where the machine of this number is.
    pub(super) fn spawn(&self, machine: u8, command: &mut Command) -> anyhow::Result<Child> {
        match self {
            Self::Loopback => Ok(command.spawn()?),
            Self::Namespaces(network) => Ok(network.run(At::Box(machine), || command.spawn())??),
        }
    }

    /// Where files are served by boxes at these addresses.
    pub(super) fn service(&self, boxes: &[IpAddr]) -> anyhow::Result<Service> {
        match self {
            Self::Loopback => {
                let port = free_nfs_port()?;
                let found_at = boxes.iter().map(|ip| SocketAddr::new(*ip, port)).collect();
                Ok(Service { floating: None, port, clients: "127.0.0.0/8".to_owned(), found_at })
            }
            Self::Namespaces(_) => {
                let floating = address_of_host(FLOATING_HOST);
                let address = pb::FloatingAddress {
                    address: floating.to_string(),
                    prefix_length: PREFIX_LENGTH.into(),
                    interface: BOX_INTERFACE.to_owned(),
                };
                Ok(Service {
                    floating: Some(address),
                    port: NFS_PORT,
                    clients: format!("{}/{PREFIX_LENGTH}", address_of_host(0)),
                    found_at: vec![SocketAddr::new(floating, NFS_PORT)],
                })
            }
        }
    }
}

/// The kernel client's address with the length of its network's prefix.
pub(super) fn kernel_client_address() -> String {
    format!("{}/{PREFIX_LENGTH}", address_of_host(KERNEL_CLIENT_HOST))
}

/// Ports that were free a moment ago; held together, so that none is told twice.
fn free_ports(count: usize) -> io::Result<Vec<u16>> {
    let held: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<io::Result<_>>()?;
    held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

/// A port that was free a moment ago on every address where the service may be.
fn free_nfs_port() -> anyhow::Result<u16> {
    for _ in 0..NFS_PORTS_TRIED_MAX {
        let first = TcpListener::bind((LOOPBACK_NFS_ADDRESSES[0], 0)).context("no free ports on loopback")?;
        let port = first.local_addr()?.port();
        if LOOPBACK_NFS_ADDRESSES[1..].iter().all(|address| TcpListener::bind((*address, port)).is_ok()) {
            return Ok(port);
        }
    }
    bail!("no port is free on 127.0.0.1 and on 127.0.0.2")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_on_loopback_share_no_address() {
        let all = Ground::Loopback.addresses().unwrap();
        let mut listeners: Vec<_> = all.iter().flat_map(|one| [&one.peer, &one.admin, &one.nbd]).collect();
        assert_eq!(listeners.len(), 9);
        listeners.sort_unstable();
        listeners.dedup();
        assert_eq!(listeners.len(), 9);
    }

    #[test]
    fn on_loopback_both_boxes_are_tried_at_one_port() {
        let boxes = LOOPBACK_NFS_ADDRESSES.map(IpAddr::from);
        let service = Ground::Loopback.service(&boxes[..2]).unwrap();
        assert!(service.floating.is_none());
        assert_eq!(service.found_at, [0, 1].map(|number| SocketAddr::new(boxes[number], service.port)));
    }
}
