//! LOCK, LOCKT and LOCKU: byte-range locks of NFSv4's lock-owners, and what they have in common with those of the network lock
//! manager (RFC 8881 §9.1–9.6, §18.10–18.12). Locks are advisory: no READ or WRITE looks at them.

use super::bounds::{Bound, RANGES_PER_STATE_MAX, Totals};
use super::files::FileStates;
use super::holder::Holder;
use super::index::StateKind;
use super::open::next_seqid;
use super::ranges::{ByteRange, HeldRanges, LockKind};
use super::refusal::{Denied, Refusal};
use crate::ids::{ClientId, FileId, StateNumber, Stateid};
use crate::v4::status::Status;

/// What a holder has locked in a file under one open, which may be nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockState {
    pub(super) file: FileId,
    pub(super) holder: Holder,
    /// The open that it was made under; none for the network lock manager.
    pub(super) open: Option<StateNumber>,
    pub(super) seqid: u32,
    pub(super) ranges: HeldRanges,
}

/// What a LOCK asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockRequest {
    /// Which bytes.
    pub range: ByteRange,
    /// How. Whether the client would wait is no matter here: see [`FileStates::wait_for`].
    pub kind: LockKind,
    /// It was held before the service lost its state. That there is a grace period is for the caller to see to.
    pub reclaims: bool,
}

impl FileStates {
    /// The LOCK of an owner that comes with an open's stateid (`open_to_lock_owner4`). It may have locks of the file already.
    /// `number` is asked for if there is a new state. Errors: those of the open's stateid, BADXDR for too long an owner, OPENMODE,
    /// the lock in the way (RECLAIM_CONFLICT if reclaimed), [`Refusal::Full`].
    pub fn lock_under(
        &mut self,
        client: ClientId,
        file: FileId,
        open: &Stateid,
        owner: &[u8],
        request: LockRequest,
        number: impl FnOnce() -> StateNumber,
    ) -> Result<Stateid, Refusal> {
        let (open, mode) = self.found_open(client, file, open).map(|(number, open)| (number, open.mode()))?;
        let holder = Holder::v4(client, owner).ok_or(Status::BadXdr)?;
        if !mode.access.allows_lock(request.kind) {
            return Err(Status::OpenMode.into());
        }
        self.check_conflict(file, &holder, request)?;
        self.take_lock(file, holder, Some(open), request, number)
    }

    /// The LOCK of an owner that comes with the stateid of its locks (`exist_lock_owner4`). Errors: as for
    /// [`Self::lock_under`].
    pub fn lock(
        &mut self,
        client: ClientId,
        file: FileId,
        stateid: &Stateid,
        request: LockRequest,
    ) -> Result<Stateid, Refusal> {
        let number = self.found_lock(client, file, stateid)?;
        let Some(state) = self.locks.get(&number) else { return Err(Status::BadStateid.into()) };
        let open = state.open.and_then(|open| self.opens.get(&open)).ok_or(Status::BadStateid)?;
        if !open.mode().access.allows_lock(request.kind) {
            return Err(Status::OpenMode.into());
        }
        let (holder, open) = (state.holder.clone(), state.open);
        self.check_conflict(file, &holder, request)?;
        self.take_lock(file, holder, open, request, || number)
    }

    /// Whose locks a stateid stands for. None if it stands for none.
    pub fn lock_holder(&self, client: ClientId, file: FileId, stateid: &Stateid) -> Option<Holder> {
        let number = self.found_lock(client, file, stateid).ok()?;
        self.locks.get(&number).map(|state| state.holder.clone())
    }

    /// LOCKT: the lock that would be in the way of an owner, if any. Too long an owner has none of its own.
    pub fn lock_test(
        &self,
        client: ClientId,
        file: FileId,
        owner: &[u8],
        range: ByteRange,
        kind: LockKind,
    ) -> Option<Denied> {
        self.lock_conflict(file, Holder::v4(client, owner).as_ref(), range, kind)
    }

    /// LOCKU. Nothing needs to be locked there; the state stays, even with nothing locked (RFC 8881 §8.2.4). Errors: those of the
    /// stateid; [`Refusal::Full`] if a hole would make one range too many.
    pub fn unlock(
        &mut self,
        client: ClientId,
        file: FileId,
        stateid: &Stateid,
        range: ByteRange,
    ) -> Result<Stateid, Refusal> {
        let number = self.found_lock(client, file, stateid)?;
        let Some(state) = self.locks.get(&number).cloned() else { return Err(Status::BadStateid.into()) };
        let mut states = self.cut(file, &state.holder, range, Some(number));
        let new = LockState { seqid: next_seqid(state.seqid), ranges: without(&state.ranges, range), ..state };
        let stateid = self.stateid(number, new.seqid);
        states.push((number, new));
        self.put_locks(states)?;
        Ok(stateid)
    }

