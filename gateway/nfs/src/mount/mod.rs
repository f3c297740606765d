//! MOUNT version 3 (RFC 1813 appendix I): how a client of NFSv3 comes to the handle of the directory that it mounts. Pure.
//!
//! A path is that of the volume, `/VOLUME`, or of a directory in it. Who has mounted what is a list for people to look at, in
//! memory only: nothing depends on it, as nothing can (a client that dies says nothing).

pub mod list;
pub mod path;
pub mod procedure;

use crate::v4::status::Status;

/// RPC program.
pub const PROGRAM: u32 = 100_005;
/// The version for NFSv3.
pub const VERSION: u32 = 3;

/// Flavors that a mount is told of: AUTH_SYS alone. AUTH_NONE is taken, as the anonymous user; nobody is invited to use it.
pub const FLAVORS: &[u32] = &[1];

/// Why there is no mount (`mountstat3`).
pub fn code(status: Status) -> u32 {
    match status {
        Status::Symlink => Status::NotDirectory.code(),
        Status::Perm
        | Status::NoEntry
        | Status::Io
        | Status::Access
        | Status::NotDirectory
        | Status::Invalid
        | Status::NameTooLong
        | Status::NotSupported => status.code(),
        _ => Status::ServerFault.code(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_of_mount_are_sent() {
        let known = [1, 2, 5, 13, 20, 22, 63, 10_004, 10_006];
        for status in Status::ALL {
            assert!(known.contains(&code(*status)), "{status}: {}", code(*status));
        }
    }
}
