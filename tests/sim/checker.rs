//! The history of one volume as its clients saw it, and the judgement over it.
//!
//! Every half block is an atomic register. All writes of data carry a value of their own, so a history is linearizable
//! exactly if no two values' zones conflict (Gibbons and Korach, "Testing Shared Memories", SIAM J. Comput. 26(4),
//! theorem 4.4): with `first_end` the earliest end and `last_start` the latest start among the write of a value and its
//! reads, value A must precede B if `A.first_end < B.last_start`, and two values must not have to precede each other.
//! Zeros can have many writers; their reads are judged against the one that suits them best.
//!
//! A start that may lose unflushed writes (`unflushed_loss`, `loss_possible`) opens a new *era*: at its beginning a
//! register holds one of the values that the old era permits to survive, and flushed ones must.

use std::collections::{BTreeMap, BTreeSet};

use proto::{BlockRange, Epoch};

use super::disk::Block;
use super::scheduler::{NEVER, SimTime};

/// What an operation was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpKind {
    /// Stored `value` in the halves `first .. first + count`; 0 is zeros.
    Write {
        /// First half block.
        first: u64,
        /// Half blocks.
        count: u64,
        /// Unique, or 0 for zeros.
        value: u32,
        /// Its acknowledgement says that it is on the media.
        flushed: bool,
    },
    /// Read whole blocks.
    Read {
        /// Blocks.
        range: BlockRange,
        /// What came back.
        data: Vec<Block>,
    },
    /// Flushed.
    Flush,
}

/// One operation of a client.
#[derive(Clone, Debug)]
pub struct OpRecord {
    /// What it was.
    pub kind: OpKind,
    /// When the node took it.
    pub start: SimTime,
    /// When the node answered it; NEVER if it did not, or refused: it may have happened.
    pub end: SimTime,
    /// Eras it may have taken effect in.
    eras: (usize, usize),
}

/// Which losses a new era permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    /// Whatever was not flushed.
    Unflushed,
    /// Everything since any moment (ForcePrimary).
    Any,
}

#[derive(Clone, Copy, Debug)]
struct Era {
    begins: SimTime,
    epoch: Epoch,
    loss: Loss,
}

/// Why a history is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Short name of the rule.
    pub rule: &'static str,
    /// Details for people.
    pub detail: String,
    /// When it shows.
    pub at: SimTime,
}

/// The history of one volume.
#[derive(Clone, Debug)]
pub struct History {
    ops: Vec<OpRecord>,
    /// Blocks that are not judged: a silent fault may have made wrong content their truth (`disk::Harm`).
    excused: BTreeSet<u64>,
    eras: Vec<Era>,
    /// Every acknowledged write is on the media (policy `durable`).
    durable: bool,
}

/// One value in one register: its write and all reads of it.
#[derive(Clone, Copy, Debug)]
struct Cluster {
    value: u32,
    start: SimTime,
    first_end: SimTime,
    last_start: SimTime,
}

impl Cluster {
    fn must_precede(&self, other: &Cluster) -> bool {
        self.first_end < other.last_start
    }
}

/// Operations on one half block: the writes, and the reads with what they saw.
type HalfOps = (Vec<u32>, Vec<(u32, u32)>);

impl History {
    /// An empty history of a volume of zeros.
    pub fn new(durable: bool) -> Self {
        let era = Era { begins: 0, epoch: Epoch(0), loss: Loss::Any };
        Self { ops: Vec::with_capacity(2048), excused: BTreeSet::new(), eras: vec![era], durable }
    }

    /// Records that a node took an operation; returns its number.
    pub fn begin(&mut self, kind: OpKind, now: SimTime, epoch: Epoch) -> usize {
        let era = self.era_of(epoch);
        self.ops.push(OpRecord { kind, start: now, end: NEVER, eras: (era, era) });
        self.ops.len() - 1
    }

