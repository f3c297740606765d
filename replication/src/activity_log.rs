//! Which extents may differ between the copies after a crash, and who waits for one to become hot.
//!
//! An extent must be hot, durably, before its data is touched or sent, and stays so until every required copy has the
//! write; a write to a hot extent costs nothing here. Extents idle for a while are made cold in the background, many at a
//! time. This module decides; `local_copy` writes the log.

use std::collections::{BTreeMap, BTreeSet};

use proto::peer::message::{Seq, UNCERTAIN_RUNS_MAX, Uncertain};
use proto::{BlockRange, EXTENT_BLOCKS, Timestamp};
use smallvec::SmallVec;

use crate::event::IoId;
use crate::local_copy::Hot;

/// Extents made cold in one go in the background.
pub(crate) const COOL_MAX: usize = 64;
/// Of these, such as were hot when the copy was opened: their checksums have to be computed from all their data.
const COOL_RECOVERED_MAX: usize = 2;

/// Who waits for extents, or has them pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum User {
    /// The primary's write.
    Write(u64),
    /// An operation of the session's stream, under this generation.
    Stream(u64, Seq),
}

/// Numbers of extents.
pub(crate) type Extents = SmallVec<[u64; 2]>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    Heating,
    Hot,
    Cooling,
}

#[derive(Clone, Debug, Hash)]
struct Extent {
    state: State,
    /// Operations in flight on it.
    pins: u32,
    /// When the last one ended.
    used: Timestamp,
    /// As a secondary: operations of the stream up to here must be settled before it may become cold.
    settles: Seq,
    /// It was hot when the copy was opened.
    recovered: bool,
}

/// See the module's header.
#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct ActivityLog {
    /// Everything that is not cold.
    extents: BTreeMap<u64, Extent>,
    waiting: BTreeMap<User, Extents>,
    heats: BTreeMap<IoId, Vec<u64>>,
    cooling: Option<(IoId, Vec<u64>)>,
    /// Extents whose content this copy cannot vouch for: hot when it was last in use, or when an epoch ended that it is
    /// not a member after. They stay hot until a source has recorded them as dirty.
    uncertain: BTreeSet<u64>,
    /// Those that one source has recorded. Should another one take its place, they are in doubt again; so they stay hot
    /// until the copy is in sync.
    recorded: BTreeSet<u64>,
    /// Every extent was hot, and their number is not known yet.
    all: bool,
}

/// The extents that ranges touch, ascending, each once.
pub(crate) fn extents_of(ranges: &[BlockRange]) -> Extents {
    let mut extents = Extents::new();
    for range in ranges.iter().filter(|range| range.count > 0) {
        extents.extend(range.start / EXTENT_BLOCKS..(range.end() - 1) / EXTENT_BLOCKS + 1);
    }
    if extents.len() == 1 {
        return extents;
    }
    extents.sort_unstable();
    extents.dedup();
    extents
}

impl ActivityLog {
    /// The copy was opened; these extents were hot.
    pub(crate) fn attach(&mut self, hot: Hot, extents: u64, now: Timestamp) {
        *self = Self::default();
        match hot {
            Hot::Extents(hot) => self.recover(hot.into_iter(), now),
            Hot::All if extents > 0 => self.recover(0..extents, now),
            Hot::All => self.all = true,
        }
    }

    /// The volume's size is known: only now can every one of its extents be named.
    pub(crate) fn learn_size(&mut self, extents: u64, now: Timestamp) {
        if extents > 0 && std::mem::take(&mut self.all) {
            self.recover(0..extents, now);
        }
    }

    fn recover(&mut self, hot: impl Iterator<Item = u64>, now: Timestamp) {
        for extent in hot {
            let entry = Extent { state: State::Hot, pins: 0, used: now, settles: Seq(1), recovered: true };
            self.extents.insert(extent, entry);
            self.uncertain.insert(extent);
        }
    }

    /// Everything that is not cold, ascending.
    pub(crate) fn not_cold(&self) -> Vec<u64> {
        self.extents.keys().copied().collect()
    }

    /// Extents that are not cold.
    pub(crate) fn len(&self) -> usize {
        self.extents.len()
    }

    /// Whatever is not cold is in doubt from now on.
    pub(crate) fn doubt_all(&mut self) {
        self.uncertain.extend(self.extents.keys());
    }

    /// Nothing is in doubt: the copy is in sync.
    pub(crate) fn trust(&mut self) {
        self.uncertain.clear();
        self.recorded.clear();
    }

    /// A source has recorded what is in doubt.
    pub(crate) fn doubts_recorded(&mut self) {
        self.recorded.append(&mut self.uncertain);
    }

    /// What the copy cannot vouch for, as told to a primary.
    pub(crate) fn uncertain(&self) -> Uncertain {
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for extent in &self.uncertain {
            let Ok(extent) = u32::try_from(*extent) else { return Uncertain::All };
            match runs.last_mut() {
                Some((first, count)) if *first + *count == extent => *count += 1,
                _ => runs.push((extent, 1)),
            }
        }
        join_nearest(&mut runs);
        Uncertain::Runs(runs)
    }

