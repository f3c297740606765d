//! Writing into memory: blocks of the file with what they held before, room reserved for them, times of the inode.

use std::ops::Range;

use block_device::BlockDevice;
use bytes::Bytes;

use super::content::Content;
use super::table::{FileEdit, Page, PageEdit, Stage, reservation};
use crate::engine::filesystem::{Done, Failure, Filesystem};
use crate::engine::handle::Handle;
use crate::engine::notes::Pending;
use crate::layout::extent::FILE_BLOCKS_MAX;
use crate::layout::file_kind::FileKind;
use crate::layout::indirect::file_blocks_max;
use crate::layout::inode::Inode;
use crate::layout::inode_flags::InodeFlags;
use crate::layout::timestamp::Timestamp;
use crate::layout::{Corrupt, Structure};
use crate::map::{FileMap, Mapping};
use crate::store::{BlockStore, Refusal, Stop, Wait};
use crate::units::{BlockNumber, BlockRun, FileBlock, InodeNumber};

/// Bytes that one operation takes in; a longer write is several.
const WRITE_BYTES_MAX: usize = 1 << 20;
/// Largest file that filesystems without `large_file` know.
const SMALL_FILE_BYTES_MAX: u64 = (1 << 31) - 1;

/// A block of a file in memory, as an operation sees it.
#[derive(Clone, Debug)]
pub(super) struct SeenPage {
    pub(super) content: Content,
    pub(super) reserved: bool,
    pub(super) dirty: bool,
    pub(super) version: u64,
}

