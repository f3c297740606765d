//! From a procedure to what does it.

use super::procedure::Procedure;
use super::procedures::{
    access, create, fsinfo, getattr, link, lookup, make, readdir, readlink, remove, rename, setattr,
};
use crate::v4::context::{Context, Halt};
use crate::v4::status::Status;
use crate::xdr::Encoder;

/// Does a procedure and puts what stands behind its status. Those that wait for the device (READ, WRITE, COMMIT) are done by
/// whoever runs it. Errors: see [`Halt`]; what was put is to be forgotten then.
pub fn run(context: &mut Context<'_, '_>, procedure: &Procedure, out: &mut Encoder) -> Result<(), Halt> {
    match procedure {
        Procedure::Null => Ok(()),
        Procedure::GetAttr(file) => getattr::run(context, file, out),
        Procedure::SetAttr(arguments) => setattr::run(context, arguments, out),
        Procedure::Lookup(arguments) => lookup::run(context, arguments, out),
        Procedure::Access(arguments) => access::run(context, arguments, out),
        Procedure::ReadLink(file) => readlink::run(context, file, out),
        Procedure::Create(arguments) => create::run(context, arguments, out),
        Procedure::Make(arguments) => make::run(context, arguments, out),
        Procedure::Remove(arguments) => remove::run(context, arguments, out),
        Procedure::Rename(arguments) => rename::run(context, arguments, out),
        Procedure::Link(arguments) => link::run(context, arguments, out),
        Procedure::ReadDir(arguments) => readdir::run(context, arguments, out),
        Procedure::OfFilesystem(arguments) => fsinfo::run(context, arguments, out),
        Procedure::Read(_) | Procedure::Write(_) | Procedure::Commit(_) => Err(Status::ServerFault.into()),
    }
}
