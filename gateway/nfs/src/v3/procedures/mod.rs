//! The procedures, one a file or a family a file: how each is read from the wire, and what it does.

pub mod access;
pub mod commit;
pub mod create;
pub mod fsinfo;
pub mod getattr;
pub mod link;
pub mod lookup;
pub mod make;
pub mod read;
pub mod readdir;
pub mod readlink;
pub mod remove;
pub mod rename;
pub mod setattr;
pub mod write;

use filesystem::layout::file_kind::FileKind;
use filesystem::layout::inode::Inode;

use crate::v4::context::Context;
use crate::v4::status::Status;

/// Errors: [`Status::Invalid`] for what has no data to be read or written (RFC 1813 §3.3.6, §3.3.7).
fn expect_regular(inode: &Inode) -> Result<(), Status> {
    match inode.mode.kind() {
        Some(FileKind::Regular) => Ok(()),
        _ => Err(Status::Invalid),
    }
}

/// Data is left alone, and no file is opened by making it, as long as clients of NFSv4 may reclaim opens that this would be in
/// the way of (RFC 8881 §8.4.2.1). Errors: [`Status::Grace`].
fn expect_no_grace(context: &Context<'_, '_>) -> Result<(), Status> {
    match context.state.clients.in_grace() {
        true => Err(Status::Grace),
        false => Ok(()),
    }
}
