//! A service as its clients see it: messages in, messages out, over a filesystem in memory; with takeovers in between, where
//! another service goes on from what the device holds.

mod back_channel;
mod client;
mod companions;
mod delegations;
mod doubt;
mod hosts;
mod line;
mod lock_notices;
mod owners;
mod statistics;
mod takeover;
mod tree;
mod v3;
mod world;
