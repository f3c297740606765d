//! The state ring in its file `/.tandem/state`: made in steps that fit into the log, read when the filesystem is opened, and
//! appended to by operations, so that records and what they tell of are one transaction.
//!
//! The file is flagged for data journaling, so that the kernel knows that its blocks may be in the log. They are written
//! nowhere but through the log, and never move. What records mean is the gateways' to know.

use std::collections::BTreeMap;

use block_device::BlockDevice;

use super::attributes::CHANGES_BITS;
use super::files::count_blocks;
use super::filesystem::{Failure, Filesystem};
use super::handle::Handle;
use super::namespace::{NewFile, Place};
use super::notes::{self, Notes};
use crate::layout::extent::Extent;
use crate::layout::file_kind::{FileKind, Mode};
use crate::layout::inode_flags::InodeFlags;
use crate::layout::timestamp::Timestamp;
use crate::layout::{Corrupt, Structure};
use crate::map::{FileMap, Mapping};
use crate::state_ring::append::Appender;
use crate::state_ring::header::{MountMark, RingHeader};
use crate::state_ring::index::{RingChanges, RingIndex};
use crate::state_ring::note::{Note, NotedRecord};
use crate::state_ring::scan::RingScan;
use crate::state_ring::{Record, RecordId, RingBlocks, RingShape};
use crate::store::{BlockStore, Refusal, Stop};
use crate::units::{BlockNumber, BlockRun, FileBlock, InodeNumber, ROOT_INODE};

/// The directory, in the root.
const DIRECTORY: &[u8] = b".tandem";
/// The file in it.
const FILE: &[u8] = b"state";
/// Blocks that one step of making the file takes, of a large log; of a smaller one a quarter of what a transaction may have.
const STEP_BLOCKS_MAX: usize = 256;
/// Blocks that a step may take beside them.
const NODES_SPARE: i64 = 4;
/// Blocks that are read at once by a scan, and how many such reads are under way together.
const SCAN_BLOCKS: u32 = 256;
const SCANS: usize = 4;
/// The most starts that the change attribute can count.
const STARTS_MAX: u64 = (1 << (u64::BITS - CHANGES_BITS)) - 1;

/// The ring of a filesystem.
#[derive(Debug)]
pub struct Ring {
    directory: InodeNumber,
    file: InodeNumber,
    /// The file of notes, if there is one.
    notes: Option<InodeNumber>,
    /// Once it was read.
    open: Option<OpenRing>,
}

#[derive(Debug)]
struct OpenRing {
    index: RingIndex,
    places: RingPlaces,
    notes: Option<Notes>,
}

/// Where the file's blocks are.
#[derive(Clone, Debug)]
struct RingPlaces(Vec<Extent>);

/// How full the ring is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingUsage {
    /// Records that count.
    pub records: usize,
    /// Thousandths of what records may take.
    pub per_mille: u32,
    /// Blocks that were written since the ring was made: how often it went round.
    pub blocks_written: u64,
}

/// A ring that was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenedRing {
    /// The records that count, in the order in which they were first appended.
    pub records: Vec<Record>,
    /// Changes whenever somebody else has had the filesystem mounted for writing, or has repaired it: what the records say of it
    /// may not hold then. 0 while nobody has.
    pub disturbed: u64,
}

/// True for the name of what gateways hide, as if it were not there: the ring's directory, and what else a node keeps at the
/// root for itself, whose names begin with `.tandem-`.
pub fn is_hidden_name(directory: InodeNumber, name: &[u8]) -> bool {
    let own = name.strip_prefix(DIRECTORY).is_some_and(|rest| rest.is_empty() || rest.first() == Some(&b'-'));
    directory == ROOT_INODE && own
}

impl Ring {
    pub(super) fn apply(&mut self, changes: RingChanges) {
        if let Some(open) = &mut self.open {
            open.index.apply(changes);
        }
    }

    /// The block is one of the open ring.
    pub(super) fn has_block(&self, at: BlockNumber) -> bool {
        let is_in = |open: &OpenRing| open.places.0.iter().any(|extent| extent.run.contains(at));
        self.open.as_ref().is_some_and(is_in)
    }

    /// The notes, if the ring is open and has any.
    pub(super) fn notes(&mut self) -> Option<&mut Notes> {
        self.open.as_mut()?.notes.as_mut()
    }
}

