//! GETFH, PUTFH, PUTPUBFH, PUTROOTFH, SAVEFH, RESTOREFH (RFC 8881 §18.8, §18.19 to §18.21, §18.27, §18.28): the current and
//! the saved handle.

use bytes::Bytes;

use crate::v4::context::{Context, Halt};
use crate::v4::file_handle::{FileHandle, HANDLE_BYTES_MAX};
use crate::v4::status::Status;
use crate::xdr::{Decoder, Encoder, XdrError};

/// A handle, of whatever kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutArguments(pub Bytes);

impl PutArguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        decoder.opaque(HANDLE_BYTES_MAX).map(Self)
    }
}

/// PUTFH. Errors: [`Status::BadHandle`] for what never was one; [`Status::Stale`] for what is one no more.
pub fn put(context: &mut Context<'_, '_>, arguments: &PutArguments) -> Result<(), Halt> {
    let handle = FileHandle::from_bytes(&arguments.0).ok_or(Status::BadHandle)?;
    if !matches!(handle, FileHandle::Referral(_)) {
        context.target_of(handle)?;
    }
    context.go_to(handle);
    Ok(())
}

/// PUTROOTFH, and PUTPUBFH, which is the same here.
pub fn put_root(context: &mut Context<'_, '_>) -> Result<(), Halt> {
    context.go_to(FileHandle::Root);
    Ok(())
}

/// GETFH.
pub fn get(context: &mut Context<'_, '_>, out: &mut Encoder) -> Result<(), Halt> {
    match context.handle()? {
        FileHandle::Referral(_) => Err(Status::Moved.into()),
        handle => {
            out.opaque(&handle.to_bytes());
            Ok(())
        }
    }
}

/// SAVEFH.
pub fn save(context: &mut Context<'_, '_>) -> Result<(), Halt> {
    context.at.saved = Some((context.handle()?, context.at.stateid));
    Ok(())
}

/// RESTOREFH. Errors: [`Status::NoFileHandle`] when nothing was saved (RFC 8881 §18.27.3).
pub fn restore(context: &mut Context<'_, '_>) -> Result<(), Halt> {
    let (handle, stateid) = context.at.saved.ok_or(Status::NoFileHandle)?;
    context.at.current = Some(handle);
    context.at.stateid = stateid;
    Ok(())
}
