//! Names as they come from clients of NFSv3 (RFC 1813 §2.5, §3.2): bytes, of which a few are refused.

use bytes::Bytes;

use super::file_handle::FileHandle;
use crate::v4::name::NAME_BYTES_MAX;
use crate::v4::status::Status;
use crate::xdr::{Decoder, XdrError};

/// A name in a directory (`diropargs3`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The directory.
    pub directory: FileHandle,
    /// The name, not looked at yet.
    pub name: Bytes,
}

impl Place {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        Ok(Self { directory: FileHandle::decode(decoder)?, name: crate::v4::name::decode(decoder)? })
    }
}

/// What could be a name. Errors: [`Status::Access`] for one that is empty or has bytes that none can have, as §3.2 asks for;
/// [`Status::NameTooLong`].
pub fn check(name: &[u8]) -> Result<(), Status> {
    if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
        return Err(Status::Access);
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(Status::NameTooLong);
    }
    Ok(())
}

/// The same of one that is to be made, taken away or moved. Errors: `of_dots` for `.` and `..`, too.
pub fn check_entry(name: &[u8], of_dots: Status) -> Result<(), Status> {
    check(name)?;
    match name {
        b"." | b".." => Err(of_dots),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bad_name_gets_its_answer() {
        let long = [b'x'; 256];
        let table: [(&[u8], Result<(), Status>); 8] = [
            (b"name", Ok(())),
            (&long[..255], Ok(())),
            (b"", Err(Status::Access)),
            (b".", Err(Status::Invalid)),
            (b"..", Err(Status::Invalid)),
            (b"a/b", Err(Status::Access)),
            (b"a\0b", Err(Status::Access)),
            (&long, Err(Status::NameTooLong)),
        ];
        for (name, expected) in table {
            assert_eq!(check_entry(name, Status::Invalid), expected, "{name:?}");
        }
        assert_eq!(check(b".."), Ok(()), "it can be looked up");
    }
}
