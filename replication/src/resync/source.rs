//! The primary's side of a resync: steps through the dirty blocks while writes go on, then PreSync, flush, Admit.
//!
//! A step holds its range from the read to the peer's ack, so no write to it is in flight to that peer at the same time and
//! the peer's dirty bits say exactly what it lacks.

use std::collections::BTreeMap;

use proto::peer::message::{Message, Worth, WriteKind};
use proto::{BlockRange, NodeId};
use smallvec::smallvec;

use crate::action::{Action, Notice, PayloadSlice};
use crate::core::{Core, Purpose};
use crate::event::{IoId, PayloadId};
use crate::link::{Awaited, Recorded, Sync};
use crate::local_copy::ReadCheck;
use crate::primary::{Holder, Primary};
use crate::tracker::Tracker;
use crate::write::overlap::Class;

use super::throttle::Throttle;

/// Where steps are no longer compared, one of so many still is: what follows may be equal again.
const COMPARE_ONE_IN: u32 = 32;
/// Blocks acknowledged after which the peer is asked to flush, so that an interruption costs little (64 MiB).
const FLUSH_EVERY_BLOCKS: u64 = 16_384;

/// How far a step is.
#[derive(Clone, Debug, Hash)]
enum Stage {
    /// Waits for its range.
    Held,
    /// At the disk, and with digests at the peer's disk too.
    Loading { io: IoId, read: bool, theirs: Option<PayloadId>, check: Check },
    /// Its data is on the way; so many acks are awaited.
    Sending { io: IoId, acks: usize },
}

/// What a step finds out before it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Check {
    /// Nothing: the peer lacks all of it.
    Nothing,
    /// Whether every block holds something. If so all of it is sent; otherwise it is compared after all, so that holes
    /// stay holes.
    Zeros,
    /// Which blocks have other digests at the peer.
    Digests,
}

#[derive(Clone, Debug, Hash)]
struct Chunk {
    range: BlockRange,
    stage: Stage,
    /// Blocks that are bad in this copy: the peer is told their sums, for its own data may be what they should hold.
    bad: Vec<(BlockRange, Worth)>,
}

/// One resync.
#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct Source {
    chunks: BTreeMap<u64, Chunk>,
    cursor: u64,
    throttle: Throttle,
    acked_since_flush: u64,
    flushing: bool,
    /// Steps compared since one of them had an equal block.
    compared_in_vain: u32,
    /// Steps begun while those were enough.
    uncompared: u32,
    pub(crate) sent_blocks: u64,
    reported_blocks: u64,
}

impl Primary {
    /// Moves every peer's resync on. Called after every event.
    pub(crate) fn progress_resyncs(&mut self, core: &mut Core) {
        let outside = |sync: &Sync| !sync.is_member();
        if !self.peers.values().any(|peer| outside(&peer.sync) && peer.is_open()) {
            return;
        }
        let nodes: Vec<NodeId> = self.peers.keys().copied().collect();
        for node in nodes {
            let ready = self.peers.get(&node).is_some_and(|peer| peer.is_open());
            if ready && core.serves_locally() {
                self.begin_resync_if_due(core, node);
                self.start_chunks(core, node);
                self.enter_presync_if_clean(core, node);
                self.flush_presync_if_settled(core, node);
            }
        }
    }

    fn begin_resync_if_due(&mut self, core: &mut Core, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if !matches!(peer.sync, Sync::Waiting) || core.now < peer.resync_not_before {
            return;
        }
        let Some(session) = &peer.session else { return };
        // What the copy cannot vouch for is durable here before it may forget it.
        match peer.recorded {
            Recorded::Yes => {}
            Recorded::Writing => return,
            Recorded::No => {
                if core.record_tracker(node).is_some() {
                    peer.recorded = Recorded::Writing;
                }
                return;
            }
        }
        core.send(session.link, session.id, Message::ResyncBegin, None);
        peer.sync = Sync::Resyncing(Box::default());
        let remaining_blocks = core.trackers.get(node).map_or(0, |tracker| tracker.dirty.count());
        core.act(Action::Notify(Notice::Resync { node, remaining_blocks, sent_blocks: 0, done: false }));
    }