impl RingPlaces {
    /// The device's blocks from this one of the file on, at most `max`.
    fn run(&self, at: FileBlock, max: u32) -> Option<BlockRun> {
        let after = self.0.partition_point(|extent| extent.file <= at);
        let extent = self.0.get(after.checked_sub(1)?)?;
        let skipped = at.0 - extent.file.0;
        let left = extent.run.count.checked_sub(skipped).filter(|left| *left > 0)?;
        Some(BlockRun::new(extent.run.start.plus(u64::from(skipped)), left.min(max)))
    }

    fn block(&self, at: FileBlock) -> Result<BlockNumber, Corrupt> {
        let hole = Corrupt::new(Structure::StateRing, u64::from(at.0), "it is a hole");
        Ok(self.run(at, 1).ok_or(hole)?.start)
    }
}

/// The records that count once those of notes are among them.
fn with_notes(mut records: Vec<Record>, lost: Note) -> Vec<Record> {
    let newest: BTreeMap<RecordId, NotedRecord> = lost.into_iter().map(|record| (record.id, record)).collect();
    records.retain(|record| !newest.contains_key(&record.id));
    let noted = newest
        .into_values()
        .filter_map(|NotedRecord { id, sequence, payload }| payload.map(|payload| Record { id, sequence, payload }));
    records.extend(noted);
    records.sort_unstable_by_key(|record| record.sequence);
    records
}

/// The ring's blocks among those of an operation.
struct Stored<'r, 'h, 'a> {
    handle: &'h mut Handle<'a>,
    places: &'r RingPlaces,
}

impl RingBlocks for Stored<'_, '_, '_> {
    fn block(&mut self, at: FileBlock) -> Result<&[u8], Stop> {
        // Whoever is told of a record waits for that by other means.
        self.handle.unobserved(self.places.block(at)?)
    }

    fn block_mut(&mut self, at: FileBlock) -> Result<&mut [u8], Stop> {
        self.handle.block_mut(self.places.block(at)?)
    }

    fn new_block(&mut self, at: FileBlock) -> Result<&mut [u8], Stop> {
        self.handle.new_block(self.places.block(at)?)
    }
}

