//! The replication protocol between boxes: what the frames say (`message`) and how they look on the wire (`codec`).
//!
//! One TCP connection carries one volume between one pair of boxes. Everything here is pure.

pub mod message;
