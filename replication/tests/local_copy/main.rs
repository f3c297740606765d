//! The engine of a local copy over a store that loses power, bits and writes.

mod crash;
mod damage;
mod rig;
mod steps;
mod store;
