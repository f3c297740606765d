//! The way of a write: what overlaps waits, then the activity log, then the local disk and the peers in parallel, then the
//! acknowledgement.

pub(crate) mod durability;
pub(crate) mod flush;
pub(crate) mod overlap;
pub(crate) mod pipeline;