    /// Starts as many steps as the rate allows.
    fn start_chunks(&mut self, core: &mut Core, node: NodeId) {
        let (last_client, timing) = (self.last_client, core.timing);
        loop {
            let number = self.number();
            let (Some(peer), Some(tracker)) = (self.peers.get_mut(&node), core.trackers.get(node)) else { return };
            let Sync::Resyncing(source) = &mut peer.sync else { return };
            let allowed = source.throttle.steps_allowed(core.now, last_client, timing.resync_chunks_in_flight);
            if source.chunks.len() >= allowed {
                return;
            }
            let blocks_max = Throttle::blocks_allowed(core.now, last_client, timing.resync_chunk_blocks);
            let Some(range) = source.next_range(&tracker.dirty, blocks_max) else { return };
            source.throttle.on_step(core.now, last_client, range.count);
            source.chunks.insert(number, Chunk { range, stage: Stage::Held, bad: Vec::new() });
            if self.overlap.admit(Holder::Chunk(node, number), Class::Resync, smallvec![range]) {
                self.start_chunk(core, node, number);
            }
        }
    }

    /// The step holds its range: reads it, and asks for the peer's digests if the blocks may be equal.
    pub(crate) fn start_chunk(&mut self, core: &mut Core, node: NodeId, number: u64) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let (Sync::Resyncing(source), Some(session)) = (&mut peer.sync, &mut peer.session) else { return };
        let Some(chunk) = source.chunks.get_mut(&number) else { return };
        let range = chunk.range;
        let may_be_equal = core.trackers.get(node).is_none_or(|tracker| tracker.compare);
        let io = core.start_io(Purpose::Chunk(node, number));
        let in_vain = source.compared_in_vain >= core.timing.resync_compares_in_vain;
        source.uncompared += u32::from(may_be_equal && in_vain);
        let check = match may_be_equal {
            false => Check::Nothing,
            true if in_vain && !source.uncompared.is_multiple_of(COMPARE_ONE_IN) => Check::Zeros,
            true => Check::Digests,
        };
        chunk.stage = Stage::Loading { io, read: false, theirs: None, check };
        core.act(Action::ReadLocal { io, range, check: ReadCheck::Verify });
        if check == Check::Digests {
            let seq = session.await_ack(Awaited::Digest(number), core.active);
            core.send(session.link, session.id, Message::DigestRequest { seq, range }, None);
        }
    }

    /// The local read of a step is done.
    pub(crate) fn on_chunk_read(&mut self, core: &mut Core, node: NodeId, number: u64, io: IoId) {
        let Some(Stage::Loading { io: expected, read, .. }) = self.chunk_stage(node, number) else {
            return core.release(Some(PayloadId::Io(io)));
        };
        assert_eq!(*expected, io, "a step reads once");
        *read = true;
        self.compare_or_send(core, node, number);
    }

    /// The local read of a step is done, and some blocks are bad in the only copy in sync: the others are worth having.
    pub(crate) fn on_chunk_corrupt(
        &mut self,
        core: &mut Core,
        node: NodeId,
        number: u64,
        io: IoId,
        bad: Vec<BlockRange>,
    ) {
        if let Some(Sync::Resyncing(source)) = self.peers.get_mut(&node).map(|peer| &mut peer.sync)
            && let Some(chunk) = source.chunks.get_mut(&number)
        {
            let tracker = core.trackers.get(node);
            chunk.bad = bad.iter().flat_map(|range| by_worth(tracker, *range)).collect();
        }
        self.on_chunk_read(core, node, number, io);
    }

    /// The peer's digests of a step are here.
    pub(crate) fn on_chunk_digests(&mut self, core: &mut Core, node: NodeId, number: u64, payload: Option<PayloadId>) {
        let Some(Stage::Loading { theirs, .. }) = self.chunk_stage(node, number) else { return core.release(payload) };
        *theirs = payload;
        self.compare_or_send(core, node, number);
    }

    fn chunk_stage(&mut self, node: NodeId, number: u64) -> Option<&mut Stage> {
        let Sync::Resyncing(source) = &mut self.peers.get_mut(&node)?.sync else { return None };
        source.chunks.get_mut(&number).map(|chunk| &mut chunk.stage)
    }

    fn compare_or_send(&mut self, core: &mut Core, node: NodeId, number: u64) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let Sync::Resyncing(source) = &mut peer.sync else { return };
        let Some(chunk) = source.chunks.get(&number) else { return };
        let range = chunk.range;
        match &chunk.stage {
            Stage::Loading { io, read: true, theirs: theirs @ Some(_), check: Check::Digests } => {
                core.act(Action::CompareDigests { io: *io, range, theirs: *theirs });
            }
            Stage::Loading { io, read: true, check: Check::Zeros, .. } => {
                core.act(Action::CompareDigests { io: *io, range, theirs: None });
            }
            Stage::Loading { io, read: true, check: Check::Nothing, .. } => {
                let io = *io;
                self.send_chunk(core, node, number, io, vec![range]);
            }
            _ => {}
        }
    }

    /// The comparison is done: sends what differs.
    pub(crate) fn on_digests_compared(&mut self, core: &mut Core, io: IoId, differing: Vec<BlockRange>) {
        let found = self.peers.iter().find_map(|(node, peer)| {
            let Sync::Resyncing(source) = &peer.sync else { return None };
            let at =
                source.chunks.iter().find(|(_, chunk)| matches!(chunk.stage, Stage::Loading { io: i, .. } if i == io));
            at.map(|(number, _)| (*node, *number))
        });
        let Some((node, number)) = found else { return };
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let (Sync::Resyncing(source), Some(session)) = (&mut peer.sync, &mut peer.session) else { return };
        let Some(Chunk { range, stage: Stage::Loading { theirs, check, .. }, .. }) = source.chunks.get_mut(&number)
        else {
            return;
        };
        let (range, differs_wholly) = (*range, differing == [*range]);
        let theirs = theirs.take();
        core.release(theirs);
        if *check == Check::Zeros && !differs_wholly {
            *check = Check::Digests;
            let seq = session.await_ack(Awaited::Digest(number), core.active);
            return core.send(session.link, session.id, Message::DigestRequest { seq, range }, None);
        }
        if *check == Check::Digests {
            let in_vain = source.compared_in_vain.saturating_add(1);
            source.compared_in_vain = if differs_wholly { in_vain } else { 0 };
        }
        self.send_chunk(core, node, number, io, differing);
    }

    fn send_chunk(&mut self, core: &mut Core, node: NodeId, number: u64, io: IoId, ranges: Vec<BlockRange>) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let bad = matches!(&peer.sync, Sync::Resyncing(s) if s.chunks.get(&number).is_some_and(|c| !c.bad.is_empty()));
        if bad && !peer.reads_for_us() {
            // Such a copy cannot be told that a block is bad: it stays out of sync rather than call it good.
            peer.resync_not_before = core.now + core.timing.readmit_backoff.1;
            return self.drop_session(core, node, "blocks are bad here, and the peer's software is too old to be told");
        }
        let (Sync::Resyncing(source), Some(session)) = (&mut peer.sync, &mut peer.session) else { return };
        let Some(chunk) = source.chunks.get_mut(&number) else { return };
        // What is known to be bad is sent though it be equal: the target has taken its sums from what it holds.
        let bad: Vec<BlockRange> = chunk.bad.iter().map(|(range, _)| *range).collect();
        let good = split(&ranges, &bad).into_iter().filter(|(_, bad)| !bad).map(|(range, _)| (range, Worth::Sound));
        let ranges: Vec<(BlockRange, Worth)> = good.chain(chunk.bad.iter().copied()).collect();
        chunk.stage = Stage::Sending { io, acks: ranges.len() };
        for (range, worth) in &ranges {
            let seq = session.await_ack(Awaited::Chunk(number), core.active);
            let slice =
                PayloadSlice { id: PayloadId::Io(io), first: range.start - chunk.range.start, blocks: range.count };
            let message = Message::ResyncData { seq, range: *range, kind: WriteKind::Data, worth: *worth };
            core.send(session.link, session.id, message, Some(slice));
            source.sent_blocks += range.count;
        }
        self.finish_chunk_if_acked(core, node, number);
    }

    /// The peer has stored one range of a step.
    pub(crate) fn on_chunk_acked(&mut self, core: &mut Core, node: NodeId, number: u64) {
        if let Some(Stage::Sending { acks, .. }) = self.chunk_stage(node, number) {
            *acks -= 1;
            self.finish_chunk_if_acked(core, node, number);
        }
    }

    fn finish_chunk_if_acked(&mut self, core: &mut Core, node: NodeId, number: u64) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let (Sync::Resyncing(source), Some(session)) = (&mut peer.sync, &mut peer.session) else { return };
        let Some(Chunk { range, stage: Stage::Sending { io, acks: 0 }, .. }) = source.chunks.get(&number) else {
            return;
        };
        let (range, io) = (*range, *io);
        source.chunks.remove(&number);
        core.release(Some(PayloadId::Io(io)));
        let Some(tracker) = core.trackers.get_mut(node) else { return };
        tracker.acked(range);
        source.acked_since_flush += range.count;
        let remaining_blocks = tracker.dirty.count();
        if source.acked_since_flush >= FLUSH_EVERY_BLOCKS && !source.flushing {
            source.acked_since_flush = 0;
            source.flushing = true;
            tracker.flushing.absorb(&mut tracker.unflushed);
            let seq = session.await_ack(Awaited::ResyncFlush, core.active);
            core.send(session.link, session.id, Message::Flush { seq }, None);
        }
        if source.sent_blocks >= source.reported_blocks + FLUSH_EVERY_BLOCKS {
            source.reported_blocks = source.sent_blocks;
            let sent_blocks = source.sent_blocks;
            core.act(Action::Notify(Notice::Resync { node, remaining_blocks, sent_blocks, done: false }));
        }
        let started = self.overlap.release(Holder::Chunk(node, number));
        self.start_holders(core, &started);
    }

    /// Nothing is dirty: from here on the peer's acks are required.
    fn enter_presync_if_clean(&mut self, core: &mut Core, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let (Sync::Resyncing(source), Some(session)) = (&peer.sync, &peer.session) else { return };
        let dirty = core.trackers.get(node).is_none_or(|tracker| !tracker.dirty.is_empty());
        if dirty || !source.chunks.is_empty() || source.flushing {
            return;
        }
        let sent_blocks = source.sent_blocks;
        core.send(session.link, session.id, Message::PreSync, None);
        peer.sync = Sync::PreSync { barrier: session.last_seq(), entered: false, flushing: false };
        core.act(Action::Notify(Notice::Resync { node, remaining_blocks: 0, sent_blocks, done: true }));
    }

    /// Everything sent before PreSync is acknowledged: the peer flushes it, for it may be counted on from the Admit on.
    fn flush_presync_if_settled(&mut self, core: &mut Core, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let (Sync::PreSync { barrier, entered: true, flushing }, Some(session)) = (&mut peer.sync, &mut peer.session)
        else {
            return;
        };
        let settled = session.pending.keys().next().is_none_or(|seq| *seq > *barrier);
        if settled && !*flushing {
            *flushing = true;
            let seq = session.await_ack(Awaited::PreSyncFlush, core.active);
            core.send(session.link, session.id, Message::Flush { seq }, None);
        }
    }

    /// A flush that belongs to a resync is done.
    pub(crate) fn on_resync_flushed(&mut self, core: &mut Core, node: NodeId) {
        let version = core.version();
        let Some(peer) = self.peers.get_mut(&node) else { return };
        match &mut peer.sync {
            Sync::Resyncing(source) => {
                source.flushing = false;
                core.progress_is_durable(node);
            }
            Sync::PreSync { .. } => {
                peer.sync = Sync::Admitting { version, proposed: false };
                self.flushed_by_resync(core, node);
            }
            _ => {}
        }
    }

    /// The session is over: steps are given up. Their blocks are still dirty.
    pub(crate) fn end_resync(&mut self, core: &mut Core, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let Sync::Resyncing(source) = std::mem::replace(&mut peer.sync, Sync::Waiting) else { return };
        for (number, chunk) in source.chunks {
            match chunk.stage {
                Stage::Held => {}
                Stage::Loading { io, read, theirs, .. } => {
                    core.release(theirs);
                    core.release(read.then_some(PayloadId::Io(io)));
                }
                Stage::Sending { io, .. } => core.release(Some(PayloadId::Io(io))),
            }
            let started = self.overlap.release(Holder::Chunk(node, number));
            self.start_holders(core, &started);
        }
    }

    /// This node can be a source no more: gives up every resync.
    pub(crate) fn abandon_chunks(&mut self, core: &mut Core) {
        let nodes: Vec<NodeId> = self.peers.keys().copied().collect();
        for node in nodes {
            let resyncing = self.peers.get(&node).is_some_and(|peer| matches!(peer.sync, Sync::Resyncing(_)));
            if resyncing {
                self.drop_session(core, node, "the resync is given up");
            }
        }
    }

    /// When a held-back resync may go on.
    pub(crate) fn resync_deadline(&self, now: proto::Timestamp) -> proto::Timestamp {
        let deadline = |sync: &Sync| match sync {
            Sync::Resyncing(source) if source.throttle.next_allowed() > now => source.throttle.next_allowed(),
            _ => proto::Timestamp::NEVER,
        };
        self.peers
            .values()
            .filter(|peer| peer.is_open())
            .map(|peer| deadline(&peer.sync))
            .min()
            .unwrap_or(proto::Timestamp::NEVER)
    }
}

