//! Blocks asked of a peer's copy: in the place of local ones that are bad, or because there is no local copy.
//!
//! Whoever asks holds the range, so what comes back is current. Only committed members are asked (their copies have every
//! acknowledged write), one after the other until one has the blocks good; a repair writes the answer only where it matches
//! our own checksum.

use std::collections::VecDeque;

use proto::peer::message::Message;
use proto::{BlockRange, NodeId};
use smallvec::SmallVec;

use crate::action::{Action, Refusal};
use crate::core::{Core, Purpose};
use crate::event::{IoId, PayloadId};
use crate::link::{Awaited, Peer};
use crate::primary::Primary;

/// Times one operation is tried again after a repair.
pub(crate) const REPAIRS_MAX: u32 = 3;

/// For whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Asker {
    /// A client's read.
    Read(u64),
    /// The edges of a client's partial write.
    Merge(u64),
    /// A step of a scrub.
    Scrub(u64),
    /// A step of a scrub that was given up while a repair was being written: the range is held until that has landed.
    Orphan(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Want {
    /// The blocks themselves.
    Data,
    /// To mend the local copy.
    Repair,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    /// Nobody was asked yet.
    Idle,
    /// This peer was.
    Asked(NodeId),
    /// Its answer is being written.
    Writing { node: NodeId, payload: PayloadId },
}

/// See the module's header.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Fetch {
    asker: Asker,
    want: Want,
    todo: VecDeque<BlockRange>,
    stage: Stage,
    /// Peers whose copy of what is asked for now is not good.
    bad_at: SmallVec<[NodeId; 2]>,
}

impl Fetch {
    /// A read without a local copy.
    pub(crate) fn read(number: u64, range: BlockRange) -> Self {
        Self::new(Asker::Read(number), Want::Data, VecDeque::from([range]))
    }

    /// The old content for a partial write without a local copy.
    pub(crate) fn edges(number: u64, range: BlockRange) -> Self {
        Self::new(Asker::Merge(number), Want::Data, VecDeque::from([range]))
    }

    /// Bad blocks of the local copy. A scrub's are asked for one by one: one that is bad everywhere stands in no other's way.
    pub(crate) fn repair(asker: Asker, bad: Vec<BlockRange>) -> Self {
        let todo = match asker {
            Asker::Scrub(_) => bad.into_iter().flat_map(one_by_one).collect(),
            Asker::Read(_) | Asker::Merge(_) | Asker::Orphan(_) => bad.into(),
        };
        Self::new(asker, Want::Repair, todo)
    }

    fn new(asker: Asker, want: Want, todo: VecDeque<BlockRange>) -> Self {
        Self { asker, want, todo, stage: Stage::Idle, bad_at: SmallVec::new() }
    }
}

fn one_by_one(range: BlockRange) -> impl Iterator<Item = BlockRange> {
    range.blocks().map(|block| BlockRange::new(block, 1))
}

impl Primary {
    /// Begins to fetch.
    pub(crate) fn fetch(&mut self, core: &mut Core, fetch: Fetch) {
        let number = self.number();
        self.fetches.insert(number, fetch);
        self.progress_fetches(core);
    }

    /// Asks for what nobody has been asked for yet. Called after every event.
    pub(crate) fn progress_fetches(&mut self, core: &mut Core) {
        if self.fetches.is_empty() {
            return;
        }
        let idle = |fetch: &Fetch| fetch.stage == Stage::Idle;
        let numbers: Vec<u64> = self.fetches.iter().filter(|(_, fetch)| idle(fetch)).map(|(n, _)| *n).collect();
        for number in numbers {
            // Another one's failure may have set it going.
            let Some(fetch) = self.fetches.get_mut(&number).filter(|fetch| idle(fetch)) else { continue };
            let untried = |node: &NodeId, peer: &Peer| peer.sync.is_member() && !fetch.bad_at.contains(node);
            let able = |node: &NodeId, peer: &Peer| untried(node, peer) && peer.is_open() && peer.reads_for_us();
            let hope = self.peers.iter().any(|(node, peer)| untried(node, peer) && peer.may_read_for_us());
            let asked = !fetch.bad_at.is_empty();
            match self.peers.iter_mut().find(|(node, peer)| able(node, peer)) {
                Some((node, peer)) => {
                    let (Some(session), Some(range)) = (peer.session.as_mut(), fetch.todo.front()) else { continue };
                    fetch.stage = Stage::Asked(*node);
                    let seq = session.await_ack(Awaited::Fetch(number), core.active);
                    core.send(session.link, session.id, Message::ReadRequest { seq, range: *range }, None);
                }
                // While a member may come back, its copy may be good.
                None if hope => {}
                None if asked => self.on_bad_everywhere(core, number),
                None => self.fail_fetch(core, number),
            }
        }
    }

