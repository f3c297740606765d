//! The end of a run: everything must come in order, the history must be right, and so must every copy.
//!
//! What a silent fault may excuse is said in `disk::Harm`.

use std::collections::BTreeSet;

use proto::{BlockRange, EXTENT_BLOCKS, NodeId};
use replication::config::VolumeConfig;

use super::checker::OpKind;
use super::client::Wish;
use super::cluster::World;
use super::disk::{Block, NOBODYS, RawDisk};
use super::scheduler::{NEVER, SimTime};
use super::setup::BOXES;

/// Blocks of each extent, beside those that clients use, that the last verification reads.
const VERIFY_BLOCKS: u64 = 32;
/// Last verifications until a block that cannot be read counts as lost.
const VERIFY_ROUNDS: u32 = 3;
/// Payloads that one copy holds for a step of a scrub: what it has read, and what two peers have answered.
const SCRUB_PAYLOADS_MAX: usize = 3;

/// A read of the last verification.
#[derive(Clone, Copy, Debug)]
pub struct LastRead {
    volume: usize,
    op: u64,
    record: usize,
    /// A block that a silent fault has struck at some time: it may be lost.
    struck: bool,
}

impl World {
    /// The end of a run: everything must come in order, and the copies and the history must be right.
    pub fn conclude(&mut self, deadline: SimTime) {
        if let Some(reads) = self.operator.verifying.take() {
            return self.verify(reads);
        }
        let unsettled: Vec<usize> = (0..self.volumes.len()).filter(|volume| !self.in_order(*volume)).collect();
        if unsettled.is_empty() {
            self.operator.verifying = Some(self.read_everything());
            return;
        }
        if self.now < deadline {
            return;
        }
        for volume in unsettled {
            if self.may_be_unavailable(volume) {
                self.stats.unavailable += 1;
            } else {
                let detail = self.describe(volume);
                return self.violate(Some(volume), "stuck", detail);
            }
        }
        self.judge_histories();
        self.operator.done = true;
    }

    /// A volume serves, every copy is in sync, and nothing is open.
    pub fn in_order(&mut self, volume: usize) -> bool {
        let Some(config) = self.volumes[volume].newest.clone() else { return false };
        let now = self.now;
        let everybody = config.in_sync.len() == config.replicas.len();
        let b = &mut self.boxes[config.primary.0 as usize - 1];
        let reading = proto::Timestamp(b.clock.read(now));
        let serves = b.volume(volume).is_some_and(|run| run.replica.status(reading).serving);
        everybody && serves && !self.ops.values().any(|open| open.volume == volume)
    }

    /// Every copy that may serve is on a failed disk: nobody can do anything but force an old copy.
    fn may_be_unavailable(&self, volume: usize) -> bool {
        let Some(config) = self.volumes[volume].newest.as_ref() else { return false };
        let lost =
            |id: &NodeId| self.boxes[id.0 as usize - 1].stores[volume].as_ref().is_none_or(|store| store.raw.failed());
        !config.in_sync.is_empty() && config.in_sync.keys().all(lost)
    }

    fn describe(&mut self, volume: usize) -> String {
        let mut text = match &self.volumes[volume].newest {
            Some(c) => format!(
                "primary {} epoch {} version {} in_sync {:?} of {:?}",
                c.primary,
                c.epoch,
                c.version,
                c.in_sync.keys().map(|id| id.0).collect::<Vec<_>>(),
                c.replicas.keys().map(|id| id.0).collect::<Vec<_>>()
            ),
            None => "no configuration".into(),
        };
        for node in 0..BOXES {
            let b = &mut self.boxes[node];
            let reading = proto::Timestamp(b.clock.read(self.now));
            if let Some(run) = b.volume(volume) {
                let status = run.replica.status(reading);
                text += &format!("; node {}: {} {:?}", node + 1, status.role, status.waiting);
            }
        }
        let open = self.ops.values().filter(|open| open.volume == volume).count();
        text + &format!("; {open} operations open")
    }

    /// The primary is asked for what clients use, and for a part of every extent.
    fn read_everything(&mut self) -> Vec<LastRead> {
        self.operator.verify_rounds += 1;
        let mut reads = Vec::new();
        for volume in 0..self.volumes.len() {
            let Some(primary) = self.volumes[volume].newest.as_ref().map(|config| config.primary) else { continue };
            let blocks = self.setup.volumes[volume].blocks;
            let mut ranges = self.setup.volumes[volume].windows.clone();
            for first in (0..blocks).step_by(EXTENT_BLOCKS as usize) {
                let start = (first + self.rng.below(EXTENT_BLOCKS)).min(blocks - VERIFY_BLOCKS);
                ranges.push(BlockRange::new(start, VERIFY_BLOCKS));
            }
            for (range, struck) in self.around_struck(volume, ranges) {
                if let Some(op) = self.ask(primary.0 as usize - 1, volume, Wish::read(range), None) {
                    reads.push(LastRead { volume, op, record: self.ops[&op].records[0], struck });
                }
            }
        }
        reads
    }

