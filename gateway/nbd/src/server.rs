//! The shell: moves bytes between a stream, the pure session and a device.

mod execute;
mod negotiate;
mod receiver;
mod serve;
mod transmission;

pub use negotiate::{NEGOTIATION_TIMEOUT, NegotiateError, Negotiated, negotiate, negotiate_within};
pub use serve::{DRAIN_TIMEOUT, Ended, serve};
