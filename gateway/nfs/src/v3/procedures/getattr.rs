//! GETATTR (RFC 1813 §3.3.1): attributes of a file.

use crate::v3::attributes;
use crate::v3::file_handle::FileHandle;
use crate::v4::context::{Context, Halt};
use crate::xdr::Encoder;

/// Puts them.
pub fn run(context: &mut Context<'_, '_>, file: &FileHandle, out: &mut Encoder) -> Result<(), Halt> {
    let (file, inode) = file.file(context)?;
    attributes::put(context, out, file, &inode);
    Ok(())
}
