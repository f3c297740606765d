//! NFSv3 (RFC 1813): its procedures over the same files, permissions, shares and delegations as NFSv4's operations.
//!
//! `procedure` reads a call, `dispatch` does it, `procedures` has a procedure or a family a file. A call has no session and no
//! open: it acts as an NFSv4 request with the anonymous stateid, of no client. Pure; who asks, in which order, and what is done
//! about a retransmission, is `service/v3`'s.

pub mod attributes;
pub mod dispatch;
pub mod file_handle;
pub mod name;
pub mod procedure;
pub mod procedures;
pub mod status;
