//! Those who wait for locks: a fair, bounded queue a file.
//!
//! Nobody sleeps here, and nothing is kept for those who wait. When locks go, whoever no lock and no earlier waiter is in the way
//! of is told: a client of NFSv4 by CB_NOTIFY_LOCK, upon which it asks again (RFC 8881 §20.11); for a host of the network lock
//! manager the lock is taken, and the host called back (NLM_GRANTED). A takeover forgets those who wait: Linux asks again by itself
//! every so often, with either protocol. So no deadlock can be here; two hosts that wait for each other wait until one cancels.

use std::collections::BTreeSet;

use super::bounds::{WAITERS_MAX, WAITERS_PER_FILE_MAX, WAITERS_PER_PARTY_MAX};
use super::files::FileStates;
use super::holder::{Holder, Party};
use super::ranges::{ByteRange, LockKind};
use super::table::Table;
use crate::ids::{FileId, Moment};

/// A lock that somebody waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// In which file.
    pub file: FileId,
    /// Who.
    pub holder: Holder,
    /// Which bytes.
    pub range: ByteRange,
    /// How.
    pub kind: LockKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Waiter {
    wanted: Wanted,
    /// When it asked last.
    asked: Moment,
    /// It was told that it may ask again, and has not yet.
    told: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Waiting {
    /// In the order in which they came.
    queues: Table<FileId, Vec<Waiter>>,
    /// Files with waiters whose locks the operation under way has changed.
    changing: BTreeSet<FileId>,
    /// Files whose locks were changed, and whose waiters were not looked at since.
    changed: BTreeSet<FileId>,
}

impl Waiter {
    fn is_in_the_way_of(&self, later: &Self) -> bool {
        let (first, second) = (&self.wanted, &later.wanted);
        first.holder != second.holder && first.range.overlaps(second.range) && first.kind.conflicts(second.kind)
    }
}

impl Waiting {
    pub(super) fn locks_changed(&mut self, file: FileId) {
        if self.queues.contains(&file) {
            self.changing.insert(file);
        }
    }

    /// A holder has what it may have waited for.
    pub(super) fn got(&mut self, file: FileId, holder: &Holder, range: ByteRange, kind: LockKind) {
        self.remove(file, |waiter| {
            let wanted = &waiter.wanted;
            wanted.holder == *holder
                && range.contains(wanted.range)
                && (wanted.kind == kind || kind == LockKind::Exclusive)
        });
    }

    /// Drops waiters of a file; true if there was one. Those behind them may be next.
    fn remove(&mut self, file: FileId, goes: impl Fn(&Waiter) -> bool) -> bool {
        if !self.queues.get(&file).is_some_and(|queue| queue.iter().any(&goes)) {
            return false;
        }
        self.changing.insert(file);
        if let Some(queue) = self.queues.get_mut(&file) {
            queue.retain(|waiter| !goes(waiter));
            if queue.is_empty() {
                self.queues.remove(&file);
            }
        }
        true
    }

    fn remove_everywhere(&mut self, goes: impl Fn(&Waiter) -> bool) {
        let files: Vec<_> = self.queues.iter().map(|(file, _)| *file).collect();
        for file in files {
            self.remove(file, &goes);
        }
    }

    pub(super) fn drop_party(&mut self, party: &Party) {
        self.remove_everywhere(|waiter| waiter.wanted.holder.party() == *party);
    }

    fn all(&self) -> impl Iterator<Item = &Waiter> {
        self.queues.iter().flat_map(|(_, queue)| queue)
    }

    fn has_room(&self, wanted: &Wanted) -> bool {
        let party = wanted.holder.party();
        self.queues.get(&wanted.file).map_or(0, Vec::len) < WAITERS_PER_FILE_MAX
            && self.all().count() < WAITERS_MAX
            && self.all().filter(|waiter| waiter.wanted.holder.party() == party).count() < WAITERS_PER_PARTY_MAX
    }

    pub(super) fn commit(&mut self) {
        self.queues.commit();
        self.changed.append(&mut self.changing);
    }

    pub(super) fn take_back(&mut self) {
        self.queues.take_back();
        self.changing.clear();
    }

    #[cfg(test)]
    pub(super) fn assert_sound(&self) {
        assert!(self.all().count() <= WAITERS_MAX);
        for (file, queue) in self.queues.iter() {
            assert!(!queue.is_empty() && queue.len() <= WAITERS_PER_FILE_MAX);
            assert!(queue.iter().all(|waiter| waiter.wanted.file == *file));
        }
    }
}

impl FileStates {
    /// Somebody who was denied a lock waits for it, from now on or still; whoever asks again keeps its place. False where too
    /// many wait: then it is for the client to ask again, and the network lock manager refuses.
    pub fn wait_for(&mut self, wanted: Wanted, now: Moment) -> bool {
        let queues = &mut self.waiting.queues;
        if queues.get(&wanted.file).is_some_and(|queue| queue.iter().any(|waiter| waiter.wanted == wanted)) {
            let queue = queues.get_mut(&wanted.file).into_iter().flatten();
            for waiter in queue.filter(|waiter| waiter.wanted == wanted) {
                (waiter.asked, waiter.told) = (now, false);
            }
            return true;
        }
        if !self.waiting.has_room(&wanted) {
            return false;
        }
        let waiter = Waiter { asked: now, told: false, wanted };
        let queues = &mut self.waiting.queues;
        match queues.get_mut(&waiter.wanted.file) {
            Some(queue) => queue.push(waiter),
            None => drop(queues.insert(waiter.wanted.file, vec![waiter])),
        }
        true
    }

    /// Somebody waits no more. False if it did not.
    pub fn cancel(&mut self, wanted: &Wanted) -> bool {
        self.waiting.remove(wanted.file, |waiter| waiter.wanted == *wanted)
    }

    /// Forgets those who asked last before a moment: a client of NFSv4 that gives up does not say so.
    pub fn expire_waiters(&mut self, before: Moment) {
        self.waiting.remove_everywhere(|waiter| waiter.asked < before);
    }

    /// True if somebody waits for this.
    pub fn is_waiting(&self, wanted: &Wanted) -> bool {
        let queue = self.waiting.queues.get(&wanted.file);
        queue.is_some_and(|queue| queue.iter().any(|waiter| waiter.wanted == *wanted))
    }

    /// Those who wait.
    pub fn waiters(&self) -> usize {
        self.waiting.all().count()
    }

    /// Those who may ask again, or be given their locks, since locks went: in order of their files, and in each as they came.
    /// Each is told once until it asks again. To be called between operations; within one, nobody is told.
    pub fn woken(&mut self) -> Vec<Wanted> {
        if self.is_changed() || self.waiting.queues.is_changed() {
            return Vec::new();
        }
        let mut woken = Vec::new();
        for file in std::mem::take(&mut self.waiting.changed) {
            let Some(mut queue) = self.waiting.queues.get(&file).cloned() else { continue };
            for at in 0..queue.len() {
                let (earlier, rest) = queue.split_at_mut(at);
                let Some(waiter) = rest.first_mut() else { break };
                let Wanted { range, kind, ref holder, .. } = waiter.wanted;
                let blocked = self.lock_conflict(file, Some(holder), range, kind).is_some()
                    || earlier.iter().any(|other| other.is_in_the_way_of(waiter));
                if !blocked && !waiter.told {
                    waiter.told = true;
                    woken.push(waiter.wanted.clone());
                }
            }
            self.waiting.queues.insert(file, queue);
        }
        self.waiting.queues.commit();
        woken
    }
}
