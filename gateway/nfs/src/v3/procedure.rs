//! A call: which procedure, with which arguments (RFC 1813 §3.3).

use super::attributes::put_unchanged;
use super::file_handle::FileHandle;
use super::procedures::{
    access, commit, create, fsinfo, link, lookup, make, read, readdir, remove, rename, setattr, write,
};
use crate::v4::context::{Context, Halt};
use crate::v4::operations::write::Stable;
use crate::xdr::{Decoder, Encoder, XdrError};

/// A procedure with its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Procedure {
    /// NULL.
    Null,
    /// GETATTR.
    GetAttr(FileHandle),
    /// SETATTR.
    SetAttr(setattr::Arguments),
    /// LOOKUP.
    Lookup(lookup::Arguments),
    /// ACCESS.
    Access(access::Arguments),
    /// READLINK.
    ReadLink(FileHandle),
    /// READ.
    Read(read::Arguments),
    /// WRITE.
    Write(write::Arguments),
    /// CREATE.
    Create(create::Arguments),
    /// MKDIR, SYMLINK, MKNOD.
    Make(make::Arguments),
    /// REMOVE, RMDIR.
    Remove(remove::Arguments),
    /// RENAME.
    Rename(rename::Arguments),
    /// LINK.
    Link(link::Arguments),
    /// READDIR, READDIRPLUS.
    ReadDir(readdir::Arguments),
    /// FSSTAT, FSINFO, PATHCONF.
    OfFilesystem(fsinfo::Arguments),
    /// COMMIT.
    Commit(commit::Arguments),
}

/// Why there is no procedure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadCall {
    /// None has this number.
    Unavailable,
    /// Its arguments cannot be read.
    Garbage,
}

impl From<XdrError> for BadCall {
    fn from(_: XdrError) -> Self {
        Self::Garbage
    }
}

impl Procedure {
    /// From the wire, to the end of the message.
    pub fn decode(number: u32, decoder: &mut Decoder) -> Result<Self, BadCall> {
        let procedure = match number {
            0 => Self::Null,
            1 => Self::GetAttr(FileHandle::decode(decoder)?),
            2 => Self::SetAttr(setattr::Arguments::decode(decoder)?),
            3 => Self::Lookup(lookup::Arguments::decode(decoder)?),
            4 => Self::Access(access::Arguments::decode(decoder)?),
            5 => Self::ReadLink(FileHandle::decode(decoder)?),
            6 => Self::Read(read::Arguments::decode(decoder)?),
            7 => Self::Write(write::Arguments::decode(decoder)?),
            8 => Self::Create(create::Arguments::decode(decoder)?),
            9 => Self::Make(make::Arguments::decode_directory(decoder)?),
            10 => Self::Make(make::Arguments::decode_symlink(decoder)?),
            11 => Self::Make(make::Arguments::decode_node(decoder)?),
            12 => Self::Remove(remove::Arguments::decode(decoder, false)?),
            13 => Self::Remove(remove::Arguments::decode(decoder, true)?),
            14 => Self::Rename(rename::Arguments::decode(decoder)?),
            15 => Self::Link(link::Arguments::decode(decoder)?),
            16 => Self::ReadDir(readdir::Arguments::decode(decoder)?),
            17 => Self::ReadDir(readdir::Arguments::decode_plus(decoder)?),
            18 => Self::OfFilesystem(fsinfo::Arguments::decode(decoder, fsinfo::Asked::Usage)?),
            19 => Self::OfFilesystem(fsinfo::Arguments::decode(decoder, fsinfo::Asked::Limits)?),
            20 => Self::OfFilesystem(fsinfo::Arguments::decode(decoder, fsinfo::Asked::Paths)?),
            21 => Self::Commit(commit::Arguments::decode(decoder)?),
            _ => return Err(BadCall::Unavailable),
        };
        decoder.finish()?;
        Ok(procedure)
    }

    /// True for one that changes something, so that a retransmission must not do it again. What is written and need not be
    /// durable can be written again.
    pub fn is_changing(&self) -> bool {
        match self {
            Self::Write(arguments) => arguments.stable != Stable::Unstable,
            Self::SetAttr(_) | Self::Create(_) | Self::Make(_) | Self::Remove(_) | Self::Rename(_) | Self::Link(_) => {
                true
            }
            _ => false,
        }
    }

    /// The files that a failure tells the attributes of, in order, and whether as of a change (`wcc_data`).
    fn told_of(&self) -> Vec<(&FileHandle, bool)> {
        match self {
            Self::Null | Self::GetAttr(_) => Vec::new(),
            Self::SetAttr(arguments) => vec![(&arguments.file, true)],
            Self::Lookup(arguments) => vec![(&arguments.0.directory, false)],
            Self::Access(arguments) => vec![(&arguments.file, false)],
            Self::ReadLink(file) => vec![(file, false)],
            Self::Read(arguments) => vec![(&arguments.file, false)],
            Self::Write(arguments) => vec![(&arguments.file, true)],
            Self::Create(arguments) => vec![(&arguments.place.directory, true)],
            Self::Make(arguments) => vec![(&arguments.place.directory, true)],
            Self::Remove(arguments) => vec![(&arguments.place.directory, true)],
            Self::Rename(arguments) => vec![(&arguments.from.directory, true), (&arguments.to.directory, true)],
            Self::Link(arguments) => vec![(&arguments.file, false), (&arguments.place.directory, true)],
            Self::ReadDir(arguments) => vec![(&arguments.directory, false)],
            Self::OfFilesystem(arguments) => vec![(&arguments.file, false)],
            Self::Commit(arguments) => vec![(&arguments.file, true)],
        }
    }

