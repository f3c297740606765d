//! What POSIX calls the reasons for which the engine refuses.

use filesystem::Refusal;
use filesystem::engine::Failure;
use fuser::Errno;

/// The errno of a failure.
pub(super) fn errno(failure: &Failure) -> Errno {
    match failure {
        Failure::NoSpace => Errno::ENOSPC,
        Failure::TooLarge(_) => Errno::EFBIG,
        Failure::Refused(refusal) => refused(*refusal),
        Failure::ReadOnly(_) => Errno::EROFS,
        Failure::Corrupt(_) | Failure::Device(_) => Errno::EIO,
    }
}

fn refused(refusal: Refusal) -> Errno {
    match refusal {
        // What has no name any more is held while the kernel knows it, so only names below a removed directory are stale.
        Refusal::NotFound | Refusal::Stale => Errno::ENOENT,
        Refusal::Exists => Errno::EEXIST,
        Refusal::NotDirectory => Errno::ENOTDIR,
        Refusal::IsDirectory => Errno::EISDIR,
        Refusal::NotEmpty => Errno::ENOTEMPTY,
        Refusal::TooManyLinks => Errno::EMLINK,
        Refusal::BadName | Refusal::IntoItself => Errno::EINVAL,
        Refusal::WrongKind | Refusal::Reserved => Errno::EPERM,
        Refusal::NoAttribute => Errno::NO_XATTR,
        Refusal::NoRoomForAttribute | Refusal::StateRingFull => Errno::ENOSPC,
        Refusal::AttributeTooBig => Errno::E2BIG,
        Refusal::BadAttributeName => Errno::ERANGE,
        Refusal::BadAcl => Errno::EINVAL,
        Refusal::NotSupported => Errno::EOPNOTSUPP,
    }
}