    /// Pins `extents` for `user` if all are hot: `None`. Otherwise it waits; gives those that are cold.
    pub(crate) fn admit(&mut self, user: User, extents: Extents) -> Option<Vec<u64>> {
        // Nearly every operation touches one extent, which is hot: one search.
        match extents[..] {
            [extent] => {
                if let Some(entry) = self.extents.get_mut(&extent).filter(|entry| entry.state == State::Hot) {
                    entry.pins += 1;
                    return None;
                }
            }
            _ if self.are_hot(&extents) => {
                self.pin(&extents);
                return None;
            }
            _ => {}
        }
        let cold = self.cold(&extents);
        self.waiting.insert(user, extents);
        Some(cold)
    }

    /// Those of `extents` that are cold.
    pub(crate) fn cold(&self, extents: &[u64]) -> Vec<u64> {
        extents.iter().filter(|extent| !self.extents.contains_key(extent)).copied().collect()
    }

    /// The cold extents that somebody waits for, ascending.
    pub(crate) fn wanted(&self) -> Vec<u64> {
        let wanted: BTreeSet<u64> = self.waiting.values().flatten().copied().collect();
        wanted.into_iter().filter(|extent| !self.extents.contains_key(extent)).collect()
    }

    /// Cold extents are being made hot under `io`.
    pub(crate) fn heat(&mut self, io: IoId, cold: Vec<u64>) {
        for extent in &cold {
            let used = Timestamp(0);
            let entry = Extent { state: State::Heating, pins: 0, used, settles: Seq(0), recovered: false };
            let before = self.extents.insert(*extent, entry);
            assert!(before.is_none(), "an extent is heated once");
        }
        self.heats.insert(io, cold);
    }

    /// A heating has ended, well or not. The caller then asks for [`Self::ready`].
    pub(crate) fn heated(&mut self, io: IoId, ok: bool, now: Timestamp) -> Vec<u64> {
        let extents = self.heats.remove(&io).unwrap_or_default();
        for extent in &extents {
            match self.extents.get_mut(extent) {
                Some(entry) if ok => (entry.state, entry.used) = (State::Hot, now),
                _ => _ = self.extents.remove(extent),
            }
        }
        extents
    }

    /// Those who waited and may go on; their extents are pinned. In order.
    pub(crate) fn ready(&mut self) -> Vec<User> {
        let able = |extents: &Extents| self.are_hot(extents);
        let ready: Vec<User> =
            self.waiting.iter().filter(|(_, extents)| able(extents)).map(|(user, _)| *user).collect();
        for user in &ready {
            if let Some(extents) = self.waiting.remove(user) {
                self.pin(&extents);
            }
        }
        ready
    }

    /// Those who wait for one of `extents`, which could not be made hot; they wait no more.
    pub(crate) fn fail(&mut self, extents: &[u64]) -> Vec<User> {
        let failed: Vec<User> = self
            .waiting
            .iter()
            .filter(|(_, wanted)| wanted.iter().any(|extent| extents.contains(extent)))
            .map(|(user, _)| *user)
            .collect();
        failed.iter().for_each(|user| _ = self.waiting.remove(user));
        failed
    }

    /// The user waits no more.
    pub(crate) fn forget(&mut self, user: User) {
        self.waiting.remove(&user);
    }

    /// An operation on pinned extents has ended everywhere it must; as a secondary once `settles` is settled.
    pub(crate) fn release(&mut self, extents: &[u64], settles: Seq, now: Timestamp) {
        for extent in extents {
            let Some(entry) = self.extents.get_mut(extent) else { continue };
            assert!(entry.pins > 0, "an extent is released once for each pin");
            entry.pins -= 1;
            entry.used = now;
            entry.settles = entry.settles.max(settles);
        }
    }

    /// All pins are void, nobody waits, and sequence numbers begin anew: a role or session has ended. Every extent waits
    /// for the next session's word that what came before it is settled.
    pub(crate) fn end_session(&mut self) {
        self.waiting.clear();
        for entry in self.extents.values_mut() {
            entry.pins = 0;
            entry.settles = Seq(1);
        }
    }

    /// As the primary: nobody else settles anything.
    pub(crate) fn settle_all(&mut self) {
        self.extents.values_mut().for_each(|entry| entry.settles = Seq(0));
    }

    /// Chooses extents to become cold: idle since before `idle_since`, in use by nobody, settled and not in doubt.
    pub(crate) fn begin_cooling(&mut self, io: IoId, idle_since: Timestamp, settled: Seq, max: usize) -> Vec<u64> {
        let mut recovered = 0;
        let mut chosen = Vec::new();
        if self.cooling.is_some() {
            return chosen;
        }
        for (number, entry) in &mut self.extents {
            let idle = entry.state == State::Hot && entry.pins == 0 && entry.used <= idle_since;
            let doubtful = self.uncertain.contains(number) || self.recorded.contains(number);
            if !idle || entry.settles > settled || doubtful {
                continue;
            }
            recovered += usize::from(entry.recovered);
            if entry.recovered && recovered > COOL_RECOVERED_MAX {
                continue;
            }
            entry.state = State::Cooling;
            chosen.push(*number);
            if chosen.len() >= max {
                break;
            }
        }
        if !chosen.is_empty() {
            self.cooling = Some((io, chosen.clone()));
        }
        chosen
    }

