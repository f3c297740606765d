//! What can go wrong with a block operation, sorted by what the caller can do about it.

use thiserror::Error;

/// Error of one block operation. The device stays usable unless the variant says otherwise.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum BlockError {
    /// The range reaches past the end; nothing was done.
    #[error("range {offset}+{length} is outside the device of {size} bytes")]
    OutOfRange {
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        length: u64,
        /// Size of the device.
        size: u64,
    },
    /// The backing store is full; nothing was acknowledged.
    #[error("the backing store is out of space")]
    OutOfSpace,
    /// This box does not serve the volume (any more). The caller closes its client's connection: the operation may or
    /// may not have happened.
    #[error("this node is not primary of the volume{}", primary.as_ref().map(|p| format!("; {p} is")).unwrap_or_default())]
    NotPrimary {
        /// Name of the primary, where known.
        primary: Option<String>,
    },
    /// The medium failed for this range.
    #[error("I/O error")]
    Io,
    /// The device is being closed.
    #[error("the device is closed")]
    Closed,
}