impl Handle<'_> {
    /// The length of a file as everybody sees it: the inode's, unless data waits to be written.
    pub(crate) fn visible_size(&self, file: InodeNumber, inode: &Inode) -> u64 {
        let edited = self.data_edits().files.get(&file).and_then(|edit| edit.size);
        edited.or_else(|| self.table().size(file)).unwrap_or(inode.size)
    }

    /// Sectors that a file will have beyond those that its inode counts, when what waits is written.
    pub(crate) fn waiting_sectors(&self, file: InodeNumber) -> u64 {
        let edited = self.data_edits().files.get(&file).map_or(0, |edit| edit.reserved);
        let pages = self.table().reserved_pages(file).saturating_add_signed(edited);
        pages * u64::from(self.geometry().block_size) / crate::layout::inode::SECTOR_SIZE
    }

    /// Writes `data` into a regular file from byte `offset` on, in memory: it is durable when the file is synced, or sooner.
    ///
    /// Errors: [`Refusal::IsDirectory`], [`Refusal::WrongKind`], [`Refusal::Stale`]; [`Stop::TooLarge`]; [`Stop::NoSpace`] at
    /// once when it could not be brought to the device later.
    pub fn write(&mut self, file: InodeNumber, offset: u64, data: &Bytes, now: Timestamp) -> Result<(), Stop> {
        let mut inode = self.file_to_change(file)?;
        let size_max = self.file_size_max(&inode);
        let end = offset.checked_add(data.len() as u64).filter(|end| *end <= size_max);
        let end = end.ok_or(Stop::TooLarge("the file"))?;
        if data.is_empty() {
            return Ok(());
        }
        if !self.table().has_room(data.len()) {
            return Err(Stop::Wait(Wait::Memory));
        }
        let size = self.visible_size(file, &inode);
        if offset > size {
            self.clear_tail(file, &inode, size)?;
        }
        let block_bytes = u64::from(self.geometry().block_size);
        let map = self.file_map(file, &inode);
        let mut mapped = Lookup::new(map);
        for at in (offset / block_bytes) as u32..=((end - 1) / block_bytes) as u32 {
            let start = u64::from(at) * block_bytes;
            let inside = (offset.max(start) - start) as usize..(end.min(start + block_bytes) - start) as usize;
            let piece = Content::part(data, (offset.max(start) - offset) as usize, inside.len());
            self.write_block(file, at, (inside, piece), size, &mut mapped)?;
        }
        if self.available() < 0 {
            return Err(Stop::NoSpace);
        }
        self.file_edit(file).size = Some(size.max(end));
        self.modify(&mut inode, now);
        self.set_inode(file, &inode)?;
        self.data_edits_mut().large_file |= end > SMALL_FILE_BYTES_MAX;
        Ok(())
    }

    /// Puts a piece into one block of a file of `size` bytes.
    fn write_block(
        &mut self,
        file: InodeNumber,
        at: u32,
        (inside, piece): (Range<usize>, Content),
        size: u64,
        mapped: &mut Lookup,
    ) -> Result<(), Stop> {
        let block_bytes = self.geometry().block_size as usize;
        let former = self.page(file, at);
        let mut reserved = former.as_ref().is_some_and(|page| page.reserved);
        let mapping = if former.is_none() { Some(mapped.at(self, at)?) } else { None };
        if matches!(mapping, Some(Mapping::Hole { .. })) {
            reserved = true;
            self.reserve(file, unit_of(&mapped.map));
        }
        let start = u64::from(at) * block_bytes as u64;
        let kept = size.saturating_sub(start).min(block_bytes as u64) as usize;
        let content = if inside.len() == block_bytes {
            piece
        } else {
            let mut buffer = match (former, mapping) {
                (Some(page), _) => page.content.to_buffer(),
                (None, Some(Mapping::Mapped { run, unwritten: false })) if inside.start > 0 || inside.end < kept => {
                    let mut buffer = vec![0; block_bytes];
                    buffer[..kept].copy_from_slice(&self.block(run.start)?[..kept]);
                    buffer
                }
                _ => vec![0; block_bytes],
            };
            buffer[inside].copy_from_slice(piece.bytes());
            Content::whole(buffer.into())
        };
        self.put_page(file, at, content, reserved);
        Ok(())
    }

    /// Zeros behind the end of a file of `size` bytes, in the last block of it, since the file grows past them. Pages have them.
    pub(super) fn clear_tail(&mut self, file: InodeNumber, inode: &Inode, size: u64) -> Result<(), Stop> {
        let block_bytes = u64::from(self.geometry().block_size);
        let (at, rest) = ((size / block_bytes) as u32, (size % block_bytes) as usize);
        if rest == 0 || self.page(file, at).is_some() {
            return Ok(());
        }
        let map = self.file_map(file, inode);
        let Mapping::Mapped { run, unwritten: false } = map.lookup(self, FileBlock(at))? else { return Ok(()) };
        if self.block(run.start)?[rest..].iter().any(|byte| *byte != 0) {
            self.data_block_mut(run.start)?[rest..].fill(0);
        }
        Ok(())
    }

    /// A block of data, to be changed through the log.
    pub(super) fn data_block_mut(&mut self, at: BlockNumber) -> Result<&mut [u8], Stop> {
        self.expect_data(BlockRun::new(at, 1))?;
        self.data_edits_mut().journaled.insert(at);
        self.block_mut(at)
    }

    /// True when whatever is written to a block of data has to go through the log.
    pub(super) fn is_journaled(&self, at: BlockNumber) -> bool {
        self.table().is_journaled(at) || self.data_edits().journaled.contains(&at)
    }

    /// The inode of a regular file whose data or length will change. Errors: [`Refusal`]; it is being cut short.
    pub(super) fn file_to_change(&mut self, file: InodeNumber) -> Result<Inode, Stop> {
        let inode = self.regular_file(file)?;
        let truncating = self.data_edits().truncating.get(&file).copied();
        match truncating {
            // Its own cut ends only after it.
            Some(true) => return Err(Refusal::NotSupported.into()),
            None if self.table().is_truncating(file) => return Err(Stop::Wait(Wait::Whole(file))),
            _ => {}
        }
        Ok(inode)
    }

    /// The inode of a regular file. Errors: [`Refusal::IsDirectory`], [`Refusal::WrongKind`], [`Refusal::Stale`],
    /// [`Refusal::Reserved`].
    pub(super) fn regular_file(&mut self, file: InodeNumber) -> Result<Inode, Stop> {
        let inode = self.in_use(file)?;
        self.expect_unreserved(file)?;
        match inode.mode.kind() {
            // What it holds is being given back.
            _ if inode.links == 0 && !self.table().is_held(file) => Err(Refusal::Stale.into()),
            Some(FileKind::Regular) if inode.size > self.file_size_max(&inode) => {
                Err(Corrupt::new(Structure::Inode, u64::from(file.0), "it is longer than its map can be").into())
            }
            Some(FileKind::Regular) => Ok(inode),
            Some(FileKind::Directory) => Err(Refusal::IsDirectory.into()),
            _ => Err(Refusal::WrongKind.into()),
        }
    }

    /// Where a file's blocks are; new nodes come near those of its group.
    pub(super) fn file_map(&self, file: InodeNumber, inode: &Inode) -> FileMap {
        FileMap::of_inode(inode, file, &self.inode_rules(), self.goal_beside(file))
    }

    /// Bytes that a file can have at most.
    pub(super) fn file_size_max(&self, inode: &Inode) -> u64 {
        let block_size = self.geometry().block_size;
        let blocks = match inode.flags.contains(InodeFlags::EXTENTS) {
            true => FILE_BLOCKS_MAX,
            false => file_blocks_max(block_size),
        };
        u64::from(blocks) * u64::from(block_size)
    }

    /// The newest content of a block of a file, if it is newer than the device.
    pub(super) fn page(&self, file: InodeNumber, at: u32) -> Option<SeenPage> {
        let below = || {
            self.table().page(file, at).map(|page| SeenPage {
                content: page.content.clone(),
                reserved: page.reserved,
                dirty: page.stage == Stage::Dirty,
                version: page.version,
            })
        };
        let Some(edit) = self.data_edits().files.get(&file) else { return below() };
        match edit.pages.get(&at) {
            Some(PageEdit::Put { content, reserved, ordered }) => {
                Some(SeenPage { content: content.clone(), reserved: *reserved, dirty: !ordered, version: 0 })
            }
            Some(PageEdit::Drop | PageEdit::Written(_)) => None,
            None if edit.dropped_from.is_some_and(|from| at >= from) => None,
            None => below(),
        }
    }

    /// The first `count` blocks of a file that have been dirty since `version` or longer, in order.
    pub(super) fn dirty_pages(&self, file: InodeNumber, version: u64, count: usize) -> Vec<(u32, SeenPage)> {
        let edit = self.data_edits().files.get(&file);
        let own = edit.map(|edit| edit.pages.keys().copied()).into_iter().flatten();
        let is_old = |page: &Page| page.stage == Stage::Dirty && page.dirty_since <= version;
        let below = self.table().pages(file, 0).filter(|(_, page)| is_old(page)).map(|(at, _)| at);
        let mut all: Vec<u32> = below.take(count).chain(own).collect();
        all.sort_unstable();
        all.dedup();
        let seen = all.into_iter().filter_map(|at| Some((at, self.page(file, at)?)));
        seen.filter(|(_, page)| page.dirty).take(count).collect()
    }

    pub(super) fn put_page(&mut self, file: InodeNumber, at: u32, content: Content, reserved: bool) {
        self.file_edit(file).pages.insert(at, PageEdit::Put { content, reserved, ordered: false });
    }

    /// Does not want a block of a file any more that is in memory.
    pub(super) fn drop_page(&mut self, file: InodeNumber, at: u32, unit: i64) {
        let Some(page) = self.page(file, at) else { return };
        if page.reserved {
            self.reserve(file, -unit);
        }
        self.file_edit(file).pages.insert(at, PageEdit::Drop);
    }

    /// Changes of a file's data, which begin with the length that it has.
    pub(super) fn file_edit(&mut self, file: InodeNumber) -> &mut FileEdit {
        self.data_edits_mut().files.entry(file).or_default()
    }

    /// Reserves room for so many more blocks of a file, or fewer.
    pub(super) fn reserve(&mut self, file: InodeNumber, blocks: i64) {
        self.file_edit(file).reserved += blocks;
    }

    /// Blocks that are free, not reserved for data that waits, and not kept back from users.
    pub fn available_blocks(&self) -> u64 {
        u64::try_from(self.available()).unwrap_or(0)
    }

    /// The same; below zero the operation has taken or reserved too much.
    pub(crate) fn available(&self) -> i64 {
        let table = self.table();
        let block_bytes = self.geometry().block_size as usize;
        let more = self.data_edits().files.iter().map(|(file, edit)| {
            let before = table.reserved_pages(*file);
            let after = before.saturating_add_signed(edit.reserved);
            reservation(after, block_bytes) as i64 - reservation(before, block_bytes) as i64
        });
        self.free_blocks() - table.reserved_blocks() as i64 - more.sum::<i64>()
    }
}

