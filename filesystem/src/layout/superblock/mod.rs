//! The superblock: decoded, checked, and read by name. What may change while the filesystem is in use is changed in
//! `edit`; the numbers that never change are in [`Geometry`].

mod balance;
mod edit;
mod raw;

use thiserror::Error;
use zerocopy::{FromBytes, IntoBytes};

use super::checksum::Seed;
use super::features::{self, Access, Features, Reason, compat, incompat, ro_compat};
use super::geometry::Geometry;
use super::{Corrupt, Structure, until_zero};
use crate::units::{BlockNumber, InodeNumber};

pub use edit::{ErrorRecord, Seconds, State};
pub(crate) use raw::{RawSuperblock, wide};

/// Where the primary superblock lies, in bytes from the start of the device.
pub const SUPERBLOCK_OFFSET: u64 = 1024;

/// Its length in bytes.
pub const SUPERBLOCK_BYTES: usize = 1024;

/// Bytes before the checksum, all of which it covers.
const CHECKSUMMED_BYTES: usize = SUPERBLOCK_BYTES - 4;

/// The only `s_checksum_type`: CRC32C.
const CHECKSUM_CRC32C: u8 = 1;

/// `s_jnl_backup_type`: the copy of the journal's inode is there.
const JOURNAL_BACKUP_BLOCKS: u8 = 1;

/// A superblock whose image can at least be read.
#[derive(Clone)]
pub struct Superblock {
    raw: RawSuperblock,
    geometry: Geometry,
    read_only: Vec<Reason>,
}

/// Why there is no superblock to work with.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unusable {
    /// The magic number is missing.
    #[error("this is not an ext4 filesystem")]
    NotExt4,
    /// A sound filesystem that this engine cannot work with.
    #[error("the filesystem has {}", list(.why))]
    Refused {
        /// Every feature that stands against it.
        why: Vec<Reason>,
    },
    /// As before, for a number out of the range that is supported.
    #[error("unsupported: {0}")]
    Unsupported(&'static str),
    /// It contradicts itself or its checksum.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
}

/// How the hash of directory names takes bytes above 127 (`s_flags`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashSign {
    /// As negative numbers.
    Signed,
    /// As they are.
    Unsigned,
    /// Not said yet: the kernel settles it at the first mount, by what its processor does; x86 is signed.
    Unset,
}

/// The copy of the journal's inode that e2fsck uses when the inode is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalBackup {
    /// Its `i_block`: the root of an extent tree or an indirect map.
    pub i_block: [u8; 60],
    /// Its size in bytes.
    pub size: u64,
}

