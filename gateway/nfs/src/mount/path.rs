//! Paths of directories, as MNT has them.

use bytes::Bytes;
use filesystem::units::ROOT_INODE;

use crate::access::Wanted;
use crate::ids::FileId;
use crate::v3::name;
use crate::v4::context::{Context, Halt, expect_directory};
use crate::v4::status::Status;
use crate::xdr::{Decoder, XdrError};

/// The longest path (`MNTPATHLEN`).
pub const PATH_BYTES_MAX: usize = 1024;
/// The longest that is taken from the wire, to be told that it is too long.
const WIRE_BYTES_MAX: usize = 4096;

/// A path as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path(pub Bytes);

impl Path {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        decoder.opaque(WIRE_BYTES_MAX).map(Self)
    }

    /// The volume's name, and the names below it. Errors: [`Status::NameTooLong`]; [`Status::NoEntry`] for one that does not
    /// begin with a slash, or names nothing; [`Status::Invalid`] for `..`; those of names.
    pub fn parts(&self) -> Result<(&[u8], Vec<&[u8]>), Status> {
        if self.0.len() > PATH_BYTES_MAX {
            return Err(Status::NameTooLong);
        }
        let below = self.0.strip_prefix(b"/").ok_or(Status::NoEntry)?;
        let mut names = below.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".");
        let volume = names.next().ok_or(Status::NoEntry)?;
        let below: Vec<_> = names.collect();
        below.iter().try_for_each(|name| name::check_entry(name, Status::Invalid))?;
        Ok((volume, below))
    }
}

/// The directory of these names below the volume's root, which the caller may look up. Errors: [`Status::NoEntry`],
/// [`Status::NotDirectory`] (also for a symbolic link: none is followed), [`Status::Access`].
pub fn walk(context: &mut Context<'_, '_>, names: &[&[u8]]) -> Result<FileId, Halt> {
    let (mut at, mut inode) = context.identify(ROOT_INODE)?;
    for name in names {
        context.expect_permitted(at, &inode, Wanted::Execute)?;
        (at, inode) = context.find(at, name)?;
        expect_directory(&inode)?;
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(path: &[u8]) -> Result<(Vec<u8>, Vec<Vec<u8>>), Status> {
        let path = Path(Bytes::copy_from_slice(path));
        path.parts().map(|(volume, below)| (volume.to_vec(), below.into_iter().map(<[u8]>::to_vec).collect()))
    }

    #[test]
    fn paths_are_taken_apart() {
        for path in [&b"/vol/a/b"[..], b"//vol///a/./b/"] {
            assert_eq!(parts(path), Ok((b"vol".to_vec(), vec![b"a".to_vec(), b"b".to_vec()])));
        }
        assert_eq!(parts(b"/vol"), Ok((b"vol".to_vec(), Vec::new())));
        for path in [&b""[..], b"/", b"//", b"vol", b"/."] {
            assert_eq!(parts(path), Err(Status::NoEntry), "{path:?}");
        }
        assert_eq!(parts(b"/vol/../etc"), Err(Status::Invalid));
        assert_eq!(parts(b"/vol/a\0"), Err(Status::Access));
        assert_eq!(parts(&[&b"/vol/"[..], &[b'x'; 256]].concat()), Err(Status::NameTooLong));
        assert_eq!(parts(&b"/x".repeat(513)), Err(Status::NameTooLong));
    }
}
