//! Inodes (ext4 on-disk format, "Index Nodes"): the fields that the format names, decoded into an [`Inode`] and put back
//! among those that it does not touch.
//!
//! Does not know where an inode is on the device, what its extended attributes are, or how its blocks are mapped.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum::Seed;
use super::extent::{self, FILE_BLOCKS_MAX};
use super::file_kind::{DeviceNumber, FileKind, Mode};
use super::inode_flags::InodeFlags;
use super::timestamp::Timestamp;
use super::{Corrupt, Structure};
use crate::store::Stop;
use crate::units::{BlockNumber, InodeNumber};

/// Bytes of an inode without extra fields.
pub const BASE_SIZE: usize = 128;
/// Bytes of the extra fields that are known here.
pub const EXTRA_SIZE: usize = size_of::<Extra>();
/// Bytes of a sector, in which an inode counts its blocks.
pub const SECTOR_SIZE: u64 = 512;

const MAP_SIZE: usize = extent::ROOT_SIZE;
/// Sectors that fit into 48 bits, as into the two fields for them.
const COUNT_MAX: u64 = (1 << 48) - 1;

/// What of the filesystem matters to its inodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InodeRules {
    /// Bytes of a block.
    pub block_size: u32,
    /// Blocks of the device.
    pub device_blocks: u64,
    /// That of the filesystem, when it has checksums.
    pub seed: Option<Seed>,
    /// The feature huge_file: the count of sectors has 48 bits, and may be in blocks.
    pub huge_file: bool,
}

