//! What is where in a seed: every structure that an operation may meet, and how its checksum is made.

use std::task::Waker;

use block_device::BlockDevice;
use bytes::Bytes;
use filesystem::engine::{Filesystem, Options};
use filesystem::journal::CommitTime;
use filesystem::layout::file_kind::FileKind;
use filesystem::layout::geometry::Geometry;
use filesystem::layout::inode::Inode;
use filesystem::layout::inode_flags::InodeFlags;
use filesystem::layout::superblock::Superblock;
use filesystem::map::FileMap;
use filesystem::units::{BlockNumber, FileBlock, GroupNumber, InodeNumber};

use crate::ImageDevice;

/// What a structure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Superblock,
    Descriptor(u32),
    BlockBitmap(u32),
    InodeBitmap(u32),
    Inode(InodeNumber),
    /// The inode is the directory's.
    Entries(InodeNumber),
    /// A root or node of the index of a directory, and where its entries start.
    Index(InodeNumber, usize),
    /// A node of an inode's extent tree.
    Extents(InodeNumber),
    /// A block of pointers.
    Pointers,
    Attributes,
    /// Of the file of orphans, whose inode it is.
    Orphans(InodeNumber),
    JournalSuperblock,
}

/// A structure, and the bytes it takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spot {
    pub(crate) kind: Kind,
    pub(crate) offset: u64,
    pub(crate) length: u64,
    /// The inode that it is, or is a part of.
    pub(crate) owner: Option<InodeNumber>,
}

/// A valid image's structures.
pub(crate) struct Survey {
    pub(crate) geometry: Geometry,
    pub(crate) spots: Vec<Spot>,
    /// Where each inode lies, in spots.
    pub(crate) directories: Vec<InodeNumber>,
    pub(crate) files: Vec<InodeNumber>,
    /// Blocks of the device that hold the journal, in its order.
    pub(crate) journal: Vec<BlockNumber>,
    /// What the names in it are like.
    pub(crate) names: Vec<Vec<u8>>,
}

/// The clock of all runs.
pub(crate) fn clock() -> CommitTime {
    CommitTime { seconds: 1_700_000_000, nanoseconds: 0 }
}

/// How images are opened.
pub(crate) fn options(read_only: bool) -> Options {
    Options { cache_bytes_max: 1 << 20, data_bytes_max: 1 << 20, read_only, clock }
}

