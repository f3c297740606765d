//! The shared core's orders to the activity log and the bitmaps: which extents are heated and cooled when, and which
//! copies are tracked. The state is in `activity_log` and `tracker`.

use proto::peer::message::{Seq, Uncertain};
use proto::{BlockRange, ConfigVersion, NodeId};

use crate::action::Action;
use crate::activity_log::{COOL_MAX, Extents, User};
use crate::core::{Core, Disk, Purpose};
use crate::dirty_bitmap::{DirtyBitmap, extent_range};
use crate::event::{IoId, IoResult};
use crate::local_copy::Hot;
use crate::tracker::Beginning;

impl Core {
    /// Pins `extents` for `user`, or has them heated and lets it wait. Returns `None` when it may go on, else the extents
    /// that begin to be heated.
    pub(crate) fn admit_extents(&mut self, user: User, extents: Extents) -> Option<Vec<u64>> {
        let cold = self.log.admit(user, extents)?;
        self.heat(cold.clone());
        Some(cold)
    }

    /// The disk was attached: what its log and its bitmaps say.
    pub(crate) fn attach_log(&mut self, hot: Hot, bitmaps: Vec<Vec<u8>>) {
        self.log.attach(hot, self.extents(), self.active);
        self.trackers.attach(bitmaps);
        self.follow_members(Beginning::Hot);
    }

    /// Extents of the volume, 0 while its size is not known.
    fn extents(&self) -> u64 {
        self.blocks().div_ceil(proto::EXTENT_BLOCKS)
    }

    /// Makes cold extents hot.
    pub(crate) fn heat(&mut self, cold: Vec<u64>) {
        if !cold.is_empty() {
            let io = self.start_io(Purpose::Heat);
            self.log.heat(io, cold.clone());
            self.act(Action::PersistActivityLog { io, extents: cold });
        }
    }

    /// A heating has ended. Returns those who may go on, and those whose extents could not be made hot.
    pub(crate) fn on_heated(&mut self, io: IoId, result: IoResult) -> (Vec<User>, Vec<User>) {
        let extents = self.log.heated(io, result == IoResult::Ok, self.active);
        let failed = if result == IoResult::Ok { Vec::new() } else { self.log.fail(&extents) };
        (self.log.ready(), failed)
    }

    /// Makes idle extents cold; `settled` as the primary has told, or everything.
    pub(crate) fn cool_idle(&mut self, settled: Seq) {
        let due = self.now >= self.next_cooling && self.log.len() > 0;
        if !due || !matches!(self.disk, Disk::Attached(_)) || !self.is_drained() {
            return;
        }
        self.next_cooling = self.now + self.timing.beacon_interval;
        let idle = self.timing.extent_idle.0;
        if self.active.0 >= idle {
            let idle_since = proto::Timestamp(self.active.0 - idle);
            self.cool(Purpose::Cool, idle_since, settled, COOL_MAX);
        }
    }

    /// At the end of an orderly stop: everything that may become cold does. False if there is nothing. A backup among
    /// others does not know what they hold, so its extents stay hot; a pair's two logs speak for both. It was a pair if it
    /// is one by a configuration that is not older than what came in the stream.
    pub(crate) fn cool_all(&mut self, was_primary: bool) -> bool {
        // What an earlier role has begun may still be written: its extents stay hot then.
        if !self.is_drained() {
            return false;
        }
        let pair = self.follows_primary() && self.config.as_ref().is_some_and(|config| config.replicas.len() <= 2);
        let settled = if was_primary || pair { Seq(u64::MAX) } else { Seq(0) };
        self.cool(Purpose::StopCool, proto::Timestamp::NEVER, settled, usize::MAX)
    }

    fn cool(&mut self, purpose: Purpose, idle_since: proto::Timestamp, settled: Seq, max: usize) -> bool {
        // Before this run is registered nothing is tracked here, and only the log tells what has been written.
        if self.bitmaps_busy.is_some() || !self.is_registered() {
            return false;
        }
        let io = self.start_io(purpose);
        let extents = self.log.begin_cooling(io, idle_since, settled, max);
        if extents.is_empty() {
            self.io.remove(&io);
            return false;
        }
        self.bitmaps_busy = Some(io);
        let pages = |(_, tracker): (NodeId, &mut crate::tracker::Tracker)| tracker.pages_of(extents.iter().copied());
        let bitmaps = self.trackers.iter_mut().flat_map(pages).collect();
        self.act(Action::CoolExtents { io, extents, bitmaps });
        true
    }