    /// Records that it was answered with success.
    pub fn complete(&mut self, op: usize, now: SimTime, epoch: Epoch) {
        let era = self.era_of(epoch);
        self.ops[op].end = now;
        self.ops[op].eras = (era, era);
    }

    /// Records what a read returned.
    pub fn set_data(&mut self, op: usize, content: Vec<Block>) {
        if let OpKind::Read { data, .. } = &mut self.ops[op].kind {
            *data = content;
        }
    }

    /// Records that an operation without an answer can take no effect after this (refused, or its process died).
    pub fn close(&mut self, op: usize, epoch: Epoch) {
        let era = self.era_of(epoch);
        self.ops[op].eras.1 = self.ops[op].eras.1.max(era);
    }

    /// A configuration has appeared that says so: from `epoch` on unflushed (or, `any`, all) writes may be missing.
    pub fn loss_declared(&mut self, epoch: Epoch, any: bool, now: SimTime) {
        if self.eras.iter().all(|era| era.epoch < epoch) {
            self.eras.push(Era { begins: now, epoch, loss: if any { Loss::Any } else { Loss::Unflushed } });
        }
    }

    /// A block is judged no more.
    pub fn excuse(&mut self, block: u64) {
        self.excused.insert(block);
    }

    /// True if a block is not judged.
    pub fn is_excused(&self, block: u64) -> bool {
        self.excused.contains(&block)
    }

    /// The operation numbered `op`.
    pub fn op(&self, op: usize) -> &OpRecord {
        &self.ops[op]
    }

    /// Eras that permitted a loss.
    pub fn losses(&self) -> usize {
        self.eras.len() - 1
    }

    fn era_of(&self, epoch: Epoch) -> usize {
        self.eras.iter().rposition(|era| era.epoch <= epoch).unwrap_or(0)
    }

    /// Judges the whole history.
    pub fn check(&self) -> Result<(), Fault> {
        let mut halves: BTreeMap<u64, HalfOps> = BTreeMap::new();
        for (index, op) in self.ops.iter().enumerate() {
            match &op.kind {
                OpKind::Write { first, count, .. } => {
                    (*first..first + count).for_each(|half| halves.entry(half).or_default().0.push(index as u32));
                }
                OpKind::Read { range, data } if op.end != NEVER => {
                    for (block, content) in range.blocks().zip(data) {
                        for half in 0..2 {
                            halves.entry(block * 2 + half).or_default().1.push((index as u32, content[half as usize]));
                        }
                    }
                }
                _ => {}
            }
        }
        let flushes = self.flush_table();
        let judged = halves.iter().filter(|(half, _)| !self.excused.contains(&(**half / 2)));
        judged
            .into_iter()
            .try_for_each(|(half, (writes, reads))| self.check_half(*half as usize, writes, reads, &flushes))
    }

    /// Completed flushes by start, each with the earliest end among those that start then or later.
    fn flush_table(&self) -> Vec<(SimTime, SimTime)> {
        let done = |op: &&OpRecord| op.kind == OpKind::Flush && op.end != NEVER;
        let mut table: Vec<_> = self.ops.iter().filter(done).map(|op| (op.start, op.end)).collect();
        table.sort_unstable();
        let mut earliest = NEVER;
        for entry in table.iter_mut().rev() {
            earliest = earliest.min(entry.1);
            entry.1 = earliest;
        }
        table
    }

    /// When an acknowledged write is known to be on all media; NEVER if no flush says so.
    fn flushed_at(&self, op: &OpRecord, flushes: &[(SimTime, SimTime)]) -> SimTime {
        if op.end == NEVER {
            return NEVER;
        }
        if self.durable || matches!(op.kind, OpKind::Write { flushed: true, .. }) {
            return op.end;
        }
        let after = flushes.partition_point(|flush| flush.0 < op.end);
        flushes.get(after).map_or(NEVER, |flush| flush.1)
    }

