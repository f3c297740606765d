//! What is kept with a connection: the supervisor's descriptor, so that it does not end with this process, and one of our own
//! where it came to a floating address. A connection that ends because the service does ends in silence there: the address has
//! moved, and the client is to hear of it from the next primary. More than that, nothing of it may be left: a socket that still
//! waits for an answer to its FIN would take the client's packets when the address comes back here, and a client that connects
//! from the same port again, as Linux does for NFSv3, would talk to that one.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use gateway_nfs::server::Held;
use tokio::net::TcpStream;

use crate::net::address::close_silently;
use crate::supervisor::{HeldConnection, SupervisorSockets};

/// See the module's header.
pub(super) struct Kept {
    /// None for a connection to the node's own address, whose client is to hear that it ends.
    own: Option<OwnedFd>,
    /// None without a supervisor.
    _held: Option<HeldConnection>,
}

impl Kept {
    /// For a connection that was just taken. Errors: no descriptor is left, or the supervisor holds as many as it can.
    pub(super) fn new(
        stream: &TcpStream,
        floating: &[IpAddr],
        sockets: Option<&Arc<SupervisorSockets>>,
    ) -> io::Result<Self> {
        let is_floating = floating.contains(&stream.local_addr()?.ip().to_canonical());
        let own = is_floating.then(|| stream.as_fd().try_clone_to_owned()).transpose()?;
        let held = sockets.map(|sockets| sockets.hold(stream)).transpose().map_err(io::Error::other)?;
        Ok(Self { own, _held: held })
    }
}

impl Held for Kept {
    fn closed(mut self: Box<Self>) {
        drop(self.own.take());
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(own) = self.own.take() {
            close_silently(own);
        }
    }
}