    /// The blocks asked for.
    pub(crate) fn on_fetched(&mut self, core: &mut Core, number: u64, payload: Option<PayloadId>) {
        let Some(fetch) = self.fetches.get_mut(&number) else { return core.release(payload) };
        let (Some(range), Some(payload)) = (fetch.todo.front().copied(), payload) else {
            return self.fail_fetch(core, number);
        };
        let asker = fetch.asker;
        match fetch.want {
            Want::Repair if core.serves_locally() => {
                let Stage::Asked(node) = fetch.stage else { return core.release(Some(payload)) };
                fetch.stage = Stage::Writing { node, payload };
                let io = core.start_io(Purpose::Repair(number));
                core.act(Action::RepairLocal { io, range, payload });
            }
            Want::Repair => {
                core.release(Some(payload));
                self.fail_fetch(core, number);
            }
            Want::Data => {
                self.fetches.remove(&number);
                match asker {
                    Asker::Read(read) => self.on_read_fetched(core, read, payload),
                    Asker::Merge(write) => self.on_edges_fetched(core, write, payload),
                    Asker::Scrub(_) | Asker::Orphan(_) => core.release(Some(payload)),
                }
            }
        }
    }

    /// A repair has been written.
    pub(crate) fn on_repaired(&mut self, core: &mut Core, number: u64) {
        let Some(fetch) = self.fetches.get(&number) else { return };
        if let (Asker::Scrub(step), Some(range)) = (fetch.asker, fetch.todo.front()) {
            let count = range.count;
            self.on_scrub_mended(step, count);
        }
        self.fetch_next(core, number);
    }

    /// The peer's copy of the blocks asked for last is bad, or differs from what ours should be: the next one is asked.
    pub(crate) fn on_bad_at_peer(&mut self, core: &mut Core, number: u64) {
        let Some(fetch) = self.fetches.get_mut(&number) else { return };
        if matches!(fetch.asker, Asker::Orphan(_)) {
            return self.fail_fetch(core, number);
        }
        match std::mem::replace(&mut fetch.stage, Stage::Idle) {
            Stage::Idle => return,
            Stage::Asked(node) => fetch.bad_at.push(node),
            Stage::Writing { node, payload } => {
                fetch.bad_at.push(node);
                core.release(Some(payload));
            }
        }
        self.progress_fetches(core);
    }

    /// No member has all of the blocks asked for last. For a repair each of them may still be good somewhere; a scrub goes
    /// on with the others.
    fn on_bad_everywhere(&mut self, core: &mut Core, number: u64) {
        let Some(fetch) = self.fetches.get_mut(&number) else { return };
        match fetch.todo.front().copied() {
            Some(range) if fetch.want == Want::Repair && range.count > 1 => {
                fetch.todo.pop_front();
                range.blocks().rev().for_each(|block| fetch.todo.push_front(BlockRange::new(block, 1)));
                fetch.bad_at.clear();
                self.progress_fetches(core);
            }
            _ if matches!(fetch.asker, Asker::Scrub(_)) => self.fetch_next(core, number),
            _ => self.fail_fetch(core, number),
        }
    }

