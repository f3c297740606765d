//! From an operation to what does it.

use super::compound::Operation;
use super::context::{Context, Halt};
use super::operations::{
    access, allocate, create, getattr, handles, link, lock, lookup, opening, readdir, readlink, remove, rename,
    secinfo, seek, setattr, state, verify, write, xattrs,
};
use super::status::Status;
use crate::state::refusal::Refusal;
use crate::xdr::Encoder;

/// Results may be so long, where what they tell of changes something: then they fit into a record beside others.
const CHANGING_RESULT_BYTES_MAX: usize = 512;

/// What becomes of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It is done in a transaction, by [`run`].
    Inside,
    /// It waits for the device, and is no part of a transaction: READ, READ_PLUS, COMMIT, COPY.
    Outside,
}

/// Where an operation is done.
pub fn kind(operation: &Operation) -> Kind {
    match operation {
        Operation::Read(_) | Operation::ReadPlus(_) | Operation::Commit(_) | Operation::Copy(_) => Kind::Outside,
        _ => Kind::Inside,
    }
}

/// True for operations that may change something that is recorded.
pub fn may_change(operation: &Operation) -> bool {
    match operation {
        Operation::Write(arguments) => arguments.stable != write::Stable::Unstable,
        Operation::Close(_)
        | Operation::Create(_)
        | Operation::DelegReturn(_)
        | Operation::Link(_)
        | Operation::Lock(_)
        | Operation::LockU(_)
        | Operation::Open(_)
        | Operation::OpenDowngrade(_)
        | Operation::Remove(_)
        | Operation::Rename(_)
        | Operation::SetAttr(_)
        | Operation::FreeStateid(_)
        | Operation::ReclaimComplete(_)
        | Operation::Allocate(_)
        | Operation::Deallocate(_)
        | Operation::Copy(_)
        | Operation::SetXattr(_)
        | Operation::RemoveXattr(_)
        | Operation::BackChannelCtl(_)
        | Operation::DestroySession(_) => true,
        _ => false,
    }
}

/// Does an operation and puts its result. Errors: see [`Halt`]; what was put is to be forgotten then.
pub fn run(context: &mut Context<'_, '_>, operation: &Operation, out: &mut Encoder) -> Result<(), Halt> {
    if may_change(operation) && out.len() + CHANGING_RESULT_BYTES_MAX > context.request.recorded_bytes_max {
        return Err(Status::ReplyTooBigToCache.into());
    }
    match operation {
        Operation::Access(arguments) => access::run(context, arguments, out),
        Operation::Close(arguments) => state::close(context, arguments, out),
        Operation::Create(arguments) => create::run(context, arguments, out),
        Operation::DelegReturn(arguments) => state::return_delegation(context, arguments),
        Operation::GetAttr(arguments) => getattr::run(context, arguments, out),
        Operation::GetFh => handles::get(context, out),
        Operation::Link(arguments) => link::run(context, arguments, out),
        Operation::Lock(arguments) => lock::lock(context, arguments, out),
        Operation::LockT(arguments) => lock::test(context, arguments),
        Operation::LockU(arguments) => lock::unlock(context, arguments, out),
        Operation::Lookup(arguments) => lookup::run(context, arguments),
        Operation::LookupP => lookup::parent(context),
        Operation::NVerify(arguments) => verify::run(context, arguments, false),
        Operation::Open(arguments) => opening::run(context, arguments, out),
        Operation::OpenDowngrade(arguments) => state::downgrade(context, arguments, out),
        Operation::PutFh(arguments) => handles::put(context, arguments),
        Operation::PutPubFh | Operation::PutRootFh => handles::put_root(context),
        Operation::ReadDir(arguments) => readdir::run(context, arguments, out),
        Operation::ReadLink => readlink::run(context, out),
        Operation::Remove(arguments) => remove::run(context, arguments, out),
        Operation::Rename(arguments) => rename::run(context, arguments, out),
        Operation::RestoreFh => handles::restore(context),
        Operation::SaveFh => handles::save(context),
        Operation::SecInfo(arguments) => secinfo::run(context, arguments, out),
        Operation::SetAttr(arguments) => setattr::run(context, arguments, out),
        Operation::Verify(arguments) => verify::run(context, arguments, true),
        Operation::Write(arguments) => write::run(context, arguments, out),
        Operation::FreeStateid(arguments) => state::free(context, arguments),
        Operation::SecInfoNoName(arguments) => secinfo::run_no_name(context, arguments, out),
        Operation::TestStateid(arguments) => state::test(context, arguments, out),
        Operation::ReclaimComplete(arguments) => {
            context.state.clients.reclaim_complete(context.request.client, arguments.of_one)?;
            context.effects.changing = true;
            Ok(())
        }
        Operation::Allocate(arguments) => allocate::allocate(context, arguments),
        Operation::Deallocate(arguments) => allocate::deallocate(context, arguments),
        Operation::Seek(arguments) => seek::run(context, arguments, out),
        Operation::GetXattr(arguments) => xattrs::get(context, arguments, out),
        Operation::SetXattr(arguments) => xattrs::set(context, arguments, out),
        Operation::ListXattrs(arguments) => xattrs::list(context, arguments, out),
        Operation::RemoveXattr(arguments) => xattrs::remove(context, arguments, out),
        // A second SEQUENCE, or what has to be alone (RFC 8881 §2.10.2.1, §18.46.3).
        Operation::Sequence(_) => Err(Status::SequencePosition.into()),
        Operation::BindConnToSession(_)
        | Operation::ExchangeId(_)
        | Operation::CreateSession(_)
        | Operation::DestroyClientId(_) => Err(Status::NotOnlyOperation.into()),
        Operation::BackChannelCtl(arguments) => {
            let session = context.request.session;
            context.state.clients.control_back_channel(session, arguments.program, &arguments.security)?;
            context.effects.changing = true;
            Ok(())
        }
        Operation::DestroySession(arguments) => {
            // Of another client's it would be as if it were not there.
            if arguments.0.client != context.request.client {
                return Err(Status::BadSession.into());
            }
            context.state.clients.destroy_session(arguments.0)?;
            context.effects.changing = true;
            Ok(())
        }
        // Whoever runs the compound does these.
        Operation::Read(_) | Operation::ReadPlus(_) | Operation::Commit(_) | Operation::Copy(_) => {
            Err(Status::ServerFault.into())
        }
    }
}

/// Puts what stands behind a status that is a refusal, for the few operations where that is something.
pub fn put_failure(operation: &Operation, refusal: Option<&Refusal>, out: &mut Encoder) {
    match (operation, refusal) {
        (Operation::SetAttr(_), _) => setattr::put_failure(out),
        (Operation::Lock(_) | Operation::LockT(_), Some(Refusal::Lock(denied))) => lock::put_denied(out, denied),
        _ => {}
    }
}