    /// Blocks that a silent fault has struck on any copy.
    fn struck(&self, volume: usize) -> BTreeSet<u64> {
        let stores = self.boxes.iter().filter_map(|b| b.stores[volume].as_ref());
        let struck = stores.flat_map(|store| store.raw.harm.ever.keys());
        struck.chain(&self.volumes[volume].struck_before).copied().collect()
    }

    /// Splits ranges so that blocks that a silent fault has struck stand alone. An image of the past may have kept a block
    /// and forgotten its sum, or the other way round: any of its blocks may be refused.
    fn around_struck(&self, volume: usize, ranges: Vec<BlockRange>) -> Vec<(BlockRange, bool)> {
        let mut struck = self.struck(volume);
        if self.boxes.iter().filter_map(|b| b.stores[volume].as_ref()).any(|store| store.raw.harm.doubtful) {
            struck.extend(ranges.iter().flat_map(|range| range.blocks()));
        }
        let mut parts: Vec<(BlockRange, bool)> = Vec::new();
        for range in ranges {
            let mut apart = true;
            for block in range.blocks() {
                match parts.last_mut() {
                    Some((last, false)) if !apart && !struck.contains(&block) => last.count += 1,
                    _ => parts.push((BlockRange::new(block, 1), struck.contains(&block))),
                }
                apart = struck.contains(&block);
            }
        }
        parts
    }

    fn verify(&mut self, reads: Vec<LastRead>) {
        if reads.iter().any(|read| self.ops.contains_key(&read.op)) {
            self.operator.verifying = Some(reads);
            return;
        }
        let answered = |read: &&LastRead| self.volumes[read.volume].history.op(read.record).end != NEVER;
        let (good, bad): (Vec<&LastRead>, Vec<&LastRead>) = reads.iter().partition(answered);
        if bad.iter().any(|read| !read.struck) || (!bad.is_empty() && self.operator.verify_rounds < VERIFY_ROUNDS) {
            return;
        }
        if let Some(read) = bad.iter().find(|read| !self.volumes[read.volume].flawed_alone) {
            let op = &self.volumes[read.volume].history.op(read.record).kind;
            let detail = format!("{op:?} is refused, but a good copy was in sync all the time");
            return self.violate(Some(read.volume), "I8_block_not_healed", detail);
        }
        if let Some((volume, block, member)) = bad.iter().find_map(|read| self.good_copy(read)) {
            let detail = format!("block {block} is refused, but {member} holds it as it was last written");
            return self.violate(Some(volume), "I8_block_not_healed", detail);
        }
        self.judge_histories();
        let good: Vec<LastRead> = good.into_iter().copied().collect();
        for volume in 0..self.volumes.len() {
            let Some(config) = self.volumes[volume].newest.clone() else { continue };
            self.compare_reads(volume, &config, &good);
            self.compare_copies(volume, &config);
            self.look_for_leaks(volume);
            for member in config.in_sync.keys() {
                self.read_back(member.0 as usize - 1, volume);
            }
        }
        self.operator.done = true;
    }

    /// A copy in sync that holds a refused block, which stands alone, as it was last written. Where metadata was harmed too,
    /// or damage has become the truth of a copy, the sum that tells so may be lost.
    fn good_copy(&self, read: &LastRead) -> Option<(usize, u64, NodeId)> {
        let OpKind::Read { range, .. } = &self.volumes[read.volume].history.op(read.record).kind else { return None };
        let config = self.volumes[read.volume].newest.as_ref()?;
        let store = |member: &NodeId| self.boxes[member.0 as usize - 1].stores[read.volume].as_ref();
        let disks: Vec<_> = config.in_sync.keys().filter_map(|id| Some((*id, &store(id)?.raw))).collect();
        let sealed = |disk: &RawDisk| disk.harm.sealed.contains(&range.start);
        let whole =
            |disk: &RawDisk| disk.harm.pages == 0 && !disk.harm.doubtful && !disk.harm.log_lost && !sealed(disk);
        if !disks.iter().all(|(_, disk)| whole(disk)) {
            return None;
        }
        let last =
            disks.iter().find_map(|(_, disk)| disk.harm.ever.get(&range.start).filter(|last| **last != NOBODYS))?;
        let serves = |disk: &RawDisk| disk.visible(range.start) == *last && !disk.harm.given_up.contains(&range.start);
        let holder = disks.iter().find(|(_, disk)| serves(disk))?;
        Some((read.volume, range.start, holder.0))
    }

    /// Judges what clients saw, for every volume.
    pub fn judge_histories(&mut self) {
        for volume in 0..self.volumes.len() {
            self.stats.losses += self.volumes[volume].history.losses() as u64;
            if let Err(fault) = self.volumes[volume].history.check() {
                self.violate(Some(volume), fault.rule, fault.detail);
                if let Some(violation) = self.violation.as_mut() {
                    violation.at = fault.at;
                }
            }
        }
    }

