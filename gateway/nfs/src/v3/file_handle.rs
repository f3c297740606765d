//! File handles of NFSv3 (RFC 1813 §2.6, `nfs_fh3`): those of NFSv4, of files only. The directory above the volumes and the
//! volumes of other services are not seen here.

use bytes::Bytes;
use filesystem::layout::inode::Inode;

use crate::ids::FileId;
use crate::v4::context::{Context, Halt, Target};
use crate::v4::file_handle;
use crate::v4::status::Status;
use crate::xdr::{Decoder, XdrError};

/// The longest (`NFS3_FHSIZE`).
const WIRE_BYTES_MAX: usize = 64;

/// A handle as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileHandle(pub Bytes);

impl FileHandle {
    /// From the wire. Errors: it is longer than one can be.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        decoder.opaque(WIRE_BYTES_MAX).map(Self)
    }

    /// The file. Errors: [`Status::BadHandle`] for what was never given out, [`Status::Stale`] for what is gone.
    pub fn file(&self, context: &mut Context<'_, '_>) -> Result<(FileId, Inode), Halt> {
        match context.target_of(self.of_file()?)? {
            Target::File(file, inode) => Ok((file, *inode)),
            Target::Root => Err(Status::BadHandle.into()),
        }
    }

    /// The file, a directory whose names are to be changed by this caller. Errors: those of [`Self::file`],
    /// [`Status::NotDirectory`], [`Status::ReadOnly`], [`Status::Access`].
    pub fn directory_to_change(&self, context: &mut Context<'_, '_>) -> Result<(FileId, Inode), Halt> {
        let handle = self.of_file()?;
        context.directory_to_change_of(handle)
    }

    fn of_file(&self) -> Result<file_handle::FileHandle, Status> {
        match file_handle::FileHandle::from_bytes(&self.0) {
            Some(handle @ file_handle::FileHandle::File(..)) => Ok(handle),
            _ => Err(Status::BadHandle),
        }
    }
}
