//! VERIFY and NVERIFY (RFC 8881 §18.15, §18.31): goes on only if the current file's attributes are, or are not, these.

use crate::v4::attributes::encode::{Source, put};
use crate::v4::attributes::set::Unread;
use crate::v4::attributes::{READABLE, SETTABLE, number, supported};
use crate::v4::bitmap::Bitmap;
use crate::v4::context::{Context, Halt};
use crate::v4::status::Status;
use crate::xdr::{Decoder, Encoder, XdrError};

/// What cannot be compared (RFC 8881 §18.15.3).
const INCOMPARABLE: Bitmap = Bitmap::of(&[number::RDATTR_ERROR]);

/// The attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments(pub Unread);

impl Arguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        Unread::decode(decoder).map(Self)
    }
}

/// `wanted` is whether they are to be the same. Errors: [`Status::Same`], [`Status::NotSame`].
pub fn run(context: &mut Context<'_, '_>, arguments: &Arguments, wanted: bool) -> Result<(), Halt> {
    let (service, minor, owners) = (context.request.service, context.request.minor, context.request.owners);
    let (asked, beyond, _) = arguments.0.raw();
    if beyond || !asked.without(supported(minor)).is_empty() {
        return Err(Status::AttributeNotSupported.into());
    }
    if !asked.and(INCOMPARABLE.or(SETTABLE.without(READABLE))).is_empty() {
        return Err(Status::Invalid.into());
    }
    let (file, statistics, other) = context.facts()?;
    if other.is_some() {
        return Err(Status::Moved.into());
    }
    let mut ours = Encoder::new();
    put(
        &mut ours,
        asked,
        Source { service, file: &file, statistics: &statistics, location: None, minor, error: None, owners },
    );
    let ours = Unread::decode(&mut Decoder::new(ours.to_bytes())).map_err(Status::from)?;
    match (ours == arguments.0, wanted) {
        (true, true) | (false, false) => Ok(()),
        (true, false) => Err(Status::Same.into()),
        (false, true) => Err(Status::NotSame.into()),
    }
}
