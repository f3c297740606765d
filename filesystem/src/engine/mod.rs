//! The engine: blocks in memory, operations on them, and the transactions that make them durable.

mod attributes;
mod broken;
mod cache;
mod commit;
mod data;
mod extended_attributes;
mod files;
mod filesystem;
mod handle;
mod inodes;
mod namespace;
mod notes;
mod open;
mod orphan_file;
mod orphans;
mod profile;
mod proven;
mod state_ring;
mod statistics;
mod system_zone;
#[cfg(test)]
mod test_image;
mod transaction;

pub use attributes::{AttributeChanges, change_attribute};
pub use data::{Seek, Wanted};
pub use filesystem::{Done, Failure, Filesystem};
pub use handle::Handle;
pub use namespace::{Created, NewFile, Place, Rename};
pub use notes::Pending;
pub use open::{OpenError, Options, Recovered};
pub use proven::Begun;
pub use state_ring::{OpenedRing, RingUsage, is_hidden_name};
pub use statistics::Statistics;