    fn fetch_next(&mut self, core: &mut Core, number: u64) {
        let Some(fetch) = self.fetches.get_mut(&number) else { return };
        if let Stage::Writing { payload, .. } = fetch.stage {
            core.release(Some(payload));
        }
        fetch.stage = Stage::Idle;
        fetch.bad_at.clear();
        fetch.todo.pop_front();
        if !fetch.todo.is_empty() && !matches!(fetch.asker, Asker::Orphan(_)) {
            return self.progress_fetches(core);
        }
        let asker = fetch.asker;
        self.fetches.remove(&number);
        match asker {
            Asker::Read(read) => self.start_read(core, read),
            Asker::Merge(write) => self.start_write(core, write),
            Asker::Scrub(step) => self.on_scrub_repaired(core, step),
            Asker::Orphan(step) => self.release_scrub_range(core, step),
        }
    }

    /// No good copy of these blocks is to be had: only the operation that needs them fails.
    pub(crate) fn fail_fetch(&mut self, core: &mut Core, number: u64) {
        let Some(fetch) = self.fetches.remove(&number) else { return };
        if let Stage::Writing { payload, .. } = fetch.stage {
            core.release(Some(payload));
        }
        match fetch.asker {
            Asker::Read(read) => self.refuse_read(core, read, Refusal::Io),
            Asker::Merge(write) => self.refuse_write(core, write, Refusal::Io),
            Asker::Scrub(step) => self.on_scrub_repaired(core, step),
            Asker::Orphan(step) => self.release_scrub_range(core, step),
        }
    }

    /// The session with this peer is over: others are asked, or it again.
    pub(crate) fn unask(&mut self, node: NodeId) {
        for fetch in self.fetches.values_mut().filter(|fetch| fetch.stage == Stage::Asked(node)) {
            fetch.stage = Stage::Idle;
        }
    }

    /// Nobody asks any more. Answers that are still to come are dropped.
    pub(crate) fn forget_fetch(&mut self, core: &mut Core, asker: Asker) {
        let found = self.fetches.iter().find(|(_, fetch)| fetch.asker == asker).map(|(number, _)| *number);
        found.into_iter().for_each(|number| self.drop_fetch(core, number));
    }

    /// The step of a scrub is given up. True if a repair for it is being written, which must land before anything else.
    pub(crate) fn orphan_fetch(&mut self, core: &mut Core, step: u64) -> bool {
        let found = self.fetches.values_mut().find(|fetch| fetch.asker == Asker::Scrub(step));
        match found {
            Some(fetch) if matches!(fetch.stage, Stage::Writing { .. }) => {
                fetch.asker = Asker::Orphan(step);
                true
            }
            _ => {
                self.forget_fetch(core, Asker::Scrub(step));
                false
            }
        }
    }

    /// The local disk is lost: what was being written to it is of no concern any more.
    pub(crate) fn drop_orphans(&mut self, core: &mut Core) {
        let orphan = |fetch: &Fetch| matches!(fetch.asker, Asker::Orphan(_));
        let numbers: Vec<u64> = self.fetches.iter().filter(|(_, fetch)| orphan(fetch)).map(|(n, _)| *n).collect();
        numbers.into_iter().for_each(|number| self.fail_fetch(core, number));
    }

    /// Its answer is not wanted any more.
    pub(crate) fn drop_fetch(&mut self, core: &mut Core, number: u64) {
        let Some(fetch) = self.fetches.remove(&number) else { return };
        if let Stage::Writing { payload, .. } = fetch.stage {
            core.release(Some(payload));
        }
    }

    /// A local read found bad blocks: they are fetched from a peer, and the read is done again.
    pub(crate) fn on_corrupt(&mut self, core: &mut Core, purpose: &Purpose, io: IoId, bad: Vec<BlockRange>) {
        match *purpose {
            Purpose::Read(number) => {
                core.release(Some(PayloadId::Io(io)));
                self.on_read_corrupt(core, number, bad);
            }
            Purpose::Merge(number) => self.on_edges_corrupt(core, number, bad),
            Purpose::Repair(number) => self.on_bad_at_peer(core, number),
            Purpose::Scrub(number) => self.on_scrub_read(core, number, io, bad),
            Purpose::Chunk(node, number) => self.on_chunk_corrupt(core, node, number, io, bad),
            _ => {}
        }
    }
}
