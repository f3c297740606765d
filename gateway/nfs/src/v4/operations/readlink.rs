//! READLINK (RFC 8881 §18.24): the target of the current symbolic link.

use filesystem::layout::file_kind::FileKind;

use crate::v4::context::{Context, Halt};
use crate::v4::status::Status;
use crate::xdr::Encoder;

/// Puts the target. Errors: [`Status::WrongType`].
pub fn run(context: &mut Context<'_, '_>, out: &mut Encoder) -> Result<(), Halt> {
    let (file, inode) = context.file(Status::WrongType)?;
    if inode.mode.kind() != Some(FileKind::Symlink) {
        return Err(Status::WrongType.into());
    }
    out.opaque(&context.files.read_link(file.inode)?);
    Ok(())
}
