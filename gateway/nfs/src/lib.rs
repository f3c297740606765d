//! NFS for the files of a volume: NFSv4.1 and 4.2, NFSv3 with its companions.
//!
//! `xdr` and `rpc` know the encoding and the calls, `v4` and `v3` the protocols, one operation or procedure a file; `mount` is how
//! clients of NFSv3 begin, `nlm`, `nsm` and `port_mapper` are the companions that its locks need. `state` is
//! what a service knows of its clients: sessions, opens, locks; pure, and kept with records in the filesystem's state ring so
//! that a takeover loses nothing of it. `statistics` is what it counts. `ids` names what all of them speak of.
#![forbid(unsafe_code)]

/// Addresses: values like others, without the sockets that may be at them, for what is pure.
pub mod address {
    pub use std::net::{IpAddr, Ipv6Addr, SocketAddr};
}

pub mod access;
pub mod client;
pub mod ids;
pub mod mount;
pub mod nlm;
pub mod nsm;
pub mod port_mapper;
pub mod rpc;
pub mod server;
pub mod service;
pub mod state;
pub mod statistics;
pub mod v3;
pub mod v4;
pub mod xdr;