/// Lookups of blocks in order, which ask the map once for a run.
pub(super) struct Lookup {
    pub(super) map: FileMap,
    last: Option<(u32, Mapping)>,
}

impl Lookup {
    pub(super) fn new(map: FileMap) -> Self {
        Self { map, last: None }
    }

    /// What is mapped at a block and after it.
    pub(super) fn at(&mut self, handle: &mut Handle<'_>, at: u32) -> Result<Mapping, Stop> {
        if let Some((from, mapping)) = self.last
            && let Some(rest) = at.checked_sub(from).and_then(|skip| behind(mapping, skip))
        {
            return Ok(rest);
        }
        let mapping = self.map.lookup(handle, FileBlock(at))?;
        self.last = Some((at, mapping));
        Ok(mapping)
    }
}

/// Blocks to be reserved for one of data: of an indirect map each may need a pointer block.
pub(super) fn unit_of(map: &FileMap) -> i64 {
    match map {
        FileMap::Extents(_) => 1,
        FileMap::Indirect(_) => 2,
    }
}

/// The same run or hole without its first `skip` blocks.
fn behind(mapping: Mapping, skip: u32) -> Option<Mapping> {
    match mapping {
        Mapping::Mapped { run, unwritten } if skip < run.count => {
            let run = BlockRun::new(run.start.plus(u64::from(skip)), run.count - skip);
            Some(Mapping::Mapped { run, unwritten })
        }
        Mapping::Hole { count } if skip < count => Some(Mapping::Hole { count: count - skip }),
        _ => None,
    }
}

impl<D: BlockDevice> Filesystem<D> {
    /// Writes into a regular file from byte `offset` on, in memory; [`Self::fsync`] makes it durable. Waits while more data waits
    /// than memory was given for. Gives the bytes written: fewer than there are only when space ran out in the middle.
    ///
    /// Errors: as [`Handle::write`].
    pub async fn write(
        &self,
        file: InodeNumber,
        offset: u64,
        data: Bytes,
        now: Timestamp,
    ) -> Result<Done<usize>, Failure> {
        let mut done = Done { value: 0, transaction: None, pending: Pending::default() };
        loop {
            let part = data.slice(done.value..data.len().min(done.value + WRITE_BYTES_MAX));
            let at = offset.saturating_add(done.value as u64);
            match self.run(|handle| handle.write(file, at, &part, now)).await {
                Ok(last) => done = last.map(|()| done.value + part.len()),
                Err(Failure::NoSpace) if done.value > 0 => return Ok(done),
                Err(failure) => return Err(failure),
            }
            if done.value == data.len() {
                return Ok(done);
            }
        }
    }
}
