//! What the programs beside NFS have in common: versions, callers, and replies.

use block_device::BlockDevice;
use bytes::Bytes;

use super::{Origin, Service};
use crate::access::Caller;
use crate::port_mapper::{self, Asked, Protocol, rpcbind, version2};
use crate::rpc::auth::Credential;
use crate::rpc::call::Call;
use crate::rpc::reply::{self, AuthError, Unaccepted};
use crate::xdr::{Decoder, Encoder, XdrError};

/// A reply in its parts; none where nothing is said.
pub(super) type Reply = Option<Vec<Bytes>>;

/// A reply without a result.
pub(super) fn refusal(call: &Call, why: Unaccepted) -> Reply {
    Some(reply::unaccepted(call.xid, why).finish())
}

/// What was decoded, or the reply that says why it was not.
pub(super) fn understood<T>(call: &Call, decoded: Result<Option<T>, XdrError>) -> Result<T, Reply> {
    match decoded {
        Ok(Some(request)) => Ok(request),
        Ok(None) => Err(refusal(call, Unaccepted::ProcedureUnavailable)),
        Err(_) => Err(refusal(call, Unaccepted::GarbageArguments)),
    }
}

/// A reply with a result.
pub(super) fn success(call: &Call, put: impl FnOnce(&mut Encoder)) -> Reply {
    let mut out = Encoder::new();
    reply::success(&mut out, call.xid);
    put(&mut out);
    Some(out.finish())
}

impl<D: BlockDevice + 'static> Service<D> {
    /// The caller of one of these programs, as the export sees it; or the reply to whoever may not call it.
    pub(super) fn admitted(&self, origin: Origin, call: &Call, versions: (u32, u32)) -> Result<Caller, Reply> {
        if !(versions.0..=versions.1).contains(&call.version) {
            return Err(refusal(call, Unaccepted::VersionMismatch(versions.0, versions.1)));
        }
        let caller = (self.world.caller)(origin.address, &call.credential);
        match call.credential {
            Credential::None | Credential::Sys(_) if !caller.refused => Ok(caller),
            _ => Err(Some(reply::denied(call.xid, AuthError::TooWeak).finish())),
        }
    }

    /// The port mapper.
    pub(super) fn port_mapper(&self, origin: Origin, call: &Call, arguments: &mut Decoder) -> Reply {
        let versions = (port_mapper::VERSION_MIN, port_mapper::VERSION_MAX);
        if let Err(reply) = self.admitted(origin, call, versions) {
            return reply;
        }
        let offers = port_mapper::offers(self.world.port);
        if call.version == port_mapper::VERSION_MIN {
            return match understood(call, version2::Request::decode(call.procedure, arguments)) {
                Ok(request) => success(call, |out| request.answer(&offers, out)),
                Err(reply) => reply,
            };
        }
        let protocol = match origin.door {
            super::Door::PortMapper(protocol) => protocol,
            super::Door::Service | super::Door::Datagrams => Protocol::Tcp,
        };
        let seconds = (self.world.now)().seconds as u32;
        let asked = Asked { local: origin.local, protocol, seconds };
        match understood(call, rpcbind::Request::decode(call.version, call.procedure, arguments)) {
            Ok(request) => success(call, |out| request.answer(&offers, &asked, out)),
            Err(reply) => reply,
        }
    }
}
