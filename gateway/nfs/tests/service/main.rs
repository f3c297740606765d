//! A service as its clients see it: messages in, messages out, over a filesystem in memory; with takeovers in between, where
//! another service goes on from what the device holds.

mod client;
mod doubt;
mod takeover;
mod tree;
mod v3;
mod world;