    fn check_half(
        &self,
        half: usize,
        writes: &[u32],
        reads: &[(u32, u32)],
        flushes: &[(SimTime, SimTime)],
    ) -> Result<(), Fault> {
        if reads.is_empty() {
            return Ok(());
        }
        (0..self.eras.len()).try_for_each(|era| self.check_half_in_era(half, era, writes, reads, flushes))
    }

    fn check_half_in_era(
        &self,
        half: usize,
        era: usize,
        writes: &[u32],
        reads: &[(u32, u32)],
        flushes: &[(SimTime, SimTime)],
    ) -> Result<(), Fault> {
        let begins = self.eras[era].begins;
        let mut clusters: Vec<Cluster> = Vec::with_capacity(writes.len() + 1);
        let mut zeros: Vec<usize> = Vec::new();
        let mut by_value: Vec<(u32, usize)> = Vec::with_capacity(writes.len());
        for &write in writes {
            let op = &self.ops[write as usize];
            let OpKind::Write { value, .. } = op.kind else { continue };
            if op.eras.0 > era || op.eras.1 < era {
                continue;
            }
            if value == 0 {
                zeros.push(clusters.len())
            } else {
                by_value.push((value, clusters.len()))
            }
            clusters.push(Cluster { value, start: op.start, first_end: op.end, last_start: op.start });
        }
        by_value.sort_unstable();
        // Zeros at the era's beginning: the initial content, or a survivor.
        if era == 0 || self.may_survive(0, None, era, writes, flushes) {
            zeros.push(clusters.len());
            clusters.push(Cluster { value: 0, start: begins, first_end: begins, last_start: begins });
        }
        let mut zero_reads = Vec::new();
        for &(read, value) in reads {
            let op = &self.ops[read as usize];
            if op.eras.0 != era {
                continue;
            }
            if value == 0 {
                zero_reads.push(read);
                continue;
            }
            let index = match by_value.binary_search_by_key(&value, |entry| entry.0) {
                Ok(at) => by_value[at].1,
                Err(at) => {
                    let writer = writes.iter().copied().find(|write| self.value_of(*write) == value);
                    let survivor = writer.is_some() && self.may_survive(value, writer, era, writes, flushes);
                    if era == 0 || !survivor {
                        return Err(self.foreign_value(half, era, read, value, writer));
                    }
                    by_value.insert(at, (value, clusters.len()));
                    clusters.push(Cluster { value, start: begins, first_end: begins, last_start: begins });
                    clusters.len() - 1
                }
            };
            let cluster = &mut clusters[index];
            if op.end < cluster.start {
                return Err(self.fault("read_before_write", half, read, value, None));
            }
            cluster.first_end = cluster.first_end.min(op.end);
            cluster.last_start = cluster.last_start.max(op.start);
        }
        self.check_zones(half, &clusters)?;
        self.check_zeros(half, &clusters, &zeros, &zero_reads)
    }

    fn value_of(&self, write: u32) -> u32 {
        match self.ops[write as usize].kind {
            OpKind::Write { value, .. } => value,
            _ => 0,
        }
    }

    /// True when a register may hold `value` (last written by `writer`; None: initially) as `era` begins.
    fn may_survive(
        &self,
        value: u32,
        writer: Option<u32>,
        era: usize,
        writes: &[u32],
        flushes: &[(SimTime, SimTime)],
    ) -> bool {
        if self.eras[era].loss == Loss::Any {
            return true;
        }
        if value == 0 && writer.is_none() {
            let zero_survives =
                |write: &u32| self.value_of(*write) == 0 && self.may_survive(0, Some(*write), era, writes, flushes);
            if writes.iter().any(zero_survives) {
                return true;
            }
        }
        let began = self.eras[era].begins;
        let (written, end) = match writer {
            Some(write) => (self.ops[write as usize].eras, self.ops[write as usize].end),
            None => ((0, 0), 0),
        };
        if written.0 >= era {
            return false;
        }
        let last = era - 1;
        let superseded = writes.iter().any(|&other| {
            let other = &self.ops[other as usize];
            let after = written.1 < last || end < other.start;
            other.eras.0 == last && after && self.flushed_at(other, flushes) < began
        });
        if superseded {
            return false;
        }
        written.1 >= last || last == 0 || self.may_survive(value, writer, last, writes, flushes)
    }

