//! Blocks asked of a peer's copy: in the place of local ones that are bad, or because there is no local copy.
//!
//! Whoever asks holds the range, so what comes back is current. Only a committed member is asked (its copy has every
//! acknowledged write), and a repair writes the answer only where it matches our own checksum.

use std::collections::VecDeque;

use proto::peer::message::Message;
use proto::{BlockRange, NodeId};

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
    Writing { payload: PayloadId },
}

/// See the module's header.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Fetch {
    asker: Asker,
    want: Want,
    todo: VecDeque<BlockRange>,
    stage: Stage,
}

impl Fetch {
    /// A read without a local copy.
    pub(crate) fn read(number: u64, range: BlockRange) -> Self {
        Self { asker: Asker::Read(number), want: Want::Data, todo: VecDeque::from([range]), stage: Stage::Idle }
    }

    /// The old content for a partial write without a local copy.
    pub(crate) fn edges(number: u64, range: BlockRange) -> Self {
        Self { asker: Asker::Merge(number), want: Want::Data, todo: VecDeque::from([range]), stage: Stage::Idle }
    }

    /// Bad blocks of the local copy. A scrub's are asked for one by one: one that is bad everywhere stands in no other's way.
    pub(crate) fn repair(asker: Asker, bad: Vec<BlockRange>) -> Self {
        let todo = match asker {
            Asker::Scrub(_) => {
                bad.iter().flat_map(|range| range.blocks()).map(|block| BlockRange::new(block, 1)).collect()
            }
            Asker::Read(_) | Asker::Merge(_) | Asker::Orphan(_) => bad.into(),
        };
        Self { asker, want: Want::Repair, todo, stage: Stage::Idle }
    }
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
            let able = |peer: &Peer| peer.sync.is_member() && peer.is_open() && peer.reads_for_us();
            let hope = self.peers.values().any(|peer| peer.sync.is_member() && peer.may_read_for_us());
            match self.peers.iter_mut().find(|(_, peer)| able(peer)) {
                Some((node, peer)) => {
                    let Some(fetch) = self.fetches.get_mut(&number) else { continue };
                    let (Some(session), Some(range)) = (peer.session.as_mut(), fetch.todo.front()) else { continue };
                    fetch.stage = Stage::Asked(*node);
                    let seq = session.await_ack(Awaited::Fetch(number), core.active);
                    core.send(session.link, session.id, Message::ReadRequest { seq, range: *range }, None);
                }
                // While a member may come back, its copy may be good.
                None if hope => {}
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
                fetch.stage = Stage::Writing { payload };
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

    /// The blocks asked for last are good nowhere. A scrub goes on with the others.
    pub(crate) fn on_bad_everywhere(&mut self, core: &mut Core, number: u64) {
        match self.fetches.get(&number).map(|fetch| fetch.asker) {
            Some(Asker::Scrub(_)) => self.fetch_next(core, number),
            _ => self.fail_fetch(core, number),
        }
    }

    fn fetch_next(&mut self, core: &mut Core, number: u64) {
        let Some(fetch) = self.fetches.get_mut(&number) else { return };
        if let Stage::Writing { payload } = fetch.stage {
            core.release(Some(payload));
        }
        fetch.stage = Stage::Idle;
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
        if let Stage::Writing { payload } = fetch.stage {
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
        if let Stage::Writing { payload } = fetch.stage {
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
            Purpose::Repair(number) => self.on_bad_everywhere(core, number),
            Purpose::Scrub(number) => self.on_scrub_read(core, number, io, bad),
            Purpose::Chunk(node, number) => self.on_chunk_corrupt(core, node, number, io, bad),
            _ => {}
        }
    }
}
