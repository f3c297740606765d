//! The procedures of MOUNT (RFC 1813 §5.2), as they come and as they are answered.

use super::FLAVORS;
use super::list::Mounts;
use super::path::Path;
use crate::statistics::Export;
use crate::v3::procedure::BadCall;
use crate::v4::file_handle::FileHandle;
use crate::xdr::{Decoder, Encoder};

/// A procedure with its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Procedure {
    /// NULL.
    Null,
    /// MNT: the handle of a directory.
    Mount(Path),
    /// DUMP: who has mounted what.
    Dump,
    /// UMNT: a directory is not mounted any more.
    Unmount(Path),
    /// UMNTALL: nothing is.
    UnmountAll,
    /// EXPORT: what can be mounted.
    Export,
}

impl Procedure {
    /// From the wire, to the end of the message.
    pub fn decode(number: u32, decoder: &mut Decoder) -> Result<Self, BadCall> {
        let procedure = match number {
            0 => Self::Null,
            1 => Self::Mount(Path::decode(decoder)?),
            2 => Self::Dump,
            3 => Self::Unmount(Path::decode(decoder)?),
            4 => Self::UnmountAll,
            5 => Self::Export,
            _ => return Err(BadCall::Unavailable),
        };
        decoder.finish()?;
        Ok(procedure)
    }
}

/// The result of a MNT that has one.
pub fn put_mounted(out: &mut Encoder, handle: FileHandle) {
    out.u32(crate::v4::status::OK);
    out.opaque(&handle.to_bytes());
    out.array(FLAVORS, |out, flavor| out.u32(*flavor));
}

/// The result of DUMP.
pub fn put_mounts(out: &mut Encoder, mounts: &Mounts) {
    for mount in mounts.iter() {
        out.bool(true);
        out.opaque(mount.client.as_bytes());
        out.opaque(&mount.path);
    }
    out.bool(false);
}

/// The result of EXPORT: the volume, and whom its exports name.
pub fn put_exports(out: &mut Encoder, volume: &[u8], clients: &[Export]) {
    out.bool(true);
    out.opaque(&[b"/", volume].concat());
    for client in clients {
        out.bool(true);
        out.opaque(client.to_string().as_bytes());
    }
    out.bool(false);
    put_no_exports(out);
}

/// The end of the list, which may be all of it.
pub fn put_no_exports(out: &mut Encoder) {
    out.bool(false);
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn calls_are_taken_whole_and_neither_cut_nor_longer() {
        let mut out = Encoder::new();
        out.opaque(b"/vol/dir");
        let bytes = out.to_bytes();
        let path = Path(Bytes::from_static(b"/vol/dir"));
        let decode = |number, bytes| Procedure::decode(number, &mut Decoder::new(bytes));
        assert_eq!(decode(1, bytes.clone()), Ok(Procedure::Mount(path.clone())));
        assert_eq!(decode(3, bytes.clone()), Ok(Procedure::Unmount(path)));
        for number in [0, 2, 4, 5] {
            assert!(decode(number, Bytes::new()).is_ok());
            assert_eq!(decode(number, bytes.clone()), Err(BadCall::Garbage), "procedure {number}");
        }
        for end in 0..bytes.len() {
            assert_eq!(decode(1, bytes.slice(..end)), Err(BadCall::Garbage), "cut at {end}");
        }
        assert_eq!(decode(1, Bytes::from_static(&[0xff; 16])), Err(BadCall::Garbage));
        assert_eq!(decode(6, Bytes::new()), Err(BadCall::Unavailable));
    }
}