    /// A cooling has ended. The caller then heats what somebody waits for again.
    pub(crate) fn cooled(&mut self, io: IoId) {
        if let Some((_, extents)) = self.cooling.take_if(|(cooling, _)| *cooling == io) {
            extents.iter().for_each(|extent| _ = self.extents.remove(extent));
        }
    }

    fn are_hot(&self, extents: &[u64]) -> bool {
        extents.iter().all(|extent| self.extents.get(extent).is_some_and(|entry| entry.state == State::Hot))
    }

    fn pin(&mut self, extents: &[u64]) {
        for extent in extents {
            if let Some(entry) = self.extents.get_mut(extent) {
                entry.pins += 1;
            }
        }
    }
}

/// Joins runs over the smallest gaps until there are few enough.
fn join_nearest(runs: &mut Vec<(u32, u32)>) {
    while runs.len() > UNCERTAIN_RUNS_MAX {
        let mut gaps: Vec<u32> = runs.windows(2).map(|pair| pair[1].0 - (pair[0].0 + pair[0].1)).collect();
        let excess = runs.len() - UNCERTAIN_RUNS_MAX;
        let (_, bound, _) = gaps.select_nth_unstable(excess - 1);
        let bound = *bound;
        let mut joined: Vec<(u32, u32)> = Vec::with_capacity(UNCERTAIN_RUNS_MAX);
        for (first, count) in runs.drain(..) {
            match joined.last_mut() {
                Some(last) if first - (last.0 + last.1) <= bound => last.1 = first + count - last.0,
                _ => joined.push((first, count)),
            }
        }
        *runs = joined;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hot(extents: &[u64]) -> ActivityLog {
        let mut log = ActivityLog::default();
        log.attach(Hot::Extents(extents.to_vec()), 9, Timestamp(0));
        log.trust();
        log.settle_all();
        log
    }

    #[test]
    fn a_write_waits_until_all_its_extents_are_hot() {
        let mut log = hot(&[1]);
        assert_eq!(log.admit(User::Write(1), extents_of(&[BlockRange::new(1024, 4)])), None);
        assert_eq!(log.admit(User::Write(2), extents_of(&[BlockRange::new(2047, 2)])), Some(vec![2]));
        assert_eq!(log.wanted(), vec![2]);
        log.heat(IoId(9), vec![2]);
        assert_eq!(log.wanted(), vec![]);
        assert_eq!(log.ready(), vec![]);
        assert_eq!(log.heated(IoId(9), true, Timestamp(5)), vec![2]);
        assert_eq!(log.ready(), vec![User::Write(2)]);
    }

    #[test]
    fn an_extent_in_use_unsettled_or_in_doubt_stays_hot() {
        let mut log = hot(&[1, 2, 3, 4]);
        log.uncertain.insert(4);
        assert_eq!(log.admit(User::Write(1), smallvec::smallvec![1]), None);
        assert_eq!(log.admit(User::Write(2), smallvec::smallvec![2]), None);
        log.release(&[2], Seq(7), Timestamp(0));
        assert_eq!(log.begin_cooling(IoId(1), Timestamp(10), Seq(6), 9), vec![3]);
        let waits = log.admit(User::Write(3), smallvec::smallvec![3]);
        assert_eq!(waits, Some(vec![]), "an extent that grows cold is not written");
        assert_eq!(log.wanted(), vec![]);
        log.cooled(IoId(1));
        assert_eq!(log.wanted(), vec![3]);
        assert_eq!(log.begin_cooling(IoId(2), Timestamp(10), Seq(7), 9), vec![2]);
    }

    #[test]
    fn what_cannot_be_told_in_few_runs_is_told_in_larger_ones() {
        let mut log = ActivityLog::default();
        let extents: Vec<u64> = (0..3 * UNCERTAIN_RUNS_MAX as u64).map(|n| 2 * n + n / 10).collect();
        log.attach(Hot::Extents(extents.clone()), 9, Timestamp(0));
        let Uncertain::Runs(runs) = log.uncertain() else { panic!("runs fit") };
        assert!(runs.len() <= UNCERTAIN_RUNS_MAX && !runs.is_empty());
        let covered = |extent: u64| runs.iter().any(|(a, n)| u64::from(*a) <= extent && extent < u64::from(*a + *n));
        assert!(extents.into_iter().all(covered));
        assert!(runs.windows(2).all(|pair| pair[0].0 + pair[0].1 < pair[1].0));
    }
}
