//! A client's read: holds its range, reads the local copy, and only then checks the lease. One that confirms what others keep of
//! the volume has no range, and only checks the lease.

use proto::{BlockRange, NodeId, SessionId, Timestamp};
use smallvec::{SmallVec, smallvec};

use crate::action::{Action, Refusal};
use crate::core::{Core, Purpose};
use crate::event::{IoId, OpId, PayloadId, Request};
use crate::fetch::{Asker, Fetch, REPAIRS_MAX};
use crate::link::Sync;
use crate::local_copy::ReadCheck;
use crate::primary::{Holder, Primary};
use crate::write::overlap::Class;

/// How far a read is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    /// Waits for its range.
    Held,
    /// At the local disk.
    Reading,
    /// Blocks of it come from a peer.
    Fetching,
    /// The data is at hand; waits for the lease.
    Loaded(PayloadId),
    /// There is none; waits for the lease.
    Nothing,
}

/// One read.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Read {
    pub(crate) op: OpId,
    pub(crate) range: BlockRange,
    stage: Stage,
    /// Times it was done again after a repair.
    repairs: u32,
    /// With confirmed reads: per peer, the session and the first beacon sent after the read arrived.
    needs: SmallVec<[(NodeId, SessionId, u64); 2]>,
}

impl Read {
    /// The payload it holds, if any.
    pub(crate) fn loaded(&self) -> Option<PayloadId> {
        match self.stage {
            Stage::Loaded(payload) => Some(payload),
            Stage::Held | Stage::Reading | Stage::Fetching | Stage::Nothing => None,
        }
    }

    /// Nothing but the lease is waited for.
    fn is_at_hand(&self) -> bool {
        matches!(self.stage, Stage::Loaded(_) | Stage::Nothing)
    }

    /// What the client has asked for.
    pub(crate) fn request(&self) -> Request {
        match self.stage {
            Stage::Nothing => Request::Confirm,
            Stage::Held | Stage::Reading | Stage::Fetching | Stage::Loaded(_) => Request::Read { range: self.range },
        }
    }
}

impl Primary {
    pub(crate) fn on_client_read(&mut self, core: &mut Core, op: OpId, range: BlockRange) {
        let number = self.number();
        self.reads.insert(number, Read { op, range, stage: Stage::Held, repairs: 0, needs: SmallVec::new() });
        if self.overlap.admit(Holder::Read(number), Class::Read, smallvec![range]) {
            self.start_read(core, number);
        }
        if core.timing.confirmed_reads {
            self.confirm_read(core, number);
            self.send_wanted_beacons(core);
        }
    }

    pub(crate) fn on_client_confirm(&mut self, core: &mut Core, op: OpId) {
        let number = self.number();
        let range = BlockRange::new(0, 0);
        self.reads.insert(number, Read { op, range, stage: Stage::Nothing, repairs: 0, needs: SmallVec::new() });
        self.complete_read_if_leased(core, number);
        self.send_wanted_beacons(core);
    }

    pub(crate) fn start_read(&mut self, core: &mut Core, number: u64) {
        let Some(read) = self.reads.get_mut(&number) else { return };
        let range = read.range;
        if !core.serves_locally() {
            read.stage = Stage::Fetching;
            return self.fetch(core, Fetch::read(number, range));
        }
        read.stage = Stage::Reading;
        let io = core.start_io(Purpose::Read(number));
        core.act(Action::ReadLocal { io, range, check: ReadCheck::Verify });
    }

    pub(crate) fn on_local_read_done(&mut self, core: &mut Core, number: u64, io: IoId) {
        let Some(read) = self.reads.get_mut(&number) else { return core.release(Some(PayloadId::Io(io))) };
        read.stage = Stage::Loaded(PayloadId::Io(io));
        self.complete_read_if_leased(core, number);
    }

    /// Blocks of it are bad here.
    pub(crate) fn on_read_corrupt(&mut self, core: &mut Core, number: u64, bad: Vec<BlockRange>) {
        let Some(read) = self.reads.get_mut(&number) else { return };
        read.stage = Stage::Fetching;
        read.repairs += 1;
        if read.repairs > REPAIRS_MAX {
            return self.refuse_read(core, number, Refusal::Io);
        }
        self.fetch(core, Fetch::repair(Asker::Read(number), bad));
    }

