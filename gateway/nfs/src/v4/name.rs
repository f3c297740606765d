//! Names as they come from clients (RFC 8881 §14): bytes, of which a few are refused.

use bytes::Bytes;

use super::status::Status;
use crate::xdr::{Decoder, XdrError};

/// The longest name, in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// The longest that is taken from the wire, to be told that it is too long.
const WIRE_BYTES_MAX: usize = 4096;
/// The longest target of a symbolic link.
pub const LINK_BYTES_MAX: usize = 4095;

/// A name from the wire, not looked at yet.
pub fn decode(decoder: &mut Decoder) -> Result<Bytes, XdrError> {
    decoder.opaque(WIRE_BYTES_MAX)
}

/// What can be a name in a directory: neither empty nor `.` nor `..`, without a slash or a zero byte. Bytes that are no UTF-8 are
/// taken as they are, as every Unix does. Errors: what the protocol says to each of these.
pub fn check(name: &[u8]) -> Result<(), Status> {
    if name.is_empty() {
        return Err(Status::Invalid);
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(Status::NameTooLong);
    }
    if name == b"." || name == b".." || name.contains(&b'/') {
        return Err(Status::BadName);
    }
    if name.contains(&0) {
        return Err(Status::BadCharacter);
    }
    Ok(())
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
            (b"", Err(Status::Invalid)),
            (b".", Err(Status::BadName)),
            (b"..", Err(Status::BadName)),
            (b"a/b", Err(Status::BadName)),
            (b"a\0b", Err(Status::BadCharacter)),
            (&long, Err(Status::NameTooLong)),
        ];
        for (name, expected) in table {
            assert_eq!(check(name), expected, "{name:?}");
        }
    }
}
