//! The network status monitor's requests.

use block_device::BlockDevice;

use super::companions::{Reply, refusal, success, understood};
use super::{Gone, Origin, Service};
use crate::nsm::{self, Request};
use crate::rpc::call::Call;
use crate::rpc::reply::{self, AuthError, Unaccepted};
use crate::state::holder::Host;
use crate::state::hosts::state_number;
use crate::xdr::Decoder;

impl<D: BlockDevice + 'static> Service<D> {
    /// Answers a call of the status monitor. Errors: there will be no answers any more.
    pub(super) async fn nsm(&self, origin: Origin, call: &Call, arguments: &mut Decoder) -> Result<Reply, Gone> {
        if let Err(reply) = self.admitted(origin, call, (nsm::VERSION, nsm::VERSION)) {
            return Ok(reply);
        }
        let request = match understood(call, Request::decode(call.procedure, arguments)) {
            Ok(request) => request,
            Err(reply) => return Ok(reply),
        };
        match &request {
            Request::SimulateCrash => return Ok(Some(reply::denied(call.xid, AuthError::TooWeak).finish())),
            Request::Notify { host, state } => {
                let Some(host) = Host::new(host, origin.address) else {
                    return Ok(refusal(call, Unaccepted::GarbageArguments));
                };
                let is_new = self.state().hosts.monitor(&host).is_some_and(|monitor| monitor.state != *state);
                if is_new && !self.drop_host(&host, Some(*state)).await? {
                    return Ok(refusal(call, Unaccepted::SystemError));
                }
            }
            Request::Null | Request::Watch | Request::Unwatch => {}
        }
        let epoch = self.state().clients.counters.service().epoch;
        Ok(success(call, |out| request.encode_result(state_number(epoch), out)))
    }
}
