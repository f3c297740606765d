//! Inodes and the blocks of directories, as operations get at them.

use super::handle::Handle;
use crate::attributes::Format;
use crate::directory::{Directory, DirectoryBlocks};
use crate::layout::dirent::DirectoryFormat;
use crate::layout::extent::{self, Extent, ROOT_SIZE};
use crate::layout::geometry::Place;
use crate::layout::inode::{Inode, InodeRules};
use crate::layout::inode_flags::InodeFlags;
use crate::layout::timestamp::Timestamp;
use crate::layout::{Corrupt, Structure};
use crate::map::{Change, FileMap, Mapping};
use crate::store::{BlockStore, Stop};
use crate::units::{BlockNumber, BlockRun, FileBlock, InodeNumber};

/// Sectors of `i_blocks`, in bytes.
const SECTOR_BYTES: u64 = 512;

impl Handle<'_> {
    /// Where an inode's bytes lie. Errors: there is no such inode, or its group's descriptor is missing or broken.
    pub(super) fn inode_place(&mut self, number: InodeNumber) -> Result<Place, Stop> {
        let geometry = self.geometry();
        let nowhere = Corrupt::new(Structure::Inode, u64::from(number.0), "there is no such inode");
        let (group, _) = geometry.group_of_inode(number).ok_or(nowhere.clone())?;
        let table = self.descriptor(group)?.inode_table;
        Ok(geometry.inode_place(number, table).ok_or(nowhere)?)
    }

    /// The block that an inode is in. Errors: as [`Self::inode`].
    pub(super) fn inode_block(&mut self, number: InodeNumber) -> Result<BlockNumber, Stop> {
        Ok(self.inode_place(number)?.block)
    }

    /// An inode. Errors: it is missing or broken; that it is in use is not asked.
    pub fn inode(&mut self, number: InodeNumber) -> Result<Inode, Stop> {
        let place = self.inode_place(number)?;
        let (rules, length) = (self.inode_rules(), self.geometry().inode_size as usize);
        let from = place.offset as usize;
        let bytes = self.block(place.block)?.get(from..from + length).unwrap_or_default();
        Ok(Inode::decode(bytes, number, &rules)?)
    }

    /// Puts an inode in its place.
    pub fn set_inode(&mut self, number: InodeNumber, inode: &Inode) -> Result<(), Stop> {
        let place = self.inode_place(number)?;
        let (rules, length) = (self.inode_rules(), self.geometry().inode_size as usize);
        let from = place.offset as usize;
        inode.encode(self.block_mut(place.block)?.get_mut(from..from + length).unwrap_or_default(), number, &rules)
    }

    /// What all inodes of the filesystem have in common.
    pub fn inode_rules(&self) -> InodeRules {
        let geometry = self.geometry();
        InodeRules {
            block_size: geometry.block_size,
            device_blocks: geometry.block_count,
            seed: geometry.checksum_seed,
            huge_file: self.profile().huge_file,
        }
    }

    /// The same of attributes.
    pub(super) fn attributes_format(&self) -> Format {
        let geometry = self.geometry();
        Format { block_bytes: geometry.block_size as usize, seed: geometry.checksum_seed }
    }

    /// Gives an inode an empty map, of the kind that the filesystem has.
    pub(super) fn clear_map(&self, inode: &mut Inode) {
        let extents = self.profile().extents;
        inode.map = if extents { extent::empty_root() } else { [0; ROOT_SIZE] };
        inode.flags = inode.flags.with(InodeFlags::EXTENTS, extents);
    }

    /// Puts the target of a symbolic link into a block of its own; it goes through the log. Errors: [`Stop::TooLarge`].
    pub(super) fn write_long_symlink(
        &mut self,
        number: InodeNumber,
        inode: &mut Inode,
        target: &[u8],
    ) -> Result<(), Stop> {
        let block_size = self.geometry().block_size;
        // The kernel ends what it reads with a zero byte.
        if target.len() >= block_size as usize {
            return Err(Stop::TooLarge("the target of a symbolic link"));
        }
        let goal = self.goal_beside(number);
        let place = self.allocate(goal)?;
        let block = self.new_block(place)?;
        block.iter_mut().zip(target).for_each(|(to, from)| *to = *from);
        self.clear_map(inode);
        inode.size = target.len() as u64;
        let mut map = FileMap::of_inode(inode, number, &self.inode_rules(), goal);
        let extent = Extent { file: FileBlock(0), run: BlockRun::new(place, 1), unwritten: false };
        let change = map.insert(self, extent)?;
        inode.map = *map.root();
        count_blocks(inode, 1, &change, block_size);
        Ok(())
    }

    /// A directory, to be looked at and edited. Its inode is put in its place by [`OpenDirectory::finish`].
    pub(super) fn directory(&mut self, number: InodeNumber) -> Result<OpenDirectory<'_, Self>, Stop> {
        let inode = self.inode(number)?;
        let profile = self.profile();
        let geometry = self.geometry();
        let directory = Directory {
            format: DirectoryFormat {
                verified: false,
                directory: number,
                file_types: profile.file_types,
                checksum: geometry.checksum_seed.map(|seed| seed.of_inode(number, inode.generation)),
                inode_max: InodeNumber(geometry.inode_count),
            },
            hashing: profile.hashing,
            dir_index: profile.dir_index,
            indexed: inode.flags.contains(InodeFlags::INDEX),
        };
        let goal = self.goal_beside(number);
        let map = FileMap::of_inode(&inode, number, &self.inode_rules(), goal);
        Ok(OpenDirectory { store: self, number, inode, map, directory, goal })
    }

    /// The first block of an inode's group: near there is where its blocks shall lie.
    pub(super) fn goal_beside(&self, number: InodeNumber) -> BlockNumber {
        let geometry = self.geometry();
        let group = geometry.group_of_inode(number).and_then(|(group, _)| geometry.group_blocks(group).ok());
        group.map_or(BlockNumber(0), |run| run.start)
    }
}

