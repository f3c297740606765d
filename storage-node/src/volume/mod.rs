//! A volume's copy on this node: the shell around `replication::Replica`.
//!
//! - `shard`: the data plane threads, each a current-thread runtime with one io_uring.
//! - `actor`: one task a volume; takes every fact from one inbox, asks the core, and has its orders carried out.
//! - `dispatch`: carries the orders out. `links`, `payloads` and `store_slot` are the parts of its state.
//! - `device`: the volume as a `BlockDevice` for clients on the same shard; `cut` is its arithmetic.
//! - `handle`: what the control plane holds of a volume; nothing else crosses threads.

mod actor;
pub(crate) mod cut;
pub mod device;
mod dispatch;
pub mod handle;
mod inbox;
mod links;
mod payloads;
pub mod shard;
mod store_slot;

pub use device::VolumeDevice;
pub use handle::{SessionKind, SessionRefused, SessionStart, VolumeHandle};
pub use shard::{Shard, Shards};
pub use store_slot::DiskState;

use proto::Timestamp;

/// CLOCK_BOOTTIME now: it goes on while the box sleeps, so that a lease does not outlive a suspend.
pub fn boot_time() -> Timestamp {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).expect("the kernel has CLOCK_BOOTTIME");
    Timestamp(time.tv_sec() as u64 * 1_000_000 + time.tv_nsec() as u64 / 1000)
}
