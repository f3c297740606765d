//! The network lock manager, version 4, as NFSv3 uses it (X/Open XNFS, chapter 10 and its NLM version 4): locks and share
//! reservations of hosts that have no leases. Pure.
//!
//! `arguments` and `results` are the encoding; `locking`, `sharing` and `granting` do what is asked to the table that NFSv4 has its
//! locks in, too.
//!
//! Not here: the forms of the procedures that are answered by a call of their own (6 to 15). They would have the server send to
//! whomever a caller names, and clients of today do not use them; they are answered as procedures that there are not. So are
//! versions 1 to 3, whose ranges have 32 bits and which belong to NFSv2.

pub mod arguments;
pub mod context;
pub mod granting;
pub mod locking;
pub mod results;
pub mod sharing;

/// RPC program.
pub const PROGRAM: u32 = 100_021;
/// The only version here.
pub const VERSION: u32 = 4;
/// The procedure of a host that is told that it has a lock.
pub const GRANTED: u32 = 5;

/// How a request ended (`nlm4_stats`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stat {
    /// It is done.
    Granted = 0,
    /// Somebody else's lock is in the way; of CANCEL: nobody waits.
    Denied = 1,
    /// There is no room for it.
    DeniedNoLocks = 2,
    /// The host waits, and will be told.
    Blocked = 3,
    /// State was lost, and those who had locks come first.
    DeniedGracePeriod = 4,
    /// The export lets this host only read.
    ReadOnly = 6,
    /// The handle stands for nothing.
    StaleHandle = 7,
    /// Anything else.
    Failed = 9,
}
