//! The vocabulary and the wire of Tandem.
//!
//! Identifiers and units that every crate shares, the peer protocol's messages and their codec, and (behind the `admin`
//! feature) the gRPC admin API. This crate imports nothing of ours; everything outside `admin` is pure.

pub mod checksum;
pub mod ids;
pub mod peer;
pub mod units;

#[cfg(feature = "admin")]
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod admin {
    //! Generated from `admin.proto`.
    tonic::include_proto!("tandem.admin.v1");
}

pub use ids::{
    Boot, ClusterId, ConfigVersion, DiskId, Epoch, Incarnation, NodeId, RequestId, ServiceVersion, SessionId, VolumeId,
};
pub use units::{BLOCK_BYTES, BlockRange, EXTENT_BLOCKS, EXTENT_BYTES, Micros, Timestamp};
