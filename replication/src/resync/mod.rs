//! Bringing a copy in sync while writes go on: the source's side, the target's side, and the rate.

pub(crate) mod source;
pub(crate) mod target;
pub(crate) mod throttle;
