//! What the supervisor holds for its worker, so that a worker's death breaks nothing before another box is ready: the
//! listeners, a descriptor of every accepted connection, and the names of the floating addresses.
//!
//! A refused SYN costs a Linux NFS client 3 s (then 6, 12) and a FIN makes it connect anew to a box that is not primary;
//! a client that hears nothing just waits. So while the worker is dead and its address still here, the listener's backlog
//! takes connections and nobody closes any; then the address goes, the goodbye lets the other box take over, and only
//! then are the connections closed, without a word (`net::address` explains the order).
//!
//! - `message`: what the two say to each other; pure. `table`: what is held, and the order at the end; pure.
//! - `keeper`: the supervisor's side, a thread. `worker_end`: the worker's side.
//!
//! The supervisor reads and writes no byte of a connection. When it dies itself, its sockets close with it.

mod keeper;
mod message;
mod table;
#[cfg(test)]
mod tests;
mod worker_end;

use crate::net::address::CLIENTS_TICKLED_MAX;

pub(super) use keeper::{Held, Keeper};
pub use worker_end::{HeldConnection, HoldError, SupervisorSockets};

/// Connections held at a time: as many as the next primary nudges.
pub const CONNECTIONS_HELD_MAX: usize = CLIENTS_TICKLED_MAX;
/// Listeners held at a time.
pub const LISTENERS_HELD_MAX: usize = 256;
/// Floating addresses known at a time.
pub const ADDRESSES_HELD_MAX: usize = 256;