    /// A cooling has ended: what is wanted again is heated.
    pub(crate) fn on_cooled(&mut self, io: IoId) {
        self.bitmaps_busy.take_if(|busy| *busy == io);
        self.log.cooled(io);
        let wanted = self.log.wanted();
        self.heat(wanted);
    }

    /// Writes a tracker's header and marks, so that a restart finds them. None: others are being written, ask again.
    pub(crate) fn record_tracker(&mut self, node: NodeId) -> Option<IoId> {
        if self.bitmaps_busy.is_some() {
            return None;
        }
        let pages = self.trackers.get_mut(node)?.pages_to_begin();
        let io = self.start_io(Purpose::Bitmap(node));
        self.bitmaps_busy = Some(io);
        self.act(Action::WriteBitmap { io, pages });
        Some(io)
    }

    /// What a copy being resynced has flushed is clean on disk too, so that an interruption costs little.
    pub(crate) fn progress_is_durable(&mut self, node: NodeId) {
        let blocks = self.blocks();
        let busy = self.bitmaps_busy.is_some();
        let Some(tracker) = self.trackers.get_mut(node) else { return };
        let flushed = std::mem::replace(&mut tracker.flushing, DirtyBitmap::clean(blocks));
        let pages = if busy { Vec::new() } else { tracker.pages_again(flushed.marked_extents()) };
        if !pages.is_empty() {
            let io = self.start_io(Purpose::Bitmap(node));
            self.bitmaps_busy = Some(io);
            self.act(Action::WriteBitmap { io, pages });
        }
    }

    /// Brings the trackers in line with the configuration. A primary that goes on in its epoch knows what a copy that has
    /// just left lacks; anybody else takes the extents that are hot.
    pub(crate) fn follow_members(&mut self, beginning: Beginning) {
        let Some(config) = self.config.clone() else { return };
        self.log.learn_size(self.extents(), self.active);
        if !matches!(self.disk, Disk::Attached(_)) || !self.is_registered() {
            return;
        }
        let hot = self.log.not_cold();
        self.trackers.follow(&config, self.node, &hot, beginning);
        let pages = self.trackers.heal();
        if !pages.is_empty() {
            let io = self.start_io(Purpose::Bitmap(NodeId::NONE));
            let before = self.bitmaps_busy.replace(io);
            assert!(before.is_none(), "damage is healed before any other page is written");
            self.act(Action::WriteBitmap { io, pages });
        }
    }

    /// A copy outside the set has come back: what is to be compared, beside what the tracker knows. `last_in_sync` is
    /// what it has recorded, `uncertain` what it cannot vouch for.
    pub(crate) fn judge_rejoin(&mut self, node: NodeId, last_in_sync: ConfigVersion, uncertain: &Uncertain) {
        let blocks = self.blocks();
        let generation = self.trackers.next_generation();
        let Some(tracker) = self.trackers.get_mut(node) else { return };
        if last_in_sync < tracker.since() || *uncertain == Uncertain::All {
            tracker.restart_dirty(blocks, generation);
        }
        if let Uncertain::Runs(runs) = uncertain {
            for (first, count) in runs {
                let (first, count) = (extent_range(u64::from(*first)), u64::from(*count));
                tracker.doubt(BlockRange::new(first.start, count * first.count));
                tracker.compare = true;
            }
        }
    }

    /// An epoch of this copy's own begins: whatever was in flight when the last one ended may differ on every copy
    /// outside the set.
    pub(crate) fn doubt_others(&mut self) {
        self.follow_members(Beginning::Hot);
        let hot = self.log.not_cold();
        for (_, tracker) in self.trackers.iter_mut() {
            tracker.set_extents(hot.iter().copied());
        }
        self.log.trust();
        self.log.settle_all();
    }
}