    fn check_zones(&self, half: usize, clusters: &[Cluster]) -> Result<(), Fault> {
        let mut forward: Vec<&Cluster> = clusters.iter().filter(|c| c.first_end < c.last_start).collect();
        forward.sort_unstable_by_key(|c| (c.first_end, c.last_start, c.value));
        for pair in forward.windows(2) {
            if pair[0].must_precede(pair[1]) && pair[1].must_precede(pair[0]) {
                return Err(self.conflict(half, pair[0], pair[1]));
            }
        }
        for cluster in clusters.iter().filter(|c| c.first_end >= c.last_start) {
            let before = forward.partition_point(|c| c.first_end < cluster.last_start);
            if let Some(outer) = forward[..before].last().filter(|outer| cluster.must_precede(outer)) {
                return Err(self.conflict(half, outer, cluster));
            }
        }
        Ok(())
    }

    fn check_zeros(&self, half: usize, clusters: &[Cluster], zeros: &[usize], reads: &[u32]) -> Result<(), Fault> {
        for &read in reads {
            let op = &self.ops[read as usize];
            let suits = |zero: &&usize| {
                let zero_write = &clusters[**zero];
                let between = |other: &Cluster| zero_write.must_precede(other) && other.first_end < op.start;
                zero_write.start <= op.end
                    && !clusters.iter().enumerate().any(|(index, other)| index != **zero && between(other))
            };
            if !zeros.iter().any(|zero| suits(&zero)) {
                let newer =
                    clusters.iter().filter(|c| c.value != 0 && c.first_end < op.start).max_by_key(|c| c.first_end);
                return Err(self.fault("stale_read", half, read, 0, newer.copied()));
            }
        }
        Ok(())
    }

    fn conflict(&self, half: usize, a: &Cluster, b: &Cluster) -> Fault {
        let detail = format!(
            "half {} of block {}: value {} is seen as current until {}, but value {} (taken {}, done or first seen {}) \
             must lie in between: it was lost, or a read was stale",
            half % 2,
            half / 2,
            a.value,
            seconds(a.last_start),
            b.value,
            seconds(b.start),
            seconds(b.first_end),
        );
        Fault { rule: "not_linearizable", detail, at: a.last_start.min(b.last_start.max(a.last_start)) }
    }

    fn fault(&self, rule: &'static str, half: usize, read: u32, value: u32, newer: Option<Cluster>) -> Fault {
        let op = &self.ops[read as usize];
        let newer = newer
            .map_or(String::new(), |c| format!("; value {} was done or seen by {}", c.value, seconds(c.first_end)));
        let detail = format!(
            "half {} of block {}: a read from {} to {} returned value {value}{newer}",
            half % 2,
            half / 2,
            seconds(op.start),
            seconds(op.end)
        );
        Fault { rule, detail, at: op.end }
    }

    fn foreign_value(&self, half: usize, era: usize, read: u32, value: u32, writer: Option<u32>) -> Fault {
        match writer {
            None => self.fault("value_never_written", half, read, value, None),
            Some(_) if era == 0 => self.fault("value_from_a_later_era", half, read, value, None),
            Some(_) => self.fault("flushed_write_lost_or_undone", half, read, value, None),
        }
    }
}

fn seconds(at: SimTime) -> String {
    if at == NEVER { "never".into() } else { format!("{:.6}", at as f64 / 1e6) }
}

#[cfg(test)]
#[path = "checker_tests.rs"]
mod tests;