/// Cuts a bad range by what the peer may hold: perhaps the right data, or, of blocks written without it, what is old.
fn by_worth(tracker: Option<&Tracker>, range: BlockRange) -> Vec<(BlockRange, Worth)> {
    let mut parts: Vec<(BlockRange, Worth)> = Vec::new();
    for block in range.blocks() {
        let missed = tracker.is_some_and(|tracker| tracker.has_missed(block));
        let worth = if missed { Worth::Lost } else { Worth::Bad };
        match parts.last_mut() {
            Some((part, kind)) if *kind == worth => part.count += 1,
            _ => parts.push((BlockRange::new(block, 1), worth)),
        }
    }
    parts
}

/// Cuts `ranges` so that each part is either bad or free of bad blocks.
pub(crate) fn split(ranges: &[BlockRange], bad: &[BlockRange]) -> Vec<(BlockRange, bool)> {
    let mut parts: Vec<(BlockRange, bool)> = Vec::new();
    for block in ranges.iter().flat_map(|range| range.blocks()) {
        let is_bad = bad.iter().any(|bad| bad.contains(BlockRange::new(block, 1)));
        match parts.last_mut() {
            Some((range, kind)) if range.end() == block && *kind == is_bad => range.count += 1,
            _ => parts.push((BlockRange::new(block, 1), is_bad)),
        }
    }
    parts
}

impl Source {
    /// The next dirty run that no step in flight covers, going round from where the last one ended.
    fn next_range(&mut self, dirty: &crate::dirty_bitmap::DirtyBitmap, blocks_max: u64) -> Option<BlockRange> {
        let mut from = self.cursor;
        let mut wrapped = false;
        loop {
            let Some(run) = dirty.next_run(from, blocks_max) else {
                if wrapped || self.cursor == 0 {
                    self.cursor = 0;
                    return None;
                }
                (from, wrapped) = (0, true);
                continue;
            };
            if wrapped && run.start >= self.cursor {
                return None;
            }
            match self.chunks.values().find(|chunk| chunk.range.overlaps(run)) {
                Some(chunk) if chunk.range.start > run.start => {
                    let run = BlockRange::new(run.start, chunk.range.start - run.start);
                    self.cursor = run.end();
                    return Some(run);
                }
                Some(chunk) => from = chunk.range.end(),
                None => {
                    self.cursor = run.end();
                    return Some(run);
                }
            }
        }
    }
}