    /// A peer's copy of it.
    pub(crate) fn on_read_fetched(&mut self, core: &mut Core, number: u64, payload: PayloadId) {
        let Some(read) = self.reads.get_mut(&number) else { return core.release(Some(payload)) };
        read.stage = Stage::Loaded(payload);
        self.complete_read_if_leased(core, number);
    }

    /// It cannot be answered.
    pub(crate) fn refuse_read(&mut self, core: &mut Core, number: u64, why: Refusal) {
        let Some(read) = self.reads.remove(&number) else { return };
        core.release(read.loaded());
        core.act(Action::Refuse { op: read.op, why });
        let started = self.overlap.release(Holder::Read(number));
        self.start_holders(core, &started);
    }

    /// Answers every read whose data is at hand, if the lease allows.
    pub(crate) fn complete_ready_reads(&mut self, core: &mut Core) {
        if self.reads.is_empty() {
            return;
        }
        let ready: SmallVec<[u64; 16]> =
            self.reads.iter().filter(|(_, read)| read.is_at_hand()).map(|(number, _)| *number).collect();
        ready.into_iter().for_each(|number| self.complete_read_if_leased(core, number));
    }

    fn complete_read_if_leased(&mut self, core: &mut Core, number: u64) {
        if !self.holds_lease(core.now) || !self.confirm_read(core, number) {
            return;
        }
        let Some(read) = self.reads.get(&number).filter(|read| read.is_at_hand()) else { return };
        core.act(Action::Complete { op: read.op, data: read.loaded() });
        self.reads.remove(&number);
        let started = self.overlap.release(Holder::Read(number));
        self.start_holders(core, &started);
    }

    /// The nodes that could take over, as far as this one can know: committed members and an Admit of unknown fate.
    fn lessors(&self) -> impl Iterator<Item = NodeId> + '_ {
        let counts = |sync: &Sync| matches!(sync, Sync::Member { .. } | Sync::Admitting { .. });
        self.peers.iter().filter(move |(_, peer)| counts(&peer.sync)).map(|(node, _)| *node)
    }

    /// True when no other node can be primary now: every one that could take over has promised not to (a sole member
    /// needs no promise).
    pub(crate) fn holds_lease(&self, now: Timestamp) -> bool {
        self.lessors().all(|node| {
            let session = self.peers.get(&node).and_then(|peer| peer.session.as_ref());
            session.is_some_and(|session| session.lease.is_valid(now))
        })
    }

    /// With confirmed reads: true when every lessor has granted a beacon that was sent after the read arrived.
    fn confirm_read(&mut self, core: &Core, number: u64) -> bool {
        if !core.timing.confirmed_reads {
            return true;
        }
        let lessors: SmallVec<[NodeId; 2]> = self.lessors().collect();
        let Some(read) = self.reads.get_mut(&number) else { return false };
        let mut confirmed = true;
        for node in lessors {
            let Some(session) = self.peers.get(&node).and_then(|peer| peer.session.as_ref()) else { return false };
            let known = read.needs.iter().find(|need| (need.0, need.1) == (node, session.id)).map(|need| need.2);
            let need = known.unwrap_or_else(|| {
                let next = session.lease.last_number() + 1;
                read.needs.retain(|need| need.0 != node);
                read.needs.push((node, session.id, next));
                next
            });
            confirmed &= session.lease.confirmed() >= need;
        }
        confirmed
    }

    /// With confirmed reads: sends a beacon to each lessor that some read awaits one from, one in flight at a time.
    pub(crate) fn send_wanted_beacons(&mut self, core: &mut Core) {
        if !core.timing.confirmed_reads || self.reads.is_empty() {
            return;
        }
        let lessors: SmallVec<[NodeId; 2]> = self.lessors().collect();
        for node in lessors {
            let Some(session) = self.peers.get(&node).and_then(|peer| peer.session.as_ref()) else { continue };
            let lease = &session.lease;
            if lease.last_number() != lease.acked() {
                continue;
            }
            let wanted = self.reads.values().any(|read| {
                read.needs.iter().any(|need| need.0 == node && need.1 == session.id && need.2 > lease.last_number())
            });
            if wanted {
                self.send_beacon(core, node);
            }
        }
    }
}