/// A directory at work.
pub(super) struct OpenDirectory<'h, S> {
    store: &'h mut S,
    number: InodeNumber,
    /// Its inode, in which sizes and maps are brought up to date as blocks are added.
    pub(super) inode: Inode,
    map: FileMap,
    directory: Directory,
    goal: BlockNumber,
}

impl OpenDirectory<'_, Handle<'_>> {
    /// What its blocks are like, and so what can be done with them.
    pub(super) fn rules(&self) -> Directory {
        self.directory
    }

    fn block_size(&self) -> u32 {
        self.store.geometry().block_size
    }

    fn place(&mut self, at: FileBlock) -> Result<BlockNumber, Stop> {
        match self.map.lookup(self.store, at)? {
            Mapping::Mapped { run, unwritten: false } => Ok(run.start),
            _ => Err(self.directory.format.corrupt("a block of it is a hole").into()),
        }
    }

    /// A name in it has changed.
    pub(super) fn modify(&mut self, now: Timestamp) {
        self.store.modify(&mut self.inode, now);
    }

    /// Puts the inode in its place, with what an edit has changed of it.
    pub(super) fn finish(self, indexed: bool) -> Result<(), Stop> {
        let Self { store, number, mut inode, map, .. } = self;
        inode.map = *map.root();
        inode.flags = inode.flags.with(InodeFlags::INDEX, indexed);
        store.set_inode(number, &inode)
    }
}

impl DirectoryBlocks for OpenDirectory<'_, Handle<'_>> {
    fn len_blocks(&self) -> u32 {
        u32::try_from(self.inode.size / u64::from(self.block_size())).unwrap_or(u32::MAX)
    }

    fn block(&mut self, at: FileBlock) -> Result<&[u8], Stop> {
        let place = self.place(at)?;
        self.store.block(place)
    }

    fn block_mut(&mut self, at: FileBlock) -> Result<&mut [u8], Stop> {
        let place = self.place(at)?;
        self.store.block_mut(place)
    }

    fn is_verified(&mut self, at: FileBlock) -> bool {
        self.place(at).is_ok_and(|place| self.store.is_verified(place))
    }

    fn set_verified(&mut self, at: FileBlock) {
        if let Ok(place) = self.place(at) {
            self.store.set_verified(place);
        }
    }

    fn append(&mut self) -> Result<FileBlock, Stop> {
        let at = FileBlock(self.len_blocks());
        let goal = match at.0.checked_sub(1) {
            Some(last) => self.place(FileBlock(last))?.plus(1),
            None => self.goal,
        };
        let place = self.store.allocate(goal)?;
        self.store.new_block(place)?;
        let extent = Extent { file: at, run: BlockRun::new(place, 1), unwritten: false };
        let change = self.map.insert(self.store, extent)?;
        let block_size = self.block_size();
        self.inode.size += u64::from(block_size);
        count_blocks(&mut self.inode, 1, &change, block_size);
        Ok(at)
    }
}

/// Brings an inode's count of sectors up to date: blocks of data that were added, and what became of its map.
pub(super) fn count_blocks(inode: &mut Inode, added: u64, change: &Change, block_size: u32) {
    let sectors = u64::from(block_size) / SECTOR_BYTES;
    inode.sectors += (added + change.nodes_added) * sectors;
    inode.sectors = inode.sectors.saturating_sub((change.nodes_removed + change.data_freed) * sectors);
}
