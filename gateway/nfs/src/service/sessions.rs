//! Operations that stand alone, before there is a session or when it ends (RFC 8881 §2.10.2.1).

use block_device::BlockDevice;
use filesystem::engine::Failure;

use super::compound::{principal, refused};
use super::group::{put_head, status_of};
use super::recording::Ticket;
use super::{Gone, Origin, Service};
use crate::ids::{ClientId, SessionId};
use crate::rpc::auth::Credential;
use crate::state::service::ServiceState;
use crate::v4::compound::{Compound, Operation};
use crate::v4::operations::{create_session, exchange_id, session};
use crate::v4::status::Status;
use crate::xdr::Encoder;

impl<D: BlockDevice + 'static> Service<D> {
    /// Does the only operation of a compound without SEQUENCE.
    pub(super) async fn session_operation(
        &self,
        (origin, ticket): (Origin, &Ticket<'_>),
        credential: &Credential,
        compound: &Compound,
        operation: &Operation,
    ) -> Result<Encoder, Gone> {
        let mut out = Encoder::new();
        let mut bound = None;
        let changed = self.change(|_, state| {
            (out, bound) = (Encoder::new(), None);
            Ok(self.do_alone(origin, credential, (operation, compound.minor), state, (&mut out, &mut bound)))
        });
        let status = match changed.await {
            Ok((result, observed)) => {
                // Also a refusal may be kept. Who the clients are has to be known even when all boxes lost power.
                self.files.kept_durably(observed).await.map_err(Gone)?;
                result.err()
            }
            Err(Failure::Device(error)) => return Err(Gone(Failure::Device(error))),
            Err(failure) => Some(status_of(&failure)),
        };
        self.compound_alone(ticket, Some(operation.number()), status);
        if let Some(status) = status {
            return Ok(refused(compound, Some(operation.number()), status, true));
        }
        let mut result = Encoder::new();
        result.u32(crate::v4::status::OK);
        result.opaque(&compound.tag);
        result.u32(1);
        put_head(&mut result, operation.number(), None);
        result.append(out);
        if let Some(session) = bound {
            self.channel_bound(session);
        }
        Ok(result)
    }

    fn do_alone(
        &self,
        origin: Origin,
        credential: &Credential,
        (operation, minor): (&Operation, u32),
        state: &mut ServiceState,
        (out, bound): (&mut Encoder, &mut Option<SessionId>),
    ) -> Result<(), Status> {
        let moment = (self.world.moment)();
        let ServiceState { clients, files, .. } = state;
        match operation {
            Operation::ExchangeId(request) => {
                let mut request = request.clone();
                request.principal = principal(credential, origin.address);
                let holds_state = |client: ClientId| files.has_state(client);
                let granted = clients.exchange_id(moment, request, &holds_state)?;
                exchange_id::put(out, &granted, &self.facts.identity());
            }
            Operation::CreateSession(request) => {
                let mut request = request.clone();
                request.principal = principal(credential, origin.address);
                let holds_state = |client: ClientId| files.has_state(client);
                let created = clients.create_session(moment, origin.connection, &request, &holds_state)?;
                if let Some(client) = created.dropped {
                    files.drop_client(client);
                }
                clients.speaks(created.grant.session, minor);
                *bound = Some(created.grant.session);
                create_session::put(out, &created.grant);
            }
            Operation::DestroySession(arguments) => clients.destroy_session(arguments.0)?,
            Operation::DestroyClientId(arguments) => {
                let holds_state = |client: ClientId| files.has_state(client);
                clients.destroy_client(arguments.0, &holds_state)?;
            }
            Operation::BindConnToSession(arguments) => {
                let direction = clients.bind_connection(arguments.session, arguments.direction, origin.connection)?;
                clients.speaks(arguments.session, minor);
                *bound = Some(arguments.session);
                session::put_bound(out, arguments.session, direction);
            }
            _ => return Err(Status::OperationNotInSession),
        }
        Ok(())
    }
}
