//! NFSv4: its two procedures (RFC 8881 §16.1, §16.2).

use block_device::BlockDevice;

use super::recording::Ticket;
use super::{Answer, Gone, Origin, Service};
use crate::rpc::call::Call;
use crate::rpc::reply::{AuthError, Unaccepted};
use crate::v4::compound::{BadCompound, Compound};
use crate::xdr::{Decoder, Encoder};

/// The version.
pub(super) const VERSION: u32 = 4;
const PROCEDURE_NULL: u32 = 0;
const PROCEDURE_COMPOUND: u32 = 1;

impl<D: BlockDevice + 'static> Service<D> {
    /// Answers a call of NFSv4, whose arguments are next in the decoder.
    pub(super) async fn call_v4(
        &self,
        (origin, ticket): (Origin, &Ticket<'_>),
        call: &Call,
        mut decoder: Decoder,
    ) -> Result<Answer, Gone> {
        match call.procedure {
            PROCEDURE_NULL => return Ok(Answer::Result(Encoder::new())),
            PROCEDURE_COMPOUND => {}
            _ => return Ok(Answer::Unaccepted(Unaccepted::ProcedureUnavailable)),
        }
        let compound = match Compound::decode(&mut decoder) {
            Ok(compound) => compound,
            Err(BadCompound::Garbage) => return Ok(Answer::Unaccepted(Unaccepted::GarbageArguments)),
            Err(BadCompound::Refuse(tag, status)) => {
                self.compound_alone(ticket, None, Some(status));
                let mut out = Encoder::new();
                out.u32(status.code());
                out.opaque(&tag);
                out.u32(0);
                return Ok(Answer::Result(out));
            }
        };
        let caller = (self.world.caller)(origin.address, &call.credential);
        if caller.refused {
            return Ok(Answer::Denied(AuthError::TooWeak));
        }
        let body = decoder.between(compound.body_at, usize::MAX);
        self.compound((origin, ticket), (&caller, &call.credential), &compound, &body).await.map(Answer::Result)
    }
}
