//! READLINK (RFC 1813 §3.3.5): the target of a symbolic link.

use filesystem::layout::file_kind::FileKind;

use crate::v3::attributes::put_after;
use crate::v3::file_handle::FileHandle;
use crate::v4::context::{Context, Halt};
use crate::v4::status::Status;
use crate::xdr::Encoder;

/// Puts the attributes and the target. Errors: [`Status::Invalid`] for what is none.
pub fn run(context: &mut Context<'_, '_>, file: &FileHandle, out: &mut Encoder) -> Result<(), Halt> {
    let (file, inode) = file.file(context)?;
    if inode.mode.kind() != Some(FileKind::Symlink) {
        return Err(Status::Invalid.into());
    }
    put_after(context, out, file, &inode);
    out.opaque(&context.files.read_link(file.inode)?);
    Ok(())
}
