//! The operations, one a file or a family a file: how each is read from the wire, and what it does.

pub mod access;
pub mod allocate;
pub mod commit;
pub mod copy;
pub mod create;
pub mod create_session;
pub mod exchange_id;
pub mod getattr;
pub mod handles;
pub mod link;
pub mod lock;
pub mod lookup;
pub mod open;
pub mod opening;
pub mod read;
pub mod readdir;
pub mod readlink;
pub mod remove;
pub mod rename;
pub mod secinfo;
pub mod seek;
pub mod sequence;
pub mod session;
pub mod setattr;
pub mod state;
pub mod verify;
pub mod write;
pub mod xattrs;

use crate::xdr::Encoder;

/// Puts how a directory changed (`change_info4`): nobody else changed it in between, since an operation is one transaction.
fn put_change(out: &mut Encoder, before: u64, after: u64) {
    out.bool(true);
    out.u64(before);
    out.u64(after);
}
