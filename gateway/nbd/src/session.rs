//! The protocol's decisions, pure: what to answer to an option, what a request asks for, how a reply looks.
//!
//! No runtime, socket or clock here; [`crate::server`] moves the bytes.

pub mod handshake;
pub mod reply;
pub mod reply_queue;
pub mod request;

pub use handshake::{Handshake, Step};
pub use reply::Outcome;
pub use reply_queue::{Released, ReplyQueue};
pub use request::{Decision, Operation, Request};