    /// True if this copy's content of a block says nothing.
    fn excused(&self, node: usize, volume: usize, block: u64) -> bool {
        let harm = self.boxes[node].stores[volume].as_ref().map(|store| &store.raw.harm);
        self.volumes[volume].history.is_excused(block)
            || harm.is_none_or(|harm| harm.doubtful || harm.damaged.contains(&block))
    }

    /// All copies in sync hold what the last reads returned. A read through the primary has healed its copy.
    fn compare_reads(&mut self, volume: usize, config: &VolumeConfig, reads: &[LastRead]) {
        let mut differing = None;
        for read in reads.iter().filter(|read| read.volume == volume) {
            let OpKind::Read { range, data } = &self.volumes[volume].history.op(read.record).kind else { continue };
            for member in config.in_sync.keys() {
                let node = member.0 as usize - 1;
                let Some(store) = self.boxes[node].stores[volume].as_ref() else { continue };
                for (block, content) in range.blocks().zip(data) {
                    let excused = if *member == config.primary {
                        self.volumes[volume].history.is_excused(block)
                    } else {
                        self.excused(node, volume, block)
                    };
                    if !excused && store.raw.visible(block) != *content {
                        differing = Some((*member, block, store.raw.visible(block), *content));
                    }
                }
            }
        }
        if let Some((member, block, holds, read)) = differing {
            let detail = format!("member {member} holds {holds:?} in block {block}, the primary returned {read:?}");
            self.violate(Some(volume), "copies_differ", detail);
        }
    }

    /// (I7) All copies in sync hold the same in every block.
    fn compare_copies(&mut self, volume: usize, config: &VolumeConfig) {
        let members: Vec<usize> = config.in_sync.keys().map(|id| id.0 as usize - 1).collect();
        let stores = || members.iter().filter_map(|node| Some((*node, self.boxes[*node].stores[volume].as_ref()?)));
        let blocks: BTreeSet<u64> =
            stores().flat_map(|(_, store)| store.raw.written().map(|(block, _)| block)).collect();
        let mut found = None;
        for block in blocks {
            let judged = stores().filter(|(node, _)| !self.excused(*node, volume, block));
            let contents: Vec<(usize, Block)> = judged.map(|(node, store)| (node, store.raw.visible(block))).collect();
            if contents.iter().any(|(_, content)| *content != contents[0].1) {
                found = Some((block, contents));
                break;
            }
        }
        if let Some((block, contents)) = found {
            let detail = format!("block {block} (box from 0, content): {contents:?}");
            self.violate(Some(volume), "I7_copies_differ", detail);
        }
    }

    /// (I7, I8) A copy's engine reads back every block as good, except those that a silent fault has damaged: those it
    /// must find.
    fn read_back(&mut self, node: usize, volume: usize) {
        // A copy that took a block from a damaged one knows it as bad too.
        let struck = self.struck(volume);
        let b = &mut self.boxes[node];
        let Some(worker) = b.worker.as_deref_mut() else { return };
        let Some(engine) = worker.volumes[volume].as_mut().and_then(|run| run.engine.as_mut()) else { return };
        let Some(store) = b.stores[volume].as_mut() else { return };
        // A scrub in the background is at its disk, whose answers do not come any more: reads may wait for them.
        if !store.raw.idle() {
            return;
        }
        let bad = engine.bad_blocks(store, &mut self.rng);
        let harm = &store.raw.harm;
        let detail = match bad {
            Err(failed) => format!("node {}: {failed}", node + 1),
            Ok(bad) => {
                let alarm = bad.iter().find(|block| !struck.contains(block) && !harm.doubtful);
                let missed = harm.damaged.iter().find(|block| !bad.contains(block) && !harm.sealed.contains(block));
                match (alarm, missed) {
                    (Some(block), _) => format!("node {}: good block {block} does not match its sum", node + 1),
                    (None, Some(block)) if !harm.doubtful => {
                        format!("node {}: damage of block {block} is not found", node + 1)
                    }
                    _ => return,
                }
            }
        };
        self.violate(Some(volume), "I8_sums_are_wrong", detail);
    }

    /// Nothing is open, so no replica may hold a payload, but those that a scrub in the background is at.
    fn look_for_leaks(&mut self, volume: usize) {
        let now = proto::Timestamp(self.now);
        let scrubs = (0..BOXES)
            .any(|node| self.boxes[node].volume(volume).is_some_and(|run| run.replica.status(now).scrub.is_some()));
        let allowed = if scrubs { SCRUB_PAYLOADS_MAX } else { 0 };
        for node in 0..BOXES {
            let Some(run) = self.boxes[node].volume(volume) else { continue };
            let mut held: Vec<_> = run.payloads.keys().copied().collect();
            held.sort_unstable();
            if held.len() > allowed {
                let detail = format!("node {} holds {} payloads, as {:?}", node + 1, held.len(), held[0]);
                return self.violate(Some(volume), "payload_never_released", detail);
            }
        }
    }
}