    /// Puts what stands behind the status of a failure that changed nothing. Errors: a block is missing.
    pub fn put_failure(&self, context: &mut Context<'_, '_>, out: &mut Encoder) -> Result<(), Halt> {
        self.told_of().into_iter().try_for_each(|(handle, is_change)| put_unchanged(context, out, handle, is_change))
    }

    /// The same when nothing can be told of any file.
    pub fn put_bare_failure(&self, out: &mut Encoder) {
        for (_, is_change) in self.told_of() {
            if is_change {
                out.bool(false);
            }
            out.bool(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HANDLE: &[u8] = &[1; 20];

    fn place(out: &mut Encoder) {
        out.opaque(HANDLE);
        out.opaque(b"name");
    }

    fn nothing_to_set(out: &mut Encoder) {
        (0..6).for_each(|_| out.u32(0));
    }

    /// The arguments of each procedure, as RFC 1813 has them.
    fn arguments(number: u32) -> Vec<u8> {
        let mut out = Encoder::new();
        match number {
            0 => {}
            1 | 5 | 18..=20 => out.opaque(HANDLE),
            2 => {
                out.opaque(HANDLE);
                nothing_to_set(&mut out);
                out.option(Some((5, 6)), |out, (seconds, nanoseconds)| {
                    out.u32(seconds);
                    out.u32(nanoseconds);
                });
            }
            3 | 12 | 13 => place(&mut out),
            4 => {
                out.opaque(HANDLE);
                out.u32(0x3f);
            }
            6 | 21 => {
                out.opaque(HANDLE);
                out.u64(7);
                out.u32(8);
            }
            7 => {
                out.opaque(HANDLE);
                out.u64(7);
                out.u32(3);
                out.u32(2);
                out.opaque(b"abc");
            }
            8 => {
                place(&mut out);
                out.u32(1);
                nothing_to_set(&mut out);
            }
            9 => {
                place(&mut out);
                nothing_to_set(&mut out);
            }
            10 => {
                place(&mut out);
                nothing_to_set(&mut out);
                out.opaque(b"target");
            }
            11 => {
                place(&mut out);
                out.u32(4);
                nothing_to_set(&mut out);
                out.u64(9);
            }
            14 => {
                place(&mut out);
                place(&mut out);
            }
            15 => {
                out.opaque(HANDLE);
                place(&mut out);
            }
            16 | 17 => {
                out.opaque(HANDLE);
                out.u64(0);
                out.u64(0);
                (0..number - 15).for_each(|_| out.u32(4096));
            }
            _ => unreachable!("there is no such procedure"),
        }
        out.to_bytes().to_vec()
    }

    #[test]
    fn arguments_are_taken_whole_and_neither_cut_nor_longer() {
        for number in 0..22 {
            let bytes = arguments(number);
            let decode = |bytes: &[u8]| Procedure::decode(number, &mut Decoder::new(bytes.to_vec().into()));
            assert!(decode(&bytes).is_ok(), "procedure {number}");
            for end in 0..bytes.len() {
                assert_eq!(decode(&bytes[..end]), Err(BadCall::Garbage), "procedure {number} cut at {end}");
            }
            assert_eq!(decode(&[&bytes[..], &[0; 4]].concat()), Err(BadCall::Garbage), "procedure {number}");
        }
        let unknown = Procedure::decode(22, &mut Decoder::new(Default::default()));
        assert_eq!(unknown, Err(BadCall::Unavailable));
    }

    #[test]
    fn any_byte_may_be_any_other() {
        for number in 0..22 {
            let bytes = arguments(number);
            for at in 0..bytes.len() {
                for value in [0, 1, 2, 3, 0x7f, 0x80, 0xff] {
                    let mut hostile = bytes.clone();
                    hostile[at] = value;
                    // Whatever it is, it is told within the message.
                    let _ = Procedure::decode(number, &mut Decoder::new(hostile.into()));
                }
            }
        }
    }

    #[test]
    fn a_count_that_is_not_that_of_the_data_is_garbage() {
        let mut bytes = arguments(7);
        let count_at = 4 + HANDLE.len() + 8;
        bytes[count_at + 3] = 4;
        assert_eq!(Procedure::decode(7, &mut Decoder::new(bytes.into())), Err(BadCall::Garbage));
    }

    #[test]
    fn handles_are_bounded() {
        let mut out = Encoder::new();
        out.opaque(&[0; 68]);
        assert_eq!(Procedure::decode(1, &mut Decoder::new(out.to_bytes())), Err(BadCall::Garbage));
    }
}
