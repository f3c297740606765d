//! The engine: blocks in memory, operations on them, and the transactions that make them durable.

mod cache;
mod commit;
mod files;
mod filesystem;
mod handle;
mod inodes;
mod namespace;
mod open;
mod orphans;
mod profile;
#[cfg(test)]
mod test_image;
mod transaction;

pub use filesystem::{Done, Failure, Filesystem};
pub use handle::Handle;
pub use namespace::{Created, NewFile, Place, Rename};
pub use open::{OpenError, Options, Recovered};
