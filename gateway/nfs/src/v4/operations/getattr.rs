//! GETATTR (RFC 8881 §18.7): attributes of the current file.

use crate::v4::attributes::encode::{Source, put};
use crate::v4::attributes::number;
use crate::v4::bitmap::Bitmap;
use crate::v4::context::{Context, Halt};
use crate::v4::status::Status;
use crate::xdr::{Decoder, Encoder, XdrError};

/// What can be told of a filesystem that is elsewhere (RFC 8881 §11.3.1).
const OF_ABSENT: Bitmap =
    Bitmap::of(&[number::FSID, number::FS_LOCATIONS, number::MOUNTED_ON_FILEID, number::RDATTR_ERROR]);
/// One of these has to be asked for then.
const TELLS_ABSENT: Bitmap = Bitmap::of(&[number::FS_LOCATIONS, number::RDATTR_ERROR]);

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments(pub Bitmap);

impl Arguments {
    /// From the wire. What is not known is not answered.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        Bitmap::decode(decoder).map(|(asked, _)| Self(asked))
    }
}

/// Puts those that there are. Errors: [`Status::Moved`] for a filesystem that is elsewhere, unless that is what is asked for.
pub fn run(context: &mut Context<'_, '_>, arguments: &Arguments, out: &mut Encoder) -> Result<(), Halt> {
    let (service, minor, owners) = (context.request.service, context.request.minor, context.request.owners);
    let mut asked = arguments.0;
    let (file, statistics, other) = context.facts()?;
    let mut error = None;
    if other.is_some() {
        if asked.and(TELLS_ABSENT).is_empty() {
            return Err(Status::Moved.into());
        }
        asked = asked.and(OF_ABSENT);
        error = Some(Status::Moved);
    }
    let location = other.map(|other| &other.location);
    put(out, asked, Source { service, file: &file, statistics: &statistics, location, minor, error, owners });
    Ok(())
}
