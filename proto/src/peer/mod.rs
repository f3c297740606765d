//! The replication protocol between boxes: what the frames say (`message`), how they look on the wire (`codec`), how a
//! connection begins (`handshake`, `version`), and the frames of Raft connections (`raft_frame`).
//!
//! One TCP connection carries one volume between one pair of boxes, or the Raft messages from one box to another, or a
//! single goodbye. Everything here is pure.

pub mod codec;
pub mod handshake;
pub mod message;
pub mod raft_frame;
pub mod version;
mod wire;

#[cfg(test)]
mod codec_tests;
#[cfg(test)]
mod test_random;
