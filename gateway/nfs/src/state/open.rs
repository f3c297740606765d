//! OPEN, OPEN_DOWNGRADE and CLOSE, as far as they are about states: who has which file open, for what, and what that denies
//! others (RFC 8881 §9.7–9.9, §18.2, §18.16, §18.18). Names, modes and creation are not known here.

use super::bounds::Totals;
use super::delegation::Touch;
use super::files::FileStates;
use super::holder::{Holder, Party};
use super::index::StateKind;
use super::refusal::Refusal;
use super::share::{Combinations, ShareBits, ShareMode};
use crate::ids::{ClientId, FileId, StateNumber, Stateid};
use crate::v4::status::Status;

/// An open, or a share reservation of the network lock manager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    pub(super) file: FileId,
    pub(super) holder: Holder,
    pub(super) combinations: Combinations,
    pub(super) seqid: u32,
}

/// By which right a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// As anybody: CLAIM_NULL, CLAIM_FH.
    Plain,
    /// It was open before the service lost its state: CLAIM_PREVIOUS. That there is a grace period is for the caller to see to.
    Previous,
    /// The client has it delegated, and opened it by itself: CLAIM_DELEGATE_CUR, CLAIM_DELEG_CUR_FH.
    Delegated(Stateid),
}

/// An OPEN of a file that is there.
#[derive(Clone, Copy, Debug)]
pub struct OpenRequest<'a> {
    /// Which.
    pub file: FileId,
    /// Who asks: the client of the session, whatever the open-owner says (RFC 8881 §18.16.3).
    pub client: ClientId,
    /// The open-owner, at most [`super::holder::OWNER_BYTES_MAX`] bytes.
    pub owner: &'a [u8],
    /// What for.
    pub mode: ShareMode,
    /// By which right.
    pub claim: Claim,
}

/// A file is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// By this.
    pub stateid: Stateid,
    /// True if the owner had it open already.
    pub upgraded: bool,
}

/// The count of a state that changed: 0 is left out (RFC 8881 §8.2.2).
pub(super) fn next_seqid(seqid: u32) -> u32 {
    seqid.checked_add(1).unwrap_or(1)
}

impl Open {
    /// What it may do and denies.
    pub(super) fn mode(&self) -> ShareMode {
        self.combinations.union()
    }
}

impl FileStates {
    /// Whether the client may have one open more: to be asked before a file is created for it. Errors: [`Refusal::Full`].
    pub fn room_for_open(&self, client: ClientId, owner: &[u8]) -> Result<(), Refusal> {
        let more = Totals { opens: 1, owner_bytes: owner.len() as u64, ..Totals::default() };
        self.room(Party::Client(client), more)
    }

    /// Opens a file, or adds to what its owner has it open for. `number` is asked for if there is a new state. Errors: INVAL for
    /// no access, BADXDR for too long an owner, SHARE_DENIED (RECLAIM_CONFLICT if reclaimed), delegations in the way, those of
    /// a delegation's stateid, [`Refusal::Full`].
    pub fn open(&mut self, request: OpenRequest<'_>, number: impl FnOnce() -> StateNumber) -> Result<Opened, Refusal> {
        let OpenRequest { file, client, mode, .. } = request;
        let holder = Holder::v4(client, request.owner).ok_or(Status::BadXdr)?;
        if mode.access == ShareBits::NONE {
            return Err(Status::Invalid.into());
        }
        self.check_claim(&request)?;
        let reclaims = request.claim == Claim::Previous;
        if let Some(by) = self.share_conflict(file, &holder, mode) {
            let status = if reclaims { Status::ReclaimConflict } else { Status::ShareDenied };
            return Err(Refusal::Share { status, by });
        }
        self.check_delegations(file, Some(client), mode).map_err(|refusal| match reclaims {
            true => Status::ReclaimConflict.into(),
            false => refusal,
        })?;
        if let Some((number, mut open)) = self.open_of(file, &holder) {
            open.combinations.add(mode);
            open.seqid = next_seqid(open.seqid);
            let stateid = self.stateid(number, open.seqid);
            self.put_open(number, open);
            return Ok(Opened { stateid, upgraded: true });
        }
        self.room_for_open(client, request.owner)?;
        let number = self.fresh(number())?;
        let mut combinations = Combinations::default();
        combinations.add(mode);
        self.put_open(number, Open { file, holder, combinations, seqid: 1 });
        Ok(Opened { stateid: self.stateid(number, 1), upgraded: false })
    }

