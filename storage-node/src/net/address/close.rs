//! Closes connections of an address that has moved, so that the client hears nothing of it. It keeps nothing.
//!
//! An ordinary close sends a FIN, or a reset when data was unread. For IPv4 the kernel sends nothing from an address that
//! is gone; for IPv6 it does. A socket in repair mode (TCP_REPAIR, made for moving processes between machines) is
//! forgotten at its close without a word, whether its address is there or not.

use std::net::TcpListener;
use std::os::fd::OwnedFd;

use nix::sys::socket::{setsockopt, sockopt};
use tracing::debug;

/// Connections that a listener may still have to give up; more than its backlog.
const WAITING_MAX: usize = 8192;
const ON: u32 = 1;

/// Closes this descriptor of a TCP connection. When it is the last one, or all others are closed later, the client hears
/// nothing: the mode is the connection's, not the descriptor's. Without NET_ADMIN, or for what is no TCP connection, it is
/// an ordinary close.
pub fn close_silently(connection: OwnedFd) {
    if let Err(why) = setsockopt(&connection, sockopt::TcpRepair, &ON) {
        debug!("a connection is closed aloud: {why}");
    }
}

/// Closes this descriptor of a listener, and in silence the connections that wait in it to be accepted. While another
/// process has the listener open, it goes on listening.
pub fn close_listener_silently(listener: TcpListener) {
    if listener.set_nonblocking(true).is_err() {
        return;
    }
    for _ in 0..WAITING_MAX {
        match listener.accept() {
            Ok((connection, _)) => close_silently(connection.into()),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
            Err(_) => return,
        }
    }
}
