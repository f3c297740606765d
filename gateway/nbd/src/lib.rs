//! The NBD export of a volume: fixed newstyle negotiation, structured replies, and the transmission phase over any
//! [`block_device::BlockDevice`].
//!
//! The protocol is "The NBD protocol" (`doc/proto.md` of the NetworkBlockDevice project); comments cite its sections.
//!
//! - [`codec`] and [`session`] are pure: bytes and decisions, no runtime, no socket, no clock.
//! - [`server`] is the shell. A connection has two phases, so that a listener on the control plane can negotiate and
//!   then move the socket to the shard that owns the volume: [`negotiate`] reads exactly the bytes of the negotiation,
//!   and [`serve`] does the rest.
//!
//! This crate deliberately does not listen, accept, limit the number of connections, or speak TLS: the stream comes
//! from the caller's transport (which also sets `TCP_NODELAY` and keep-alive).

pub mod codec;
pub mod export;
pub mod server;
pub mod session;
pub mod statistics;

pub use export::{Agreed, Export, ExportDirectory, Lookup};
pub use server::{Ended, NegotiateError, Negotiated, negotiate, negotiate_within, serve};
pub use statistics::{Statistics, StatisticsSnapshot};

/// Largest payload of one READ or WRITE, in bytes; advertised as the maximum block size.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;

/// Requests of one connection between the arrival of their header and the last byte of their reply. At the limit the
/// connection is not read, so the client's own send buffer holds the rest.
pub const REQUESTS_IN_FLIGHT_MAX: usize = 256;

/// Bytes of payloads of one connection held in memory (writes being received or done, read data not yet sent). At the
/// limit the connection is not read.
pub const BYTES_IN_FLIGHT_MAX: u64 = 64 << 20;

/// Longest option payload that is looked at, in bytes; a longer one is answered `NBD_REP_ERR_TOO_BIG`.
pub const OPTION_BYTES_MAX: u32 = 64 << 10;

/// Longest option payload that is skipped so that the negotiation can go on; a longer one closes the connection.
pub const OPTION_SKIP_BYTES_MAX: u32 = 1 << 20;

/// Options of one negotiation; one more closes the connection.
pub const OPTIONS_MAX: u32 = 1024;

/// Longest string of the protocol, in bytes ("Values", string limit).
pub const STRING_BYTES_MAX: usize = 4096;

/// Longest range one BLOCK_STATUS describes, in bytes. The protocol allows an answer shorter than the question; the
/// limit bounds the extent list of a badly fragmented volume.
pub const STATUS_BYTES_MAX: u64 = 1 << 30;

/// Most extents of one BLOCK_STATUS answer.
pub const STATUS_EXTENTS_MAX: usize = 64 << 10;