impl Handle<'_> {
    /// Keeps a record with whatever else this operation does, in place of the one with the same identity. Errors:
    /// [`Refusal::StateRingFull`]; [`Refusal::Reserved`] when no ring is open; [`Stop::TooLarge`] for a payload that fits no
    /// block.
    pub fn append_record(&mut self, id: RecordId, payload: &[u8]) -> Result<(), Stop> {
        self.with_ring(|ring| ring.put(id, payload))
    }

    /// Drops a record with whatever else this operation does; false when there is none. Errors: [`Refusal::Reserved`].
    pub fn delete_record(&mut self, id: RecordId) -> Result<bool, Stop> {
        self.with_ring(|ring| ring.delete(id))
    }

    /// What a record says. Errors: [`Refusal::Reserved`].
    pub fn record(&mut self, id: RecordId) -> Result<Option<Vec<u8>>, Stop> {
        self.with_ring(|ring| ring.get(id))
    }

    /// True for the inodes of the state ring: gateways answer as if there were no such files.
    pub fn is_hidden(&self, number: InodeNumber) -> bool {
        let belongs = |ring: &Ring| number == ring.directory || number == ring.file || Some(number) == ring.notes;
        self.ring().is_some_and(belongs)
    }

    /// Nothing but the ring changes what belongs to the ring. Errors: [`Refusal::Reserved`].
    pub(super) fn expect_unreserved(&self, number: InodeNumber) -> Result<(), Stop> {
        match self.is_hidden(number) {
            true => Err(Refusal::Reserved.into()),
            false => Ok(()),
        }
    }

    fn with_ring<T>(
        &mut self,
        op: impl FnOnce(&mut Appender<'_, Stored<'_, '_, '_>>) -> Result<T, Stop>,
    ) -> Result<T, Stop> {
        let transaction = self.running();
        let OpenRing { index, places, .. } =
            self.ring().and_then(|ring| ring.open.as_ref()).ok_or(Refusal::Reserved)?;
        let mut changes = std::mem::take(self.ring_changes());
        let mut blocks = Stored { handle: self, places };
        let result = op(&mut Appender { index, changes: &mut changes, blocks: &mut blocks, transaction });
        // Also of one that was refused: the operation may go on, and others have joined the same changes before.
        *self.ring_changes() = changes;
        result
    }

    /// The header of the open ring, and records that are to be in it.
    fn begin_start(&mut self, header: &RingHeader, lost: &[NotedRecord]) -> Result<(), Stop> {
        let open = self.ring().and_then(|ring| ring.open.as_ref()).ok_or(Refusal::Reserved)?;
        header.encode(self.block_mut(open.places.block(FileBlock(0))?)?);
        for record in lost {
            match &record.payload {
                Some(payload) => self.append_record(record.id, payload)?,
                None => drop(self.delete_record(record.id)?),
            }
        }
        Ok(())
    }

    fn ring_map(&mut self, file: InodeNumber) -> Result<(FileMap, u32), Stop> {
        let inode = self.inode(file)?;
        let blocks = u32::try_from(inode.size / u64::from(self.geometry().block_size));
        let too_long = Corrupt::new(Structure::StateRing, 0, "its file is too long");
        let map = FileMap::of_inode(&inode, file, &self.inode_rules(), self.goal_beside(file));
        Ok((map, blocks.map_err(|_| too_long)?))
    }

    /// Where the ring's blocks are. Errors: the file has holes.
    fn ring_places(&mut self, file: InodeNumber) -> Result<RingPlaces, Stop> {
        let (map, blocks) = self.ring_map(file)?;
        let mut extents = Vec::new();
        let mut at = 0;
        while at < blocks {
            let broken = Corrupt::new(Structure::StateRing, u64::from(at), "its file has a hole");
            let extent = map.next(self, FileBlock(at))?.filter(|extent| extent.file.0 == at && !extent.unwritten);
            let extent = extent.ok_or(broken)?;
            at = extent.end();
            extents.push(extent);
        }
        Ok(RingPlaces(extents))
    }

    /// The directory and the file, made if they are not there. Errors: something else is in their place.
    fn make_ring_file(&mut self, now: Timestamp) -> Result<(InodeNumber, InodeNumber), Stop> {
        let new = |kind, permissions| NewFile {
            mode: Mode::new(kind, permissions),
            user: 0,
            group: 0,
            device: None,
            target: &[],
        };
        let directory = match self.lookup(ROOT_INODE, DIRECTORY) {
            Ok(found) => found,
            Err(Stop::Refused(Refusal::NotFound)) => {
                let place = Place { directory: ROOT_INODE, name: DIRECTORY };
                self.create(place, &new(FileKind::Directory, 0o700), now)?.inode
            }
            Err(stop) => return Err(stop),
        };
        let file = match self.lookup(directory, FILE) {
            Ok(found) => found,
            Err(Stop::Refused(Refusal::NotFound)) => {
                let made = self.create(Place { directory, name: FILE }, &new(FileKind::Regular, 0o600), now)?.inode;
                let mut inode = self.inode(made)?;
                inode.flags = inode.flags.with(InodeFlags::JOURNAL_DATA, true);
                self.set_inode(made, &inode)?;
                made
            }
            Err(stop) => return Err(stop),
        };
        let inode = self.live(file)?;
        let is_ours = inode.mode.kind() == Some(FileKind::Regular) && inode.flags.contains(InodeFlags::JOURNAL_DATA);
        if !is_ours || inode.links != 1 {
            return Err(Refusal::WrongKind.into());
        }
        Ok((directory, file))
    }

    /// One step of making the file as long as `wanted` blocks, all of them zeros; true when it is.
    fn lengthen_ring(&mut self, file: InodeNumber, wanted: u32, step: u32) -> Result<bool, Stop> {
        let (mut map, blocks) = self.ring_map(file)?;
        if blocks >= wanted {
            return Ok(true);
        }
        let goal = match blocks.checked_sub(1).map(|last| map.lookup(self, FileBlock(last))).transpose()? {
            Some(Mapping::Mapped { run, .. }) => run.start.plus(1),
            _ => self.goal_beside(file),
        };
        // Beside them the map may want a few.
        let step = step.min(wanted - blocks);
        if self.available() < i64::from(step) + NODES_SPARE {
            return Err(Stop::NoSpace);
        }
        let run = self.take_run(goal, step)?;
        for number in run.start.0..run.end().0 {
            self.new_block(BlockNumber(number))?;
        }
        let change = map.insert(self, Extent { file: FileBlock(blocks), run, unwritten: false })?;
        let block_size = self.geometry().block_size;
        let mut inode = self.inode(file)?;
        inode.map = *map.root();
        inode.size += u64::from(run.count) * u64::from(block_size);
        count_blocks(&mut inode, u64::from(run.count), &change, block_size);
        self.set_inode(file, &inode)?;
        Ok(false)
    }
}

