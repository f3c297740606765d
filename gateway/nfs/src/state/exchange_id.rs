//! EXCHANGE_ID and DESTROY_CLIENTID (RFC 8881 §18.35, §18.50). What EXCHANGE_ID makes is in memory only until CREATE_SESSION
//! confirms it; the client that it may take the place of stays until then too.
//!
//! Clients protect their state by nothing but its secrecy (`SP4_NONE`), as Linux does with AUTH_SYS. `SP4_MACH_CRED` wants
//! RPCSEC_GSS with integrity, without which §18.35.3 has `INVAL`; Linux then comes again with `SP4_NONE`. Of `SP4_SSV` no
//! algorithm is supported.

use bytes::Bytes;

use crate::ids::{ClientId, Moment};
use crate::state::client::{Client, IMPLEMENTATION_BYTES_MAX, OWNER_BYTES_MAX, PRINCIPAL_BYTES_MAX, VERIFIER_BYTES};
use crate::state::clients::{Clients, UNCONFIRMED_MAX};
use crate::v4::status::Status;

/// `EXCHGID4_FLAG_SUPP_MOVED_REFER`: referrals are understood.
pub const FLAG_REFERRALS: u32 = 1;
/// `EXCHGID4_FLAG_USE_NON_PNFS`: an ordinary server.
pub const FLAG_NON_PNFS: u32 = 0x1_0000;
/// `EXCHGID4_FLAG_UPD_CONFIRMED_REC_A`: what is known of the client is to be replaced.
pub const FLAG_UPDATE: u32 = 0x4000_0000;
/// `EXCHGID4_FLAG_CONFIRMED_R`: the client is confirmed.
pub const FLAG_CONFIRMED: u32 = 0x8000_0000;
/// All that a client may set: moves, fencing of 4.2, principals of stateids, the three roles, update.
const FLAGS: u32 = 0x7 | 0x100 | 0x7_0000 | FLAG_UPDATE;

/// How a client wants its state protected (`state_protect_how4`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// `SP4_NONE`.
    None,
    /// `SP4_MACH_CRED`.
    MachineCredentials,
    /// `SP4_SSV`.
    SecretState,
}

/// What EXCHANGE_ID says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExchangeId {
    /// What the client calls itself; at most [`OWNER_BYTES_MAX`].
    pub owner: Bytes,
    /// Another one each time that it has restarted.
    pub verifier: [u8; VERIFIER_BYTES],
    /// `eia_flags`.
    pub flags: u32,
    /// How its state is protected.
    pub protection: Protection,
    /// Who it authenticated as, as the caller names it; at most [`PRINCIPAL_BYTES_MAX`].
    pub principal: Bytes,
    /// What its program is, for people to read; what is too long is cut.
    pub implementation: Bytes,
}

/// What EXCHANGE_ID answers, but for what is the service's: owner and scope of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientGrant {
    /// The client.
    pub client: ClientId,
    /// Of its next CREATE_SESSION; counts only if it is not confirmed.
    pub sequence: u32,
    /// `eir_flags`.
    pub flags: u32,
}

impl Clients {
    /// EXCHANGE_ID, by the nine cases of RFC 8881 §18.35.4. `holds_state` says whether a client has something open, locked or
    /// delegated. Changes no record but the counters', or that of a client that is updated.
    ///
    /// Errors: [`Status::Invalid`], [`Status::EncryptionAlgorithmUnsupported`], [`Status::ClientInUse`], [`Status::NoEntry`],
    /// [`Status::NotSame`], [`Status::Perm`]; [`Status::ServerFault`] when all ids of the epoch are used.
    pub fn exchange_id(
        &mut self,
        now: Moment,
        request: ExchangeId,
        holds_state: &dyn Fn(ClientId) -> bool,
    ) -> Result<ClientGrant, Status> {
        let too_long = request.owner.len() > OWNER_BYTES_MAX || request.principal.len() > PRINCIPAL_BYTES_MAX;
        if request.flags & !FLAGS != 0 || request.owner.is_empty() || too_long {
            return Err(Status::Invalid);
        }
        match request.protection {
            Protection::None => {}
            Protection::MachineCredentials => return Err(Status::Invalid),
            Protection::SecretState => return Err(Status::EncryptionAlgorithmUnsupported),
        }
        let known = self.owners.get(&request.owner).and_then(|id| Some((*id, self.clients.get(id)?)));
        let update = request.flags & FLAG_UPDATE != 0;
        let Some((id, known)) = known else {
            // Cases 7, 1 and 4: an unconfirmed one of the same name is forgotten.
            return if update { Err(Status::NoEntry) } else { self.add_unconfirmed(request) };
        };
        let same_principal = known.principal == request.principal;
        let same_verifier = known.verifier == request.verifier;
        match (update, same_verifier, same_principal) {
            // Case 6.
            (true, true, true) => Ok(self.update(id, request)),
            // Cases 8 and 9.
            (true, false, _) => Err(Status::NotSame),
            (true, true, false) => Err(Status::Perm),
            // Case 2: it does not know that it is known, or looks for another way here.
            (false, true, true) => Ok(self.confirmed(id, request.flags)),
            // Case 5: it has restarted.
            (false, false, true) => self.add_unconfirmed(request),
            // Case 3: somebody else calls itself so.
            (false, _, false) if self.is_in_use(id, now, holds_state) => Err(Status::ClientInUse),
            (false, _, false) => self.add_unconfirmed(request),
        }
    }