impl Superblock {
    /// Decodes the 1024 bytes of a superblock. Errors: see [`Unusable`]; an image that may only be read is no error, but
    /// says so in [`Superblock::read_only`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Unusable> {
        let Ok((raw, _)) = RawSuperblock::read_from_prefix(bytes) else {
            return Err(corrupt("it is cut short").into());
        };
        if raw.magic.get() != raw::MAGIC {
            return Err(Unusable::NotExt4);
        }
        check_sum(&raw)?;
        let features = raw.features();
        let read_only = match access_of(&raw) {
            Access::ReadWrite => Vec::new(),
            Access::ReadOnly { why } => why,
            Access::Refused { why } => return Err(Unusable::Refused { why }),
        };
        check_revision(&raw)?;
        let geometry = Geometry::of(&raw, features)?;
        check_counts(&raw, &geometry)?;
        Ok(Self { raw, geometry, read_only })
    }

    /// The 1024 bytes, with a checksum that is right. Where that can be, it is the one that was there when this was decoded:
    /// a disk writes a sector of 512 bytes whole, and what changes while a filesystem is in use lies in the first one, the
    /// checksum in the second. Torn between the two, the superblock would be lost. See `balance`.
    pub fn encode(&self) -> [u8; SUPERBLOCK_BYTES] {
        let mut raw = self.raw.clone();
        if self.features().has_ro_compat(ro_compat::METADATA_CSUM) && !balance::keep_checksum(&mut raw) {
            raw.checksum.set(raw.sum());
        }
        let mut bytes = [0; SUPERBLOCK_BYTES];
        bytes.copy_from_slice(raw.as_bytes());
        bytes
    }

    /// What stands against writing to this image; nothing when it may be written.
    pub fn read_only(&self) -> &[Reason] {
        &self.read_only
    }

    /// The numbers that never change while the filesystem is in use.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The feature masks.
    pub fn features(&self) -> Features {
        self.raw.features()
    }

    /// The volume's UUID.
    pub fn uuid(&self) -> [u8; 16] {
        self.raw.uuid
    }

    /// The volume's name, up to 16 bytes.
    pub fn label(&self) -> &[u8] {
        until_zero(&self.raw.volume_name)
    }

    /// Where it was last mounted, up to 64 bytes.
    pub fn last_mounted(&self) -> &[u8] {
        until_zero(&self.raw.last_mounted)
    }

    /// What the hash of directory names starts from; all zero means the hash's own constants.
    pub fn hash_seed(&self) -> [u32; 4] {
        self.raw.hash_seed.map(|word| word.get())
    }

    /// Whether that hash is signed.
    pub fn hash_sign(&self) -> HashSign {
        match self.raw.flags.get() & 3 {
            1 => HashSign::Signed,
            2 => HashSign::Unsigned,
            _ => HashSign::Unset,
        }
    }

    /// The number of the hash that new directory indexes use: 0 legacy, 1 half MD4, 2 tea.
    pub fn default_hash_version(&self) -> u8 {
        self.raw.def_hash_version
    }

    /// The inode that holds the journal.
    pub fn journal_inode(&self) -> Option<InodeNumber> {
        let has = self.features().has_compat(compat::HAS_JOURNAL);
        inode(self.raw.journal_inum.get()).filter(|_| has)
    }

    /// What is kept for the loss of that inode.
    pub fn journal_backup(&self) -> Option<JournalBackup> {
        if self.raw.jnl_backup_type != JOURNAL_BACKUP_BLOCKS {
            return None;
        }
        let mut i_block = [0; 60];
        i_block.copy_from_slice(self.raw.jnl_blocks.as_bytes().get(..60)?);
        let [.., high, low] = self.raw.jnl_blocks;
        Some(JournalBackup { i_block, size: wide(low, high, true) })
    }

    /// The inode of the orphan file.
    pub fn orphan_file_inode(&self) -> Option<InodeNumber> {
        let has = self.features().has_compat(compat::ORPHAN_FILE);
        inode(self.raw.orphan_file_inum.get()).filter(|_| has)
    }

    /// The inode of `lost+found`, where it is recorded.
    pub fn lost_and_found(&self) -> Option<InodeNumber> {
        inode(self.raw.lpf_ino.get())
    }

    /// The hidden inodes of user, group and project quota.
    pub fn quota_inodes(&self) -> [Option<InodeNumber>; 3] {
        [self.raw.usr_quota_inum, self.raw.grp_quota_inum, self.raw.prj_quota_inum].map(|number| inode(number.get()))
    }

    /// The block of the multi-mount mark, of an image with the feature `mmp`: see [`super::mmp`].
    pub fn multi_mount_block(&self) -> Option<BlockNumber> {
        let has = self.features().has_incompat(incompat::MMP);
        has.then(|| BlockNumber(self.raw.mmp_block.get()))
    }

    /// Blocks kept for the superuser and for `reserved_owner`.
    pub fn reserved_blocks(&self) -> u64 {
        wide(self.raw.r_blocks_count_lo, self.raw.r_blocks_count_hi, self.geometry.wide_blocks)
    }

    /// The user and group that may use the reserved blocks.
    pub fn reserved_owner(&self) -> (u16, u16) {
        (self.raw.def_resuid.get(), self.raw.def_resgid.get())
    }

    /// Clusters (blocks, without bigalloc) that metadata took when the filesystem was made, the journal included; 0 when
    /// nobody counted.
    pub fn overhead(&self) -> u32 {
        self.raw.overhead_clusters.get()
    }

    /// Bytes beyond the first 128 that every inode has, and that new inodes shall have.
    pub fn extra_inode_bytes(&self) -> (u16, u16) {
        (self.raw.min_extra_isize.get(), self.raw.want_extra_isize.get())
    }

    /// `s_errors`: what the kernel does on finding an error; 1 goes on, 2 turns read-only, 3 panics.
    pub fn on_error(&self) -> u16 {
        self.raw.errors.get()
    }

    /// `s_default_mount_opts`.
    pub fn default_mount_options(&self) -> u32 {
        self.raw.default_mount_opts.get()
    }

    /// `s_creator_os`: 0 is Linux.
    pub fn creator_os(&self) -> u32 {
        self.raw.creator_os.get()
    }

    /// Mounts after which e2fsck checks everything; 0 and 65535 mean never.
    pub fn mounts_before_check(&self) -> u16 {
        self.raw.max_mnt_count.get()
    }

    /// The group whose copy this is; 0 is the primary.
    pub fn copy_of_group(&self) -> u16 {
        self.raw.block_group_nr.get()
    }
}

