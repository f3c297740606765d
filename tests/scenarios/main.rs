//! Interleavings that an earlier draft of the protocol lost data on, each a scenario, and what every pair must survive.

mod failover;
mod fencing;
mod membership;
mod ordering;
mod simulator;
mod storage;