    /// DESTROY_CLIENTID. Errors: [`Status::StaleClientId`]; [`Status::ClientIdBusy`] with sessions or state.
    pub fn destroy_client(&mut self, client: ClientId, holds_state: &dyn Fn(ClientId) -> bool) -> Result<(), Status> {
        if let Some(known) = self.unconfirmed.remove(&client) {
            self.unconfirmed_owners.remove(&known.owner);
            return Ok(());
        }
        match self.clients.contains(&client) {
            false => Err(Status::StaleClientId),
            true if self.sessions_of(client).next().is_some() || holds_state(client) => Err(Status::ClientIdBusy),
            true => {
                self.remove_client(client);
                Ok(())
            }
        }
    }

    /// True for a client that is there, and has something that another one of its name must not take away.
    pub(super) fn is_in_use(&self, client: ClientId, now: Moment, holds_state: &dyn Fn(ClientId) -> bool) -> bool {
        let has_something = self.sessions_of(client).next().is_some() || holds_state(client);
        has_something && !self.is_courtesy(client, now)
    }

    fn confirmed(&self, id: ClientId, flags: u32) -> ClientGrant {
        let sequence = self.clients.get(&id).map_or(0, |client| client.sequence).wrapping_add(1);
        ClientGrant { client: id, sequence, flags: FLAG_NON_PNFS | FLAG_CONFIRMED | flags & FLAG_REFERRALS }
    }

    fn update(&mut self, id: ClientId, request: ExchangeId) -> ClientGrant {
        let implementation = cut(request.implementation);
        let flags = request.flags & !FLAG_UPDATE;
        let differs = |client: &Client| client.flags != flags || client.implementation != implementation;
        if self.clients.get(&id).is_some_and(differs)
            && let Some(client) = self.clients.get_mut(&id)
        {
            client.flags = flags;
            client.implementation = implementation;
        }
        self.confirmed(id, request.flags)
    }

    fn add_unconfirmed(&mut self, request: ExchangeId) -> Result<ClientGrant, Status> {
        let former = self.unconfirmed_owners.remove(&request.owner);
        let full = self.unconfirmed.len() >= UNCONFIRMED_MAX;
        // Ids grow, so the first is the oldest.
        let oldest = self.unconfirmed.iter().next().map(|(id, _)| *id).filter(|_| full);
        if let Some(known) = former.or(oldest).and_then(|id| self.unconfirmed.remove(&id)) {
            self.unconfirmed_owners.remove(&known.owner);
        }
        let id = self.counters.client().ok_or(Status::ServerFault)?;
        // In buffers of their own: a message may be large.
        let owner = Bytes::copy_from_slice(&request.owner);
        let client = Client {
            owner: owner.clone(),
            verifier: request.verifier,
            principal: Bytes::copy_from_slice(&request.principal),
            flags: request.flags,
            implementation: cut(request.implementation),
            reclaim_complete: false,
            sequence: 0,
            answer: None,
        };
        self.unconfirmed.insert(id, client);
        self.unconfirmed_owners.insert(owner, id);
        Ok(ClientGrant { client: id, sequence: 1, flags: FLAG_NON_PNFS | request.flags & FLAG_REFERRALS })
    }
}

/// As much as is kept, in a buffer of its own.
fn cut(implementation: Bytes) -> Bytes {
    Bytes::copy_from_slice(&implementation[..implementation.len().min(IMPLEMENTATION_BYTES_MAX)])
}

#[cfg(test)]
#[path = "exchange_id_tests.rs"]
mod tests;
