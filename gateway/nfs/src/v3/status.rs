//! Why a procedure failed, as NFSv3 says it (RFC 1813 §2.6, `nfsstat3`).
//!
//! Reasons are those of NFSv4, most of which have the same number here; what NFSv3 has no word for gets the nearest one.

use crate::v4::status::Status;

/// `NFS3ERR_NOT_SYNC`: the guard of a SETATTR did not hold.
pub const NOT_SYNC: u32 = 10_002;
/// `NFS3ERR_JUKEBOX`: the client is to ask again in a while.
pub const JUKEBOX: u32 = 10_008;

/// The number that is sent.
pub fn code(status: Status) -> u32 {
    match status {
        // What others have opened or delegated, and a grace period, end by themselves. A client that was refused would tell its
        // application that written data is lost.
        Status::Delay | Status::Grace | Status::Locked | Status::ShareDenied | Status::Denied | Status::FileOpen => {
            JUKEBOX
        }
        Status::NotSame => NOT_SYNC,
        Status::Symlink => Status::NotDirectory.code(),
        Status::WrongType | Status::BadName | Status::BadOwner | Status::BadXdr | Status::AttributeNotSupported => {
            Status::Invalid.code()
        }
        Status::BadCharacter => Status::Access.code(),
        Status::NoFileHandle => Status::BadHandle.code(),
        Status::Moved => Status::Stale.code(),
        Status::BadHandle | Status::BadCookie | Status::NotSupported | Status::TooSmall | Status::BadType => {
            status.code()
        }
        status if status.code() <= Status::Stale.code() => status.code(),
        _ => Status::ServerFault.code(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_of_nfsv3_are_sent() {
        let known = [
            1, 2, 5, 6, 13, 17, 18, 19, 20, 21, 22, 27, 28, 30, 31, 63, 66, 69, 70, 71, 10_001, 10_002, 10_003, 10_004,
            10_005, 10_006, 10_007, 10_008,
        ];
        for status in Status::ALL {
            assert!(known.contains(&code(*status)), "{status}: {}", code(*status));
        }
        assert_eq!(code(Status::Grace), JUKEBOX);
        assert_eq!(code(Status::Exists), 17);
    }
}
