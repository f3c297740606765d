//! ONC RPC version 2 (RFC 5531): calls and replies, credentials, and the records that carry them over TCP. Pure.

pub mod auth;
pub mod call;
pub mod record;
pub mod reply;

/// The only version there is.
const RPC_VERSION: u32 = 2;
/// Message types.
const CALL: u32 = 0;
const REPLY: u32 = 1;
