//! SECINFO and SECINFO_NO_NAME (RFC 8881 §18.29, §18.45): how a client may show who it is. The current handle is used up.

use super::lookup;
use crate::v4::context::{Context, Halt, Target};
use crate::v4::status::Status;
use crate::xdr::{Decoder, Encoder, XdrError};

/// AUTH_SYS, the one flavor that is taken for files.
const FLAVORS: &[u32] = &[1];

/// SECINFO_NO_NAME: whether of the directory above, or of the current file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoNameArguments {
    /// Of the directory above.
    pub of_parent: bool,
}

impl NoNameArguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        match decoder.u32()? {
            0 => Ok(Self { of_parent: false }),
            1 => Ok(Self { of_parent: true }),
            value => Err(XdrError::BadValue { of: "secinfo_style4", value }),
        }
    }
}

/// SECINFO.
pub fn run(context: &mut Context<'_, '_>, arguments: &lookup::Arguments, out: &mut Encoder) -> Result<(), Halt> {
    lookup::look_up(context, &arguments.0)?;
    put(context, out);
    Ok(())
}

/// SECINFO_NO_NAME.
pub fn run_no_name(context: &mut Context<'_, '_>, arguments: &NoNameArguments, out: &mut Encoder) -> Result<(), Halt> {
    match context.target()? {
        Target::Root if arguments.of_parent => return Err(Status::NoEntry.into()),
        _ if arguments.of_parent => lookup::parent(context)?,
        _ => {}
    }
    put(context, out);
    Ok(())
}

fn put(context: &mut Context<'_, '_>, out: &mut Encoder) {
    context.at.current = None;
    context.at.stateid = None;
    out.array(FLAVORS, |out, flavor| out.u32(*flavor));
}
