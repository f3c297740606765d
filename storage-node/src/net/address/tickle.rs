//! Nudges the clients of the former primary, whose connections this box does not know. It holds two raw sockets.
//!
//! A client that waits for a reply does not notice that the address moved until its own retransmission, up to minutes
//! later. A bare acknowledgement makes it answer, this box's kernel knows no such connection and resets it with the right
//! number, and the client connects anew at once. Clustered Samba does the same and calls it tickle ACK.

use std::io;
use std::net::SocketAddr;

use nix::libc;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::packet::tickle_ack;
use super::{AddressError, Capability};

/// Clients nudged in one takeover; the supervisor holds as many connections.
pub const CLIENTS_TICKLED_MAX: usize = 4096;

/// A connection that the former primary had accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientConnection {
    /// The client's side.
    pub client: SocketAddr,
    /// Our side: the floating address and the service's port.
    pub service: SocketAddr,
}

/// Sends them.
#[derive(Debug)]
pub struct Tickler {
    ipv4: Socket,
    /// None where the kernel has no IPv6.
    ipv6: Option<Socket>,
}

impl Tickler {
    /// Opens the sockets. Errors: no NET_RAW.
    pub fn open() -> Result<Self, AddressError> {
        let ipv6 = match raw(Domain::IPV6) {
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
            other => Some(other.map_err(refused)?),
        };
        Ok(Self { ipv4: raw(Domain::IPV4).map_err(refused)?, ipv6 })
    }

    /// Nudges a client once. Does not block. Errors: no route, a full queue; another try may succeed. A pair of different
    /// families is no connection: InvalidInput.
    pub fn tickle(&self, connection: &ClientConnection) -> io::Result<()> {
        let ClientConnection { client, service } = *connection;
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let packet = tickle_ack(client, service).ok_or_else(invalid)?;
        // A raw socket takes no port; a link-local address keeps its scope.
        let mut to = client;
        to.set_port(0);
        if client.ip().to_canonical().is_ipv4() {
            to = SocketAddr::new(client.ip().to_canonical(), 0);
        }
        let socket = if to.is_ipv4() { &self.ipv4 } else { self.ipv6.as_ref().ok_or_else(invalid)? };
        socket.send_to(&packet, &SockAddr::from(to)).map(drop)
    }
}

/// A socket whose packets bring their own IP header (raw(7): IPPROTO_RAW implies it).
fn raw(domain: Domain) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn refused(error: io::Error) -> AddressError {
    match error.kind() {
        io::ErrorKind::PermissionDenied => AddressError::NotPermitted { capability: Capability::NetRaw },
        _ => error.into(),
    }
}