impl<D: BlockDevice> Filesystem<D> {
    /// Looks for the ring of the filesystem, so that nobody changes it even if it is not used.
    pub(super) async fn find_ring(&self) -> Result<(), Failure> {
        let find = |handle: &mut Handle<'_>| {
            let directory = handle.lookup(ROOT_INODE, DIRECTORY)?;
            let notes = match handle.lookup(directory, notes::FILE) {
                Err(Stop::Refused(Refusal::NotFound)) => None,
                found => Some(found?),
            };
            Ok((directory, handle.lookup(directory, FILE)?, notes))
        };
        match self.run(find).await {
            Ok(done) => {
                let (directory, file, notes) = done.value;
                self.state.borrow_mut().ring = Some(Ring { directory, file, notes, open: None });
                Ok(())
            }
            // What is broken has turned the filesystem read-only: it can be looked at.
            Err(Failure::Refused(_) | Failure::Corrupt(_) | Failure::TooLarge(_)) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// Opens the state ring, or makes one of `bytes` bytes if there is none; one that was not whole when a crash came is made
    /// whole. Counts this start. To be called once, before operations begin and orphans are reclaimed; [`Self::drive`] has to be
    /// polled meanwhile.
    ///
    /// Errors: no space; [`Refusal::WrongKind`] when something else is in its place; [`Refusal::Reserved`] when it is open;
    /// what is broken.
    pub async fn open_state_ring(&self, bytes: u64) -> Result<OpenedRing, Failure> {
        if self.state.borrow().ring.as_ref().is_some_and(|ring| ring.open.is_some()) {
            return Err(Refusal::Reserved.into());
        }
        let now = (self.clock)();
        let now = Timestamp { seconds: now.seconds as i64, nanoseconds: now.nanoseconds };
        let (directory, file) = self.run(|handle| handle.make_ring_file(now)).await?.value;
        let ring = Ring { directory, file, notes: None, open: None };
        self.state.borrow_mut().ring = Some(ring);
        let (header, places, is_new) = match self.ring_header(file).await? {
            Some(header) => (header, self.run(|handle| handle.ring_places(file)).await?.value, false),
            None => {
                let shape = RingShape::of_file(self.geometry.block_size as usize, bytes);
                let header = RingHeader { shape, starts: 0, mark: MountMark::default(), disturbed: 0 };
                (header, self.make_ring(file, shape).await?, true)
            }
        };
        // A new one is zeros, part of which may not be at home yet.
        let (index, records) = match is_new {
            true => (RingIndex::empty(header.shape), Vec::new()),
            false => self.scan_ring(header.shape, &places).await?,
        };
        // Nobody but the ring changes what is beside it.
        self.state.borrow_mut().ring = None;
        let notes = self.notes_file(directory, now).await?;
        let lost = match notes {
            Some((_, place)) => self.lost_notes(place, header.starts, index.next_record()).await,
            None => Ok(Vec::new()),
        };
        let open = OpenRing { index, places, notes: None };
        let notes_file = notes.map(|(file, _)| file);
        self.state.borrow_mut().ring = Some(Ring { directory, file, notes: notes_file, open: Some(open) });
        let next = header.next(self.mount_mark(), STARTS_MAX);
        let (header, lost) = self.begin_start(next, lost).await?;
        let mut state = self.state.borrow_mut();
        state.version_floor = header.starts << CHANGES_BITS;
        if let (Some(open), Some((_, place))) = (state.ring.as_mut().and_then(|ring| ring.open.as_mut()), notes) {
            open.notes = Some(Notes::new(self.geometry.block_size as usize, place, header.starts));
        }
        Ok(OpenedRing { records: with_notes(records, lost), disturbed: header.disturbed })
    }

    /// Writes the header of this start, and with it what the ring lacks of the start before; durable before a change attribute of
    /// this start is seen. What cannot be found again, or has no room, leaves the records in doubt, as if somebody else had had
    /// the filesystem. Gives the header, and what was written.
    async fn begin_start(
        &self,
        header: RingHeader,
        lost: Result<Vec<Note>, Failure>,
    ) -> Result<(RingHeader, Note), Failure> {
        let in_doubt = RingHeader { disturbed: header.starts, ..header };
        let (header, lost) = match lost {
            Ok(notes) => (header, notes.concat()),
            Err(Failure::Corrupt(_)) => (in_doubt, Note::new()),
            Err(failure) => return Err(failure),
        };
        let begun = match self.run(|handle| handle.begin_start(&header, &lost)).await {
            Err(Failure::Refused(_) | Failure::TooLarge(_)) => {
                let begun = self.run(|handle| handle.begin_start(&in_doubt, &[])).await?;
                begun.map(|()| (in_doubt, Note::new()))
            }
            begun => begun?.map(|()| (header, lost)),
        };
        if let Some(transaction) = begun.transaction {
            self.durable(transaction).await?;
        }
        Ok(begun.value)
    }

    fn mount_mark(&self) -> MountMark {
        let state = self.state.borrow();
        let superblock = &state.superblock;
        MountMark {
            mounts: superblock.mount_count(),
            mounted: superblock.mount_time().0,
            checked: superblock.check_time().0,
        }
    }

    /// How full the state ring is; None when none is open.
    pub fn state_ring_usage(&self) -> Option<RingUsage> {
        let state = self.state.borrow();
        let index = &state.ring.as_ref()?.open.as_ref()?.index;
        Some(RingUsage { records: index.len(), per_mille: index.per_mille(), blocks_written: index.blocks_written() })
    }

    /// The header; None when the file is not whole yet.
    async fn ring_header(&self, file: InodeNumber) -> Result<Option<RingHeader>, Failure> {
        let read = |handle: &mut Handle<'_>| {
            let (map, blocks) = handle.ring_map(file)?;
            if blocks == 0 {
                return Ok(None);
            }
            let hole = Corrupt::new(Structure::StateRing, 0, "it is a hole");
            let Mapping::Mapped { run, .. } = map.lookup(handle, FileBlock(0))? else { return Err(hole.into()) };
            let Some(header) = RingHeader::decode(handle.block(run.start)?)? else { return Ok(None) };
            if blocks < header.shape.file_blocks() {
                return Err(Corrupt::new(Structure::StateRing, 0, "its file is too short").into());
            }
            Ok(Some(header))
        };
        Ok(self.run(read).await?.value)
    }

