//! The replication core: pure state machines, events in, actions out.
//!
//! `replica` is one volume's copy on one node; `config` is the state that Raft replicates. Nothing here knows a clock, a
//! socket, a file, a thread or a random number: time arrives as `now`, everything else as an [`Event`].

pub mod action;
mod activity_log;
pub mod bitmap_pages;
pub mod config;
mod core;
mod dirty_bitmap;
pub mod event;
mod fetch;
mod handoff;
mod lease;
mod link;
pub mod local_copy;
mod logging;
pub mod primary;
mod proposal;
mod read;
pub mod replica;
mod resync;
mod scrub;
mod secondary;
mod status;
mod takeover;
mod timing;
mod tracker;
mod window;
mod write;

pub use action::{Action, Notice, PayloadSlice, Refusal};
pub use event::{
    Attachment, Control, Coverage, DiskReport, Event, IoId, IoResult, LinkId, OpId, PastScrubs, PayloadId, Request,
};
pub use replica::Replica;
pub use scrub::ScrubReport;
pub use status::Status;
pub use timing::Timing;
pub use window::Window;