/// An inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Kind and permissions.
    pub mode: Mode,
    /// Owner.
    pub user: u32,
    /// Group.
    pub group: u32,
    /// Length in bytes. Only regular files have one of more than 32 bits.
    pub size: u64,
    /// Names.
    pub links: u16,
    /// Sectors of 512 bytes in use: data, nodes of the map, and the block of extended attributes.
    pub sectors: u64,
    /// Flags. [`InodeFlags::HUGE_FILE`] follows from `sectors` when this is encoded.
    pub flags: InodeFlags,
    /// Changes when the inode is used for another file.
    pub generation: u32,
    /// Counts the changes. Only the lower half is kept when `extra_size` does not reach the upper.
    pub version: u64,
    /// Last access.
    pub accessed: Timestamp,
    /// Last change of the content.
    pub modified: Timestamp,
    /// Last change of the inode.
    pub changed: Timestamp,
    /// Birth; None when `extra_size` does not reach it.
    pub created: Option<Timestamp>,
    /// When it was deleted, in seconds; in the list of orphans, the number of the next.
    pub deleted_or_next_orphan: u32,
    /// The block of extended attributes; 0 for none.
    pub attributes_block: BlockNumber,
    /// The project; 0 when `extra_size` does not reach it.
    pub project: u32,
    /// The map of its blocks, the target of a short symbolic link, or the number of a device.
    pub map: [u8; MAP_SIZE],
    /// Bytes of extra fields after the first 128. What follows are extended attributes.
    pub extra_size: u16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Base {
    mode: U16,
    user_low: U16,
    size_low: U32,
    accessed: U32,
    changed: U32,
    modified: U32,
    deleted: U32,
    group_low: U16,
    links: U16,
    sectors_low: U32,
    flags: U32,
    version_low: U32,
    map: [u8; MAP_SIZE],
    generation: U32,
    attributes_low: U32,
    size_high: U32,
    fragment: U32,
    sectors_high: U16,
    attributes_high: U16,
    user_high: U16,
    group_high: U16,
    checksum_low: U16,
    reserved: U16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Extra {
    extra_size: U16,
    checksum_high: U16,
    changed: U32,
    modified: U32,
    accessed: U32,
    created: U32,
    created_extra: U32,
    version_high: U32,
    project: U32,
}

/// How far `extra_size` has to reach for a field to be there.
mod reach {
    pub(super) const CHECKSUM_HIGH: u16 = 4;
    pub(super) const CHANGED: u16 = 8;
    pub(super) const MODIFIED: u16 = 12;
    pub(super) const ACCESSED: u16 = 16;
    pub(super) const CREATED: u16 = 20;
    pub(super) const CREATED_EXTRA: u16 = 24;
    pub(super) const VERSION_HIGH: u16 = 28;
    pub(super) const PROJECT: u16 = 32;
}

impl Inode {
    /// A fresh inode of a kind, without links, blocks or content, owned by 0 and of the year 1970. `inode_size` is that of
    /// the filesystem's inodes, in bytes. Regular files and directories get an empty extent tree; symbolic links do not,
    /// since a short one has its target there.
    pub fn fresh(mode: Mode, generation: u32, inode_size: usize) -> Self {
        let extra_size = inode_size.saturating_sub(BASE_SIZE).min(EXTRA_SIZE) as u16;
        let mapped = matches!(mode.kind(), Some(FileKind::Regular | FileKind::Directory));
        Self {
            mode,
            user: 0,
            group: 0,
            size: 0,
            links: 0,
            sectors: 0,
            flags: InodeFlags::NONE.with(InodeFlags::EXTENTS, mapped),
            generation,
            version: 0,
            accessed: Timestamp::default(),
            modified: Timestamp::default(),
            changed: Timestamp::default(),
            created: (extra_size >= reach::CREATED).then(Timestamp::default),
            deleted_or_next_orphan: 0,
            attributes_block: BlockNumber(0),
            project: 0,
            map: if mapped { extent::empty_root() } else { [0; MAP_SIZE] },
            extra_size,
        }
    }

    /// Decodes the whole inode `number`, of the size that the filesystem's inodes have. Says nothing about whether it is in
    /// use: see [`Inode::check`]. Errors: the checksum does not match, or the size of the extra fields cannot be.
    pub fn decode(bytes: &[u8], number: InodeNumber, rules: &InodeRules) -> Result<Self, Corrupt> {
        let (base, extra_size, extra) = parts(bytes).map_err(|what| finding(number, what))?;
        verify(bytes, number, rules)?;
        let reaches = |end: u16| extra_size >= end;
        let time = |seconds: U32, more: U32, end| Timestamp::decode(seconds.get(), reaches(end).then_some(more.get()));
        let created_extra = reaches(reach::CREATED_EXTRA).then_some(extra.created_extra.get());
        let created = Timestamp::decode(extra.created.get(), created_extra);
        let mode = Mode(base.mode.get());
        let flags = InodeFlags(base.flags.get());
        Ok(Self {
            mode,
            user: joined_16(base.user_low, base.user_high),
            group: joined_16(base.group_low, base.group_high),
            size: u64::from(base.size_low.get()) | if has_large_size(mode) { high(base.size_high) } else { 0 },
            links: base.links.get(),
            sectors: sectors(base, flags, rules),
            flags,
            generation: base.generation.get(),
            version: u64::from(base.version_low.get())
                | if reaches(reach::VERSION_HIGH) { high(extra.version_high) } else { 0 },
            accessed: time(base.accessed, extra.accessed, reach::ACCESSED),
            modified: time(base.modified, extra.modified, reach::MODIFIED),
            changed: time(base.changed, extra.changed, reach::CHANGED),
            created: reaches(reach::CREATED).then_some(created),
            deleted_or_next_orphan: base.deleted.get(),
            attributes_block: BlockNumber(
                u64::from(base.attributes_high.get()) << 32 | u64::from(base.attributes_low.get()),
            ),
            project: if reaches(reach::PROJECT) { extra.project.get() } else { 0 },
            map: base.map,
            extra_size,
        })
    }

    /// Puts this into the whole inode `number`, and its checksum. Bytes without a meaning here stay as they are: a fresh
    /// inode is encoded into zeros. Errors: [`Stop::TooLarge`] when the size or the count of sectors cannot be held, and
    /// [`Stop::Corrupt`] when `extra_size` does not fit.
    pub fn encode(&self, bytes: &mut [u8], number: InodeNumber, rules: &InodeRules) -> Result<(), Stop> {
        let inode_size = bytes.len();
        if !extra_size_fits(self.extra_size, inode_size) {
            return Err(finding(number, "the size of the extra fields cannot be").into());
        }
        self.encode_base(bytes, rules).ok_or(Stop::TooLarge("the file"))?;
        if inode_size > BASE_SIZE {
            self.encode_extra(bytes).ok_or_else(|| finding(number, "it is too short"))?;
        }
        if let Some(seed) = rules.seed {
            let sum = checksum(bytes, seed.of_inode(number, self.generation));
            store_checksum(bytes, self.extra_size, sum).ok_or_else(|| finding(number, "it is too short"))?;
        }
        Ok(())
    }

    /// What has to hold for a file in use. Errors: the first thing that does not.
    pub fn check(&self, number: InodeNumber, rules: &InodeRules) -> Result<FileKind, Corrupt> {
        let finding = |what| finding(number, what);
        let kind = self.mode.kind().ok_or_else(|| finding("there is no such kind of file"))?;
        if self.attributes_block.0 >= rules.device_blocks {
            return Err(finding("the block of extended attributes is not on the device"));
        }
        let block_size = u64::from(rules.block_size);
        let size_max = match kind {
            FileKind::Regular => block_size.saturating_mul(u64::from(FILE_BLOCKS_MAX)),
            FileKind::Symlink => block_size,
            _ => u64::from(u32::MAX),
        };
        if self.size > size_max || kind == FileKind::Symlink && self.size == 0 {
            return Err(finding("the size cannot be"));
        }
        let inline = self.flags.contains(InodeFlags::INLINE_DATA);
        if kind == FileKind::Directory && !inline && (block_size == 0 || !self.size.is_multiple_of(block_size)) {
            return Err(finding("the size of a directory is not one of whole blocks"));
        }
        Ok(kind)
    }

    /// Whether the version has 64 bits, and not only the lower 32.
    pub fn has_wide_version(&self) -> bool {
        self.extra_size >= reach::VERSION_HIGH
    }

    /// The target of a symbolic link that is short enough to be in the inode: shorter than the map.
    pub fn fast_symlink(&self) -> Option<&[u8]> {
        let length = usize::try_from(self.size).ok()?;
        let is_fast = self.mode.kind() == Some(FileKind::Symlink) && length > 0 && length < MAP_SIZE;
        if is_fast && !self.flags.contains(InodeFlags::INLINE_DATA) { self.map.get(..length) } else { None }
    }

    /// Makes the target of a symbolic link be in the inode. None when it is empty or too long for that.
    pub fn set_fast_symlink(&mut self, target: &[u8]) -> Option<()> {
        if target.is_empty() || target.len() >= MAP_SIZE {
            return None;
        }
        self.map = [0; MAP_SIZE];
        self.map.get_mut(..target.len())?.copy_from_slice(target);
        self.size = target.len() as u64;
        self.flags = self.flags.with(InodeFlags::EXTENTS, false);
        Some(())
    }

    /// The number of a device.
    pub fn device(&self) -> Option<DeviceNumber> {
        matches!(self.mode.kind(), Some(FileKind::BlockDevice | FileKind::CharacterDevice))
            .then(|| DeviceNumber::decode([word(&self.map, 0), word(&self.map, 1)]))
    }

    /// Sets the number of a device. None when it is too large.
    pub fn set_device(&mut self, device: DeviceNumber) -> Option<()> {
        let words = device.encode()?;
        self.map = [0; MAP_SIZE];
        for (bytes, word) in self.map.chunks_exact_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        Some(())
    }

    fn encode_base(&self, bytes: &mut [u8], rules: &InodeRules) -> Option<()> {
        let base = Base::mut_from_prefix(bytes).ok()?.0;
        let size_high = (self.size >> 32) as u32;
        if has_large_size(self.mode) {
            base.size_high = size_high.into();
        } else if size_high != 0 {
            return None;
        }
        let (count, in_blocks) = sector_count(self.sectors, rules)?;
        let has_extra = |end| self.extra_size >= end;
        base.mode = self.mode.0.into();
        base.user_low = (self.user as u16).into();
        base.user_high = ((self.user >> 16) as u16).into();
        base.group_low = (self.group as u16).into();
        base.group_high = ((self.group >> 16) as u16).into();
        base.size_low = (self.size as u32).into();
        base.accessed = self.accessed.encode(has_extra(reach::ACCESSED)).0.into();
        base.changed = self.changed.encode(has_extra(reach::CHANGED)).0.into();
        base.modified = self.modified.encode(has_extra(reach::MODIFIED)).0.into();
        base.deleted = self.deleted_or_next_orphan.into();
        base.links = self.links.into();
        base.sectors_low = (count as u32).into();
        base.sectors_high = ((count >> 32) as u16).into();
        base.flags = self.flags.with(InodeFlags::HUGE_FILE, in_blocks).0.into();
        base.version_low = (self.version as u32).into();
        base.map = self.map;
        base.generation = self.generation.into();
        base.attributes_low = (self.attributes_block.0 as u32).into();
        base.attributes_high = ((self.attributes_block.0 >> 32) as u16).into();
        Some(())
    }

    /// Only the fields that `extra_size` reaches: what follows belongs to the extended attributes.
    fn encode_extra(&self, bytes: &mut [u8]) -> Option<()> {
        let reached = usize::from(self.extra_size).min(EXTRA_SIZE);
        let area = bytes.get_mut(BASE_SIZE..)?;
        let mut whole = [0; EXTRA_SIZE];
        let kept = area.len().min(EXTRA_SIZE);
        whole.get_mut(..kept)?.copy_from_slice(area.get(..kept)?);
        let extra = Extra::mut_from_bytes(&mut whole).ok()?;
        let created = self.created.unwrap_or_default().encode(self.extra_size >= reach::CREATED_EXTRA);
        extra.extra_size = self.extra_size.into();
        extra.changed = self.changed.encode(true).1.into();
        extra.modified = self.modified.encode(true).1.into();
        extra.accessed = self.accessed.encode(true).1.into();
        extra.created = created.0.into();
        extra.created_extra = created.1.into();
        extra.version_high = ((self.version >> 32) as u32).into();
        extra.project = self.project.into();
        // Its own size is there even when it says that nothing else is.
        let written = reached.max(size_of::<U16>());
        area.get_mut(..written)?.copy_from_slice(whole.get(..written)?);
        Some(())
    }
}

fn finding(number: InodeNumber, what: &'static str) -> Corrupt {
    Corrupt::new(Structure::Inode, u64::from(number.0), what)
}

fn has_large_size(mode: Mode) -> bool {
    mode.kind() == Some(FileKind::Regular)
}

fn high(word: U32) -> u64 {
    u64::from(word.get()) << 32
}

fn joined_16(low: U16, high: U16) -> u32 {
    u32::from(high.get()) << 16 | u32::from(low.get())
}

fn word(map: &[u8; MAP_SIZE], at: usize) -> u32 {
    map.chunks_exact(4).nth(at).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// The fields extend to a multiple of four, and at least over their own size when they are there at all.
fn extra_size_fits(extra_size: u16, inode_size: usize) -> bool {
    extra_size.is_multiple_of(4) && BASE_SIZE + usize::from(extra_size) <= inode_size
}

fn parts(bytes: &[u8]) -> Result<(&Base, u16, Extra), &'static str> {
    let (base, rest) = Base::ref_from_prefix(bytes).map_err(|_| "it is too short")?;
    let extra_size = rest.first_chunk().map_or(0, |size| u16::from_le_bytes(*size));
    if !extra_size_fits(extra_size, bytes.len()) {
        return Err("the size of the extra fields cannot be");
    }
    let mut reached = [0; EXTRA_SIZE];
    for (to, from) in reached.iter_mut().zip(rest.iter().take(usize::from(extra_size))) {
        *to = *from;
    }
    Ok((base, extra_size, zerocopy::transmute!(reached)))
}

/// Sectors in use. With huge_file the count has 48 bits, and the flag makes it one of blocks (ext4 on-disk format, "Index
/// Nodes", i_blocks_lo).
fn sectors(base: &Base, flags: InodeFlags, rules: &InodeRules) -> u64 {
    let low = u64::from(base.sectors_low.get());
    if !rules.huge_file {
        return low;
    }
    let count = u64::from(base.sectors_high.get()) << 32 | low;
    if flags.contains(InodeFlags::HUGE_FILE) { count * (u64::from(rules.block_size) / SECTOR_SIZE) } else { count }
}

/// The count as it is stored, and whether it is one of blocks. None when it cannot be held.
fn sector_count(sectors: u64, rules: &InodeRules) -> Option<(u64, bool)> {
    if sectors <= u64::from(u32::MAX) {
        return Some((sectors, false));
    }
    if !rules.huge_file {
        return None;
    }
    if sectors <= COUNT_MAX {
        return Some((sectors, false));
    }
    let blocks = sectors.checked_div(u64::from(rules.block_size) / SECTOR_SIZE)?;
    (blocks <= COUNT_MAX).then_some((blocks, true))
}

fn verify(bytes: &[u8], number: InodeNumber, rules: &InodeRules) -> Result<(), Corrupt> {
    let Some(seed) = rules.seed else { return Ok(()) };
    let (base, extra_size, extra) = parts(bytes).map_err(|what| finding(number, what))?;
    let sum = checksum(bytes, seed.of_inode(number, base.generation.get()));
    let high_differs = extra_size >= reach::CHECKSUM_HIGH && extra.checksum_high.get() != (sum >> 16) as u16;
    if high_differs || base.checksum_low.get() != sum as u16 {
        return Err(finding(number, "the checksum does not match"));
    }
    Ok(())
}

/// Of the whole inode, with the places of the checksum as zeros; the upper one only where it is one (ext4 on-disk format,
/// "Checksums").
fn checksum(bytes: &[u8], seed: Seed) -> u32 {
    const LOW: usize = 0x7c;
    const HIGH: usize = 0x82;
    const ZEROS: [u8; 2] = [0; 2];
    let part = |from: usize, to: usize| bytes.get(from..to).unwrap_or_default();
    let seed = seed.then(part(0, LOW)).then(&ZEROS).then(part(LOW + 2, BASE_SIZE));
    let extra_size = part(BASE_SIZE, BASE_SIZE + 2).first_chunk().map_or(0, |size| u16::from_le_bytes(*size));
    if extra_size < reach::CHECKSUM_HIGH {
        return seed.sum(part(BASE_SIZE, bytes.len()));
    }
    seed.then(part(BASE_SIZE, HIGH)).then(&ZEROS).sum(part(HIGH + 2, bytes.len()))
}

fn store_checksum(bytes: &mut [u8], extra_size: u16, sum: u32) -> Option<()> {
    let (base, rest) = Base::mut_from_prefix(bytes).ok()?;
    base.checksum_low = (sum as u16).into();
    if extra_size >= reach::CHECKSUM_HIGH {
        rest.get_mut(2..4)?.copy_from_slice(&((sum >> 16) as u16).to_le_bytes());
    }
    Some(())
}

#[cfg(test)]
#[path = "inode_tests.rs"]
mod tests;
