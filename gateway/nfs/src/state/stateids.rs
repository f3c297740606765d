//! What a stateid is good for: READ, WRITE and SETATTR of a size, TEST_STATEID, FREE_STATEID (RFC 8881 §8.2, §9.1.2, §18.38,
//! §18.48). The current stateid is resolved by the caller.

use super::delegation::{DELEGATION_SEQID, Touch};
use super::files::FileStates;
use super::holder::Party;
use super::index::StateKind;
use super::open::Open;
use super::refusal::Refusal;
use super::share::{ShareBits, ShareMode};
use crate::ids::{ClientId, FileId, StateNumber, Stateid};
use crate::v4::status::Status;

/// What is done to the data of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// READ, READ_PLUS, SEEK, the source of a COPY.
    Read,
    /// WRITE, ALLOCATE, DEALLOCATE, SETATTR of a size, the destination of a COPY.
    Write,
}

impl FileStates {
    /// Which state of a client, in a file if one is given, a stateid stands for. Errors: STALE_STATEID for one of another epoch,
    /// BAD_STATEID for special ones, those of others, those that never were or are no more, and counts that are not reached yet,
    /// OLD_STATEID, DELEG_REVOKED.
    pub(super) fn find(
        &self,
        client: ClientId,
        file: Option<FileId>,
        stateid: &Stateid,
    ) -> Result<(StateKind, StateNumber), Status> {
        let (kind, number) = self.find_even_revoked(client, file, stateid)?;
        match self.delegations.get(&number) {
            Some(delegation) if delegation.revoked => Err(Status::DelegationRevoked),
            _ => Ok((kind, number)),
        }
    }

    fn find_even_revoked(
        &self,
        client: ClientId,
        file: Option<FileId>,
        stateid: &Stateid,
    ) -> Result<(StateKind, StateNumber), Status> {
        let (epoch, number) = stateid.parts();
        if stateid.is_special() {
            return Err(Status::BadStateid);
        }
        if epoch != self.epoch {
            return Err(Status::StaleStateid);
        }
        let (kind, party, its_file, seqid) = if let Some(open) = self.opens.get(&number) {
            (StateKind::Open, open.holder.party(), open.file, open.seqid)
        } else if let Some(lock) = self.locks.get(&number) {
            (StateKind::Lock, lock.holder.party(), lock.file, lock.seqid)
        } else if let Some(delegation) = self.delegations.get(&number) {
            (StateKind::Delegation, Party::Client(delegation.client), delegation.file, DELEGATION_SEQID)
        } else {
            return Err(Status::BadStateid);
        };
        if party != Party::Client(client) || file.is_some_and(|file| file != its_file) {
            return Err(Status::BadStateid);
        }
        check_seqid(stateid.seqid, seqid)?;
        Ok((kind, number))
    }

    /// Whether data may be read or written with a stateid. Those who have none (NFSv3) come without a client and as
    /// [`Stateid::ANONYMOUS`]. An open for writing only may be read, as §9.1.2 allows and Linux's server does, unless somebody
    /// else denies it. Errors: those of the stateid, OPENMODE, LOCKED for special stateids where somebody denies it, delegations
    /// in the way.
    pub fn check_io(&self, client: Option<ClientId>, file: FileId, stateid: &Stateid, io: Io) -> Result<(), Refusal> {
        if *stateid == Stateid::ANONYMOUS || *stateid == Stateid::READ_BYPASS {
            // The bypass is for reads; with a write it is as the other (§8.2.3).
            let bypasses = *stateid == Stateid::READ_BYPASS && io == Io::Read;
            if !bypasses {
                self.check_denied(file, None, io)?;
            }
            let touch = if io == Io::Write { Touch::Change } else { Touch::Read };
            let conflicts = self.conflicts_of(file, client, touch);
            return if conflicts.is_empty() { Ok(()) } else { Err(Refusal::Delegated(conflicts)) };
        }
        let Some(client) = client else { return Err(Status::BadStateid.into()) };
        let (kind, number) = self.find(client, Some(file), stateid)?;
        let open = match kind {
            StateKind::Open => Some(number),
            StateKind::Lock => self.locks.get(&number).and_then(|lock| lock.open),
            StateKind::Delegation => {
                return if io == Io::Read { Ok(()) } else { Err(Status::OpenMode.into()) };
            }
        };
        let open = open.and_then(|number| self.opens.get(&number)).ok_or(Status::BadStateid)?;
        let access = open.mode().access;
        match io {
            Io::Write if !access.contains(ShareBits::WRITE) => Err(Status::OpenMode.into()),
            Io::Read if !access.contains(ShareBits::READ) => self.check_denied(file, Some(open), io),
            _ => Ok(()),
        }
    }

    /// Errors: LOCKED, if an open other than this denies it.
    fn check_denied(&self, file: FileId, own: Option<&Open>, io: Io) -> Result<(), Refusal> {
        let access = if io == Io::Read { ShareBits::READ } else { ShareBits::WRITE };
        let mode = ShareMode { access, deny: ShareBits::NONE };
        if !self.index.shares(file).may_conflict(mode) {
            return Ok(());
        }
        let mut others = self.opens_in(file).filter(|open| own.is_none_or(|own| own.holder != open.holder));
        match others.find(|open| open.mode().conflicts(mode)) {
            Some(open) => Err(Refusal::Share { status: Status::Locked, by: open.holder.clone() }),
            None => Ok(()),
        }
    }

    /// TEST_STATEID, for one of its stateids. Errors: those that are the answer.
    pub fn test_stateid(&self, client: ClientId, stateid: &Stateid) -> Result<(), Status> {
        self.find(client, None, stateid).map(drop)
    }

    /// FREE_STATEID. Errors: those of the stateid; LOCKS_HELD for opens, for locks that are held, and for delegations that are
    /// not revoked (RFC 8881 §18.38.3).
    pub fn free_stateid(&mut self, client: ClientId, stateid: &Stateid) -> Result<(), Status> {
        let (kind, number) = self.find_even_revoked(client, None, stateid)?;
        let held = match kind {
            StateKind::Open => true,
            StateKind::Lock => self.locks.get(&number).is_some_and(|lock| !lock.ranges.is_empty()),
            StateKind::Delegation => self.delegations.get(&number).is_some_and(|delegation| !delegation.revoked),
        };
        if held {
            return Err(Status::LocksHeld);
        }
        self.drop_lock(number);
        self.drop_delegation(number);
        Ok(())
    }
}

/// Whether a client's count of a state is the newest, or asks for it. Counts go round, and so are compared that way
/// (RFC 8881 §8.2.2). Errors: BAD_STATEID for those that are not reached yet, OLD_STATEID.
fn check_seqid(given: u32, newest: u32) -> Result<(), Status> {
    match given.wrapping_sub(newest) as i32 {
        _ if given == 0 => Ok(()),
        0 => Ok(()),
        1.. => Err(Status::BadStateid),
        _ => Err(Status::OldStateid),
    }
}