    /// The whole file, but for the header.
    async fn make_ring(&self, file: InodeNumber, shape: RingShape) -> Result<RingPlaces, Failure> {
        let of_log = self.state.borrow().journal.as_ref().map_or(0, |journal| journal.transaction_blocks_max / 4);
        let step = of_log.clamp(1, STEP_BLOCKS_MAX) as u32;
        while !self.run(|handle| handle.lengthen_ring(file, shape.file_blocks(), step)).await?.value {}
        Ok(self.run(|handle| handle.ring_places(file)).await?.value)
    }

    async fn scan_ring(&self, shape: RingShape, places: &RingPlaces) -> Result<(RingIndex, Vec<Record>), Failure> {
        let broken = |corrupt: Corrupt| {
            self.turn_read_only(&mut self.state.borrow_mut(), corrupt.to_string());
            Failure::from(corrupt)
        };
        let mut scan = RingScan::new(shape);
        let mut at = FileBlock(1);
        while at.0 < shape.file_blocks() {
            let mut runs = Vec::with_capacity(SCANS);
            while runs.len() < SCANS && at.0 < shape.file_blocks() {
                let max = SCAN_BLOCKS.min(shape.file_blocks() - at.0);
                let hole = Corrupt::new(Structure::StateRing, u64::from(at.0), "it is a hole");
                let run = places.run(at, max).ok_or(hole).map_err(broken)?;
                runs.push((at, run));
                at.0 += run.count;
            }
            let reads = runs.iter().map(|(_, run)| self.read_blocks(*run));
            let read = futures_util::future::try_join_all(reads).await?;
            for ((first, run), bytes) in runs.iter().zip(read) {
                let blocks = bytes.chunks_exact(shape.block_bytes);
                for (step, old) in (0..run.count).zip(blocks) {
                    // What the log brought back may be in memory only.
                    let newest = self.state.borrow_mut().cache.get(run.start.plus(u64::from(step))).cloned();
                    let content = newest.as_deref().unwrap_or(old);
                    scan.feed(FileBlock(first.0 + step), content).map_err(broken)?;
                }
            }
        }
        scan.finish().map_err(broken)
    }
}
