//! Locks and share reservations of the network lock manager's hosts, in the same table as those of NFSv4 (X/Open XNFS, chapters
//! 10 and 11). What the calls answer: a lock in the way is LCK_DENIED, [`Refusal::Full`] is LCK_DENIED_NOLOCKS. Hosts have no
//! leases: what they have goes when they unlock, restart, or free all.

use super::bounds::Totals;
use super::files::FileStates;
use super::holder::{Holder, Host, Party};
use super::lock::LockRequest;
use super::open::Open;
use super::ranges::{ByteRange, HeldRange, LockKind};
use super::refusal::{Denied, Refusal};
use super::share::{Combinations, ShareBits, ShareMode};
use crate::ids::{FileId, StateNumber};
use crate::v4::status::Status;

impl FileStates {
    /// NLM_LOCK; also the lock that somebody woken has waited for. Errors: the lock in the way (RECLAIM_CONFLICT if reclaimed),
    /// delegations in the way of an exclusive one (their clients may have shared locks of their own), [`Refusal::Full`].
    pub fn nlm_lock(
        &mut self,
        file: FileId,
        holder: Holder,
        request: LockRequest,
        number: impl FnOnce() -> StateNumber,
    ) -> Result<(), Refusal> {
        let access = if request.kind == LockKind::Exclusive { ShareBits::WRITE } else { ShareBits::READ };
        self.check_conflict(file, &holder, request)?;
        self.check_delegations(file, None, ShareMode { access, deny: ShareBits::NONE })?;
        self.take_lock(file, holder, None, request, number).map(drop)
    }

    /// NLM_TEST: the lock that would be in the way, if any.
    pub fn nlm_test(&self, file: FileId, holder: &Holder, range: ByteRange, kind: LockKind) -> Option<Denied> {
        self.lock_conflict(file, Some(holder), range, kind)
    }

    /// NLM_UNLOCK. Nothing needs to be locked there. Errors: [`Refusal::Full`] if a hole would make one range too many.
    pub fn nlm_unlock(&mut self, file: FileId, holder: &Holder, range: ByteRange) -> Result<(), Refusal> {
        let states = self.cut(file, holder, range, None);
        let emptied: Vec<_> = states.iter().filter(|(_, state)| state.ranges.is_empty()).map(|(at, _)| *at).collect();
        self.put_locks(states)?;
        // Nobody has a stateid of it.
        for number in emptied {
            self.drop_lock(number);
        }
        Ok(())
    }

    /// NLM_SHARE; one that the holder had is replaced. Errors: SHARE_DENIED (RECLAIM_CONFLICT if reclaimed), delegations in the
    /// way, [`Refusal::Full`].
    pub fn nlm_share(
        &mut self,
        file: FileId,
        holder: Holder,
        mode: ShareMode,
        reclaims: bool,
        number: impl FnOnce() -> StateNumber,
    ) -> Result<(), Refusal> {
        if let Some(by) = self.share_conflict(file, &holder, mode) {
            let status = if reclaims { Status::ReclaimConflict } else { Status::ShareDenied };
            return Err(Refusal::Share { status, by });
        }
        self.check_delegations(file, None, mode)?;
        let mut combinations = Combinations::default();
        combinations.add(mode);
        let number = match self.open_of(file, &holder) {
            Some((number, _)) => number,
            None => {
                let more = Totals { opens: 1, owner_bytes: holder.bytes() as u64, ..Totals::default() };
                self.room(holder.party(), more)?;
                self.fresh(number())?
            }
        };
        self.put_open(number, Open { file, holder, combinations, seqid: 1 });
        Ok(())
    }

    /// NLM_UNSHARE. False if the holder had none.
    pub fn nlm_unshare(&mut self, file: FileId, holder: &Holder) -> bool {
        let number = self.open_of(file, holder).map(|(number, _)| number);
        number.is_some_and(|number| self.drop_open(number).is_some())
    }

    /// What a holder has locked of a range, cut to it.
    pub fn nlm_held(&self, file: FileId, holder: &Holder, range: ByteRange) -> Vec<HeldRange> {
        let states = self.index.locks_of(file, holder).filter_map(|number| self.locks.get(&number));
        let held = states.flat_map(|state| state.ranges.as_slice()).filter(|held| held.range.overlaps(range));
        let cut = |held: &HeldRange| {
            let (first, last) = (held.range.first().max(range.first()), held.range.last().min(range.last()));
            ByteRange::between(first, last).map(|range| HeldRange { range, kind: held.kind })
        };
        held.filter_map(cut).collect()
    }

    /// A lock that a host was given and does not want: what it had of the range before is what it has again. Errors:
    /// [`Refusal::Full`] if that would make one range too many.
    pub fn nlm_give_back(
        &mut self,
        file: FileId,
        holder: &Holder,
        range: ByteRange,
        before: &[HeldRange],
        mut number: impl FnMut() -> StateNumber,
    ) -> Result<(), Refusal> {
        self.nlm_unlock(file, holder, range)?;
        for held in before {
            let request = LockRequest { range: held.range, kind: held.kind, reclaims: false };
            self.take_lock(file, holder.clone(), None, request, &mut number)?;
        }
        Ok(())
    }

    /// Of what a host has, at most so many states go: it has restarted (SM_NOTIFY), or says that it has nothing any more
    /// (NLM_FREE_ALL). To be called again, each time in an operation of its own, until [`Self::totals_of_host`] are none. Gives
    /// the files that nobody has open any more.
    pub fn drop_host_part(&mut self, host: &Host, states_max: usize) -> Vec<FileId> {
        self.drop_party(&Party::Host(host.clone()), states_max)
    }

    /// True if a host has a lock or a reservation.
    pub fn has_something(&self, host: &Host) -> bool {
        let totals = self.totals_of_host(host);
        totals.opens + totals.locks > 0
    }

    /// What a host has.
    pub fn totals_of_host(&self, host: &Host) -> Totals {
        self.index.totals(Some(Party::Host(host.clone())))
    }
}