/// Polls a future to its end. Everything it waits for happens in it.
///
/// # Panics
/// When it does not end.
pub(crate) fn wait<T>(future: impl Future<Output = T>) -> T {
    const POLLS_MAX: u32 = 1_000_000;
    let mut context = std::task::Context::from_waker(Waker::noop());
    let mut future = std::pin::pin!(future);
    for _ in 0..POLLS_MAX {
        if let std::task::Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
    panic!("an operation waits for nothing");
}

impl Survey {
    /// Of an image that is sound.
    pub(crate) fn of(image: &Bytes) -> Self {
        let superblock = Superblock::decode(&image[1024..2048]).expect("a seed has a superblock");
        let geometry = superblock.geometry().clone();
        let device = ImageDevice::new(image.clone());
        let (mounted, _) = wait(Filesystem::open(device, &options(true))).expect("a seed opens");
        let mut survey = Self {
            geometry,
            spots: vec![Spot { kind: Kind::Superblock, offset: 1024, length: 1024, owner: None }],
            directories: Vec::new(),
            files: Vec::new(),
            journal: Vec::new(),
            names: Vec::new(),
        };
        survey.groups(&mounted);
        for number in (1..=survey.geometry.inode_count).map(InodeNumber) {
            survey.inode(&mounted, image, number, &superblock);
        }
        survey
    }

    fn add(&mut self, kind: Kind, block: BlockNumber, owner: Option<InodeNumber>) {
        let length = u64::from(self.geometry.block_size);
        self.spots.push(Spot { kind, offset: block.0 * length, length, owner });
    }

    fn groups<D: BlockDevice>(&mut self, mounted: &Filesystem<D>) {
        for group in 0..self.geometry.group_count {
            let number = GroupNumber(group);
            let place = self.geometry.descriptor_place(number).expect("it is in the filesystem");
            let offset = place.block.0 * u64::from(self.geometry.block_size) + u64::from(place.offset);
            let length = u64::from(self.geometry.descriptor_size);
            self.spots.push(Spot { kind: Kind::Descriptor(group), offset, length, owner: None });
            let descriptor = wait(mounted.run(|handle| handle.descriptor(number))).expect("a seed is sound").value;
            self.add(Kind::BlockBitmap(group), descriptor.block_bitmap, None);
            self.add(Kind::InodeBitmap(group), descriptor.inode_bitmap, None);
        }
    }

    fn inode<D: BlockDevice>(
        &mut self,
        mounted: &Filesystem<D>,
        image: &Bytes,
        number: InodeNumber,
        superblock: &Superblock,
    ) {
        // One that was never in use has no checksum.
        let Ok(found) = wait(mounted.run(|handle| handle.inode(number))) else { return };
        let found = found.value;
        if found.links == 0 && found.mode.0 == 0 && number.0 > 2 {
            return;
        }
        let (group, _) = self.geometry.group_of_inode(number).expect("it is in the filesystem");
        let table = wait(mounted.run(|handle| handle.descriptor(group))).expect("a seed is sound").value.inode_table;
        let place = self.geometry.inode_place(number, table).expect("it is in the filesystem");
        let offset = place.block.0 * u64::from(self.geometry.block_size) + u64::from(place.offset);
        let length = u64::from(self.geometry.inode_size);
        self.spots.push(Spot { kind: Kind::Inode(number), offset, length, owner: Some(number) });
        if found.attributes_block.0 != 0 {
            self.add(Kind::Attributes, found.attributes_block, Some(number));
        }
        let has_map = match found.mode.kind() {
            Some(FileKind::Regular | FileKind::Directory) => true,
            Some(FileKind::Symlink) => found.fast_symlink().is_none(),
            _ => false,
        };
        if !has_map {
            return;
        }
        self.nodes(image, &found, number);
        let blocks = self.blocks(mounted, &found, number);
        let is_file = found.mode.kind() == Some(FileKind::Regular);
        if superblock.journal_inode() == Some(number) {
            self.add(Kind::JournalSuperblock, blocks[0], None);
            self.journal = blocks;
        } else if superblock.orphan_file_inode() == Some(number) {
            blocks.iter().for_each(|block| self.add(Kind::Orphans(number), *block, None));
        } else if found.mode.kind() == Some(FileKind::Directory) {
            self.directory(mounted, image, (number, &found), &blocks);
        } else if is_file {
            self.files.push(number);
        }
    }

    fn blocks<D: BlockDevice>(&self, mounted: &Filesystem<D>, inode: &Inode, number: InodeNumber) -> Vec<BlockNumber> {
        let mut blocks = Vec::new();
        let mut at = FileBlock(0);
        loop {
            let next = mounted
                .run(|handle| FileMap::of_inode(inode, number, &handle.inode_rules(), BlockNumber(0)).next(handle, at));
            let Some(extent) = wait(next).expect("a seed is sound").value else { return blocks };
            blocks.extend((extent.run.start.0..extent.run.end().0).map(BlockNumber));
            at = FileBlock(extent.end());
        }
    }

    fn directory<D: BlockDevice>(
        &mut self,
        mounted: &Filesystem<D>,
        image: &Bytes,
        (number, inode): (InodeNumber, &Inode),
        blocks: &[BlockNumber],
    ) {
        self.directories.push(number);
        let indexed = inode.flags.contains(InodeFlags::INDEX);
        for (index, block) in blocks.iter().enumerate() {
            let start = block.0 as usize * self.geometry.block_size as usize;
            // A node is one free entry over the whole block; so is a block without entries, but in a seed there is none.
            let is_node = image[start..start + 4] == [0; 4] && image[start + 4..start + 6] == [0, 4];
            let kind = match (indexed, index) {
                (true, 0) => Kind::Index(number, 32),
                (true, _) if is_node => Kind::Index(number, 8),
                _ => Kind::Entries(number),
            };
            self.add(kind, *block, Some(number));
        }
        let all = mounted.run(|handle| handle.read_directory(number, filesystem::directory::Cookie::START, 1000));
        self.names
            .extend(wait(all).expect("a seed is sound").value.entries.into_iter().map(|entry| entry.name).take(8));
    }

    /// Blocks of maps, from their pointers.
    fn nodes(&mut self, image: &Bytes, inode: &Inode, number: InodeNumber) {
        let extents = inode.flags.contains(InodeFlags::EXTENTS);
        let block_size = self.geometry.block_size as usize;
        let word =
            |bytes: &[u8], at: usize| bytes.get(at..at + 4).map_or(0, |w| u32::from_le_bytes([w[0], w[1], w[2], w[3]]));
        let below = |bytes: &[u8]| -> Vec<u32> {
            let (depth, count) = (bytes[6], usize::from(bytes[2]));
            if depth == 0 { Vec::new() } else { (0..count).map(|index| word(bytes, 12 + 12 * index + 4)).collect() }
        };
        let mut left: Vec<(u32, u32)> = match extents {
            true => below(&inode.map).into_iter().map(|block| (block, 0)).collect(),
            false => (0..3).map(|level| (word(&inode.map, 48 + 4 * level), level as u32)).collect(),
        };
        while let Some((block, level)) = left.pop() {
            if block == 0 {
                continue;
            }
            let start = block as usize * block_size;
            let bytes = &image[start..start + block_size];
            self.add(
                if extents { Kind::Extents(number) } else { Kind::Pointers },
                BlockNumber(block.into()),
                Some(number),
            );
            if extents {
                left.extend(below(bytes).into_iter().map(|block| (block, 0)));
            } else if level > 0 {
                left.extend((0..block_size / 4).map(|index| (word(bytes, 4 * index), level - 1)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutate;
    use crate::seed;

    #[test]
    fn sealing_a_sound_structure_changes_nothing() {
        for seed in seed::seeds() {
            let device = ImageDevice::new(seed.image.clone());
            for spot in &seed.survey.spots {
                mutate::seal(&device, &seed.survey, spot);
                let (from, to) = (spot.offset as usize, (spot.offset + spot.length) as usize);
                let sealed = device.get(spot.offset, spot.length).expect("it is inside");
                assert_eq!(sealed, seed.image.slice(from..to), "{}: {spot:?}", seed.name);
            }
            assert_eq!(device.to_image(), seed.image, "{}: nor do others", seed.name);
        }
    }

    #[test]
    fn every_kind_of_structure_is_found() {
        let found = |wanted: fn(&Kind) -> bool| {
            seed::seeds().iter().flat_map(|seed| &seed.survey.spots).filter(|spot| wanted(&spot.kind)).count()
        };
        assert!(found(|kind| matches!(kind, Kind::Index(..))) >= 2);
        assert!(found(|kind| matches!(kind, Kind::Extents(_))) >= 2);
        assert!(found(|kind| matches!(kind, Kind::Pointers)) >= 2);
        assert!(found(|kind| matches!(kind, Kind::Attributes)) >= 2);
        assert!(found(|kind| matches!(kind, Kind::Orphans(_))) >= 1);
        assert_eq!(found(|kind| matches!(kind, Kind::JournalSuperblock)), 4);
        assert!(seed::seeds().iter().all(|seed| seed.survey.journal.len() >= 1024));
    }
}