    /// The lock of another holder that is in the way; of any if the holder is none.
    pub(super) fn lock_conflict(
        &self,
        file: FileId,
        holder: Option<&Holder>,
        range: ByteRange,
        kind: LockKind,
    ) -> Option<Denied> {
        let states = self.index.of_file(file, StateKind::Lock).filter_map(|number| self.locks.get(&number));
        let mut others = states.filter(|state| Some(&state.holder) != holder);
        others.find_map(|state| {
            let held = state.ranges.conflict(range, kind)?;
            Some(Denied { held, by: state.holder.clone() })
        })
    }

    pub(super) fn check_conflict(&self, file: FileId, holder: &Holder, request: LockRequest) -> Result<(), Refusal> {
        match self.lock_conflict(file, Some(holder), request.range, request.kind) {
            None => Ok(()),
            Some(_) if request.reclaims => Err(Status::ReclaimConflict.into()),
            Some(denied) => Err(Refusal::Lock(denied)),
        }
    }

    /// Locks what nobody else is in the way of.
    pub(super) fn take_lock(
        &mut self,
        file: FileId,
        holder: Holder,
        open: Option<StateNumber>,
        request: LockRequest,
        number: impl FnOnce() -> StateNumber,
    ) -> Result<Stateid, Refusal> {
        let known = self.index.lock_of(file, &holder, open);
        let state = known.and_then(|number| self.locks.get(&number));
        let (seqid, mut ranges) =
            state.map_or((1, HeldRanges::default()), |state| (next_seqid(state.seqid), state.ranges.clone()));
        ranges.lock(request.range, request.kind);
        let number = match known {
            Some(number) => number,
            None => self.fresh(number())?,
        };
        // What the owner has of these bytes under another open is replaced, as one owner has a byte once.
        let mut states = self.cut(file, &holder, request.range, known);
        states.push((number, LockState { file, holder: holder.clone(), open, seqid, ranges }));
        self.put_locks(states)?;
        self.waiting.got(file, &holder, request.range, request.kind);
        Ok(self.stateid(number, seqid))
    }

    /// The holder's states, but for one, that lose bytes of a range, as they are then.
    pub(super) fn cut(
        &self,
        file: FileId,
        holder: &Holder,
        range: ByteRange,
        but: Option<StateNumber>,
    ) -> Vec<(StateNumber, LockState)> {
        let numbers = self.index.locks_of(file, holder).filter(|number| Some(*number) != but);
        let states = numbers.filter_map(|number| self.locks.get(&number).map(|state| (number, state)));
        states
            .filter(|(_, state)| state.ranges.conflict(range, LockKind::Exclusive).is_some())
            .map(|(number, state)| (number, LockState { ranges: without(&state.ranges, range), ..state.clone() }))
            .collect()
    }

    /// Puts states as they will be. Errors: [`Refusal::Full`], and then none is put.
    pub(super) fn put_locks(&mut self, states: Vec<(StateNumber, LockState)>) -> Result<(), Refusal> {
        let (mut before, mut more) = (0, Totals::default());
        for (number, state) in &states {
            let former = self.locks.get(number).map(|former| former.ranges.len());
            if state.ranges.len() > former.unwrap_or(0).max(RANGES_PER_STATE_MAX as usize) {
                return Err(Refusal::Full(Bound::Ranges));
            }
            if former.is_none() {
                more.locks += 1;
                more.owner_bytes += state.holder.bytes() as u64;
            }
            before += former.unwrap_or(0) as u32;
            more.ranges += state.ranges.len() as u32;
        }
        more.ranges = more.ranges.saturating_sub(before);
        if let Some((_, state)) = states.last() {
            self.room(state.holder.party(), more)?;
        }
        for (number, state) in states {
            self.put_lock(number, state);
        }
        Ok(())
    }

    fn found_lock(&self, client: ClientId, file: FileId, stateid: &Stateid) -> Result<StateNumber, Status> {
        match self.find(client, Some(file), stateid)? {
            (StateKind::Lock, number) => Ok(number),
            _ => Err(Status::BadStateid),
        }
    }
}

fn without(ranges: &HeldRanges, range: ByteRange) -> HeldRanges {
    let mut left = ranges.clone();
    left.unlock(range);
    left
}