    fn check_claim(&self, request: &OpenRequest<'_>) -> Result<(), Refusal> {
        let Claim::Delegated(stateid) = &request.claim else { return Ok(()) };
        match self.find(request.client, Some(request.file), stateid)? {
            (StateKind::Delegation, _) if request.mode.access.contains(ShareBits::WRITE) => {
                // A read delegation opens for reading only, as Linux's server has it.
                Err(Status::OpenMode.into())
            }
            (StateKind::Delegation, _) => Ok(()),
            _ => Err(Status::BadStateid.into()),
        }
    }

    /// Errors: other clients' delegations, if an open of this mode changes what they rely on.
    pub(super) fn check_delegations(
        &self,
        file: FileId,
        client: Option<ClientId>,
        mode: ShareMode,
    ) -> Result<(), Refusal> {
        // Whoever has a read delegation reads without asking, so it must not be denied.
        let changes = mode.access.contains(ShareBits::WRITE) || mode.deny.contains(ShareBits::READ);
        let conflicts = self.conflicts_of(file, client, if changes { Touch::Change } else { Touch::Read });
        if conflicts.is_empty() { Ok(()) } else { Err(Refusal::Delegated(conflicts)) }
    }

    pub(super) fn open_of(&self, file: FileId, holder: &Holder) -> Option<(StateNumber, Open)> {
        let number = self.index.open_of(file, holder)?;
        self.opens.get(&number).map(|open| (number, open.clone()))
    }

    /// Who else has the file open so that this mode cannot be. The owner's own opens are never in its way (RFC 8881 §9.9).
    pub(super) fn share_conflict(&self, file: FileId, holder: &Holder, mode: ShareMode) -> Option<Holder> {
        let own = self.index.open_of(file, holder);
        let mut others = self.index.shares(file);
        if let Some(open) = own.and_then(|number| self.opens.get(&number)) {
            others.remove(open.mode());
        }
        if !others.may_conflict(mode) {
            return None;
        }
        let mut others = self.opens_in(file).filter(|open| open.holder != *holder);
        others.find(|open| open.mode().conflicts(mode)).map(|open| open.holder.clone())
    }

    pub(super) fn opens_in(&self, file: FileId) -> impl Iterator<Item = &Open> {
        self.index.of_file(file, StateKind::Open).filter_map(|number| self.opens.get(&number))
    }

    /// Goes back to less than what a file is open for. Errors: those of the stateid; INVAL for a mode that is not what some of
    /// the owner's opens asked for together.
    pub fn downgrade(
        &mut self,
        client: ClientId,
        file: FileId,
        stateid: &Stateid,
        to: ShareMode,
    ) -> Result<Stateid, Status> {
        let (number, mut open) = self.found_open(client, file, stateid)?;
        let fits = if to.access == ShareBits::NONE { None } else { open.combinations.downgraded(to) };
        open.combinations = fits.ok_or(Status::Invalid)?;
        open.seqid = next_seqid(open.seqid);
        let stateid = self.stateid(number, open.seqid);
        self.put_open(number, open);
        Ok(stateid)
    }

    /// Closes an open. Locks that were taken under it are released, as Linux's server does since sessions came (RFC 8881 §18.2.3
    /// leaves the choice between that and LOCKS_HELD). Gives the stateid that stands for none, as §18.2.4 asks for. Errors: those
    /// of the stateid.
    pub fn close(&mut self, client: ClientId, file: FileId, stateid: &Stateid) -> Result<Stateid, Status> {
        let (number, _) = self.found_open(client, file, stateid)?;
        let locks: Vec<_> = self.index.locks_under(number).collect();
        for lock in locks {
            self.drop_lock(lock);
        }
        self.drop_open(number);
        Ok(Stateid::INVALID)
    }

    pub(super) fn found_open(
        &self,
        client: ClientId,
        file: FileId,
        stateid: &Stateid,
    ) -> Result<(StateNumber, Open), Status> {
        match self.find(client, Some(file), stateid)? {
            (StateKind::Open, number) => {
                self.opens.get(&number).map(|open| (number, open.clone())).ok_or(Status::BadStateid)
            }
            _ => Err(Status::BadStateid),
        }
    }
}