impl RawSuperblock {
    fn features(&self) -> Features {
        Features {
            compat: self.feature_compat.get(),
            incompat: self.feature_incompat.get(),
            ro_compat: self.feature_ro_compat.get(),
        }
    }

    /// The checksum of what is before the checksum (ext4 on-disk format, "Checksums"); not from the filesystem's seed.
    fn sum(&self) -> u32 {
        Seed::START.sum(self.as_bytes().get(..CHECKSUMMED_BYTES).unwrap_or_default())
    }
}

fn check_sum(raw: &RawSuperblock) -> Result<(), Corrupt> {
    if raw.features().has_ro_compat(ro_compat::METADATA_CSUM) {
        if raw.checksum_type != CHECKSUM_CRC32C {
            return Err(corrupt("the kind of checksum is unknown"));
        }
        if raw.checksum.get() != raw.sum() {
            return Err(corrupt("its checksum is wrong"));
        }
        return Ok(());
    }
    // A lost feature bit would turn every check off: the checksum that was true with the bit gives it away.
    let mut with = raw.clone();
    with.feature_ro_compat.set(raw.feature_ro_compat.get() | ro_compat::METADATA_CSUM);
    if raw.checksum_type == CHECKSUM_CRC32C && raw.checksum.get() == with.sum() {
        return Err(corrupt("the feature bit of its checksum is lost"));
    }
    Ok(())
}

/// What the features allow, and where the journal is: with both an inode and a device, or neither, it is not for us.
fn access_of(raw: &RawSuperblock) -> Access {
    let features = raw.features();
    let external = raw.journal_inum.get() == 0 || raw.journal_dev.get() != 0;
    match features::access(features) {
        Access::Refused { mut why } if external && features.has_compat(compat::HAS_JOURNAL) => {
            why.push(Reason::ExternalJournal);
            Access::Refused { why }
        }
        _ if external && features.has_compat(compat::HAS_JOURNAL) => {
            Access::Refused { why: vec![Reason::ExternalJournal] }
        }
        access => access,
    }
}

fn check_revision(raw: &RawSuperblock) -> Result<(), Unusable> {
    match raw.rev_level.get() {
        0 if raw.features() != Features::default() => Err(corrupt("revision 0 has no features").into()),
        0 | 1 => Ok(()),
        _ => Err(Unusable::Unsupported("a revision above 1")),
    }
}

/// Counts that change, against those that do not.
fn check_counts(raw: &RawSuperblock, geometry: &Geometry) -> Result<(), Corrupt> {
    let has_high = geometry.wide_blocks;
    if wide(raw.r_blocks_count_lo, raw.r_blocks_count_hi, has_high) > geometry.block_count {
        return Err(corrupt("more blocks are reserved than there are"));
    }
    if wide(raw.free_blocks_count_lo, raw.free_blocks_count_hi, has_high) > geometry.block_count {
        return Err(corrupt("more blocks are free than there are"));
    }
    if raw.free_inodes_count.get() > geometry.inode_count {
        return Err(corrupt("more inodes are free than there are"));
    }
    if raw.journal_inum.get() > geometry.inode_count {
        return Err(corrupt("there is no such inode as the journal's"));
    }
    Ok(())
}

pub(crate) fn corrupt(what: &'static str) -> Corrupt {
    Corrupt::new(Structure::Superblock, 0, what)
}

fn inode(number: u32) -> Option<InodeNumber> {
    (number != 0).then_some(InodeNumber(number))
}

fn list(why: &[Reason]) -> String {
    let names: Vec<String> = why.iter().map(Reason::to_string).collect();
    names.join(", ")
}
