//! The feature masks of the superblock (ext4 on-disk format, "Super Block"), and what this engine does with an image
//! that has them: write it, only read it, or refuse it. Widening a list wants evidence of the kernel and of e2fsck.

use std::fmt;

/// The three masks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// What an engine that does not know them may ignore: see [`compat`].
    pub compat: u32,
    /// What an engine must know to do anything: see [`incompat`].
    pub incompat: u32,
    /// What an engine must know to write: see [`ro_compat`].
    pub ro_compat: u32,
}

/// Bits that may be ignored.
pub mod compat {
    /// Blocks are preallocated to directories.
    pub const DIR_PREALLOC: u32 = 0x1;
    /// Inodes of AFS servers.
    pub const IMAGIC_INODES: u32 = 0x2;
    /// There is a journal.
    pub const HAS_JOURNAL: u32 = 0x4;
    /// There may be extended attributes.
    pub const EXT_ATTR: u32 = 0x8;
    /// Blocks are reserved behind the descriptors, held by inode 7.
    pub const RESIZE_INODE: u32 = 0x10;
    /// Directories may have a hash tree.
    pub const DIR_INDEX: u32 = 0x20;
    /// Uninitialized groups of a test feature.
    pub const LAZY_BG: u32 = 0x40;
    /// Bitmaps of a snapshot feature that never was merged.
    pub const SNAPSHOT_BITMAP: u32 = 0x100;
    /// Only two groups hold backups of the superblock, and the superblock names them.
    pub const SPARSE_SUPER2: u32 = 0x200;
    /// The journal has an area of fast commits.
    pub const FAST_COMMIT: u32 = 0x400;
    /// Inode numbers and UUID must not change.
    pub const STABLE_INODES: u32 = 0x800;
    /// Orphans are kept in a file.
    pub const ORPHAN_FILE: u32 = 0x1000;
}

/// Bits that must be known.
pub mod incompat {
    /// Compressed files.
    pub const COMPRESSION: u32 = 0x1;
    /// Directory entries tell the kind of file.
    pub const FILETYPE: u32 = 0x2;
    /// The journal is to be replayed.
    pub const NEEDS_RECOVERY: u32 = 0x4;
    /// This is not a filesystem but the journal of one.
    pub const JOURNAL_DEV: u32 = 0x8;
    /// Descriptors lie in the groups they describe.
    pub const META_BG: u32 = 0x10;
    /// Files may have extents.
    pub const EXTENT: u32 = 0x40;
    /// Block numbers are wider than 32 bits.
    pub const WIDE_BLOCKS: u32 = 0x80;
    /// A block tells whether somebody has it mounted.
    pub const MMP: u32 = 0x100;
    /// Bitmaps and inode tables may lie outside their group.
    pub const FLEX_BG: u32 = 0x200;
    /// Large extended attributes have an inode.
    pub const EA_INODE: u32 = 0x400;
    /// Directory entries carry data.
    pub const DIRDATA: u32 = 0x1000;
    /// The seed of checksums is in the superblock.
    pub const METADATA_CSUM_SEED: u32 = 0x2000;
    /// Directories beyond 2 GiB or two levels of hash tree.
    pub const LARGE_DIR: u32 = 0x4000;
    /// Small files live in their inode.
    pub const INLINE_DATA: u32 = 0x8000;
    /// Encrypted files.
    pub const ENCRYPT: u32 = 0x10000;
    /// Directories that ignore case.
    pub const CASEFOLD: u32 = 0x20000;
}

/// Bits that must be known to a writer.
pub mod ro_compat {
    /// Only groups 0, 1 and powers of 3, 5 and 7 hold backups of the superblock.
    pub const SPARSE_SUPER: u32 = 0x1;
    /// There is a file of more than 2 GiB.
    pub const LARGE_FILE: u32 = 0x2;
    /// Never used.
    pub const BTREE_DIR: u32 = 0x4;
    /// Files may count their blocks in blocks.
    pub const HUGE_FILE: u32 = 0x8;
    /// Descriptors have a CRC16, and may call bitmaps uninitialized.
    pub const UNINIT_BG: u32 = 0x10;
    /// Directories may have more than 65,000 subdirectories.
    pub const DIR_NLINK: u32 = 0x20;
    /// Inodes have fields beyond 128 bytes.
    pub const EXTRA_ISIZE: u32 = 0x40;
    /// There is a snapshot.
    pub const SNAPSHOT: u32 = 0x80;
    /// Quota is kept in hidden inodes.
    pub const QUOTA: u32 = 0x100;
    /// A bit of a block bitmap stands for several blocks.
    pub const BIGALLOC: u32 = 0x200;
    /// All metadata has a CRC32C.
    pub const METADATA_CSUM: u32 = 0x400;
    /// Replicas; never used.
    pub const REPLICA: u32 = 0x800;
    /// Never to be written.
    pub const READ_ONLY: u32 = 0x1000;
    /// Inodes belong to projects.
    pub const PROJECT: u32 = 0x2000;
    /// Files share blocks.
    pub const SHARED_BLOCKS: u32 = 0x4000;
    /// Files with a hash tree over their content.
    pub const VERITY: u32 = 0x8000;
    /// The orphan file has entries.
    pub const ORPHAN_PRESENT: u32 = 0x10000;
}

/// The names of compat bits, as mke2fs spells them.
pub const COMPAT_NAMES: &[(u32, &str)] = &[
    (compat::DIR_PREALLOC, "dir_prealloc"),
    (compat::IMAGIC_INODES, "imagic_inodes"),
    (compat::HAS_JOURNAL, "has_journal"),
    (compat::EXT_ATTR, "ext_attr"),
    (compat::RESIZE_INODE, "resize_inode"),
    (compat::DIR_INDEX, "dir_index"),
    (compat::LAZY_BG, "lazy_bg"),
    (compat::SNAPSHOT_BITMAP, "snapshot_bitmap"),
    (compat::SPARSE_SUPER2, "sparse_super2"),
    (compat::FAST_COMMIT, "fast_commit"),
    (compat::STABLE_INODES, "stable_inodes"),
    (compat::ORPHAN_FILE, "orphan_file"),
];

/// The names of incompat bits, as mke2fs spells them.
pub const INCOMPAT_NAMES: &[(u32, &str)] = &[
    (incompat::COMPRESSION, "compression"),
    (incompat::FILETYPE, "filetype"),
    (incompat::NEEDS_RECOVERY, "needs_recovery"),
    (incompat::JOURNAL_DEV, "journal_dev"),
    (incompat::META_BG, "meta_bg"),
    (incompat::EXTENT, "extent"),
    (incompat::WIDE_BLOCKS, "64bit"),
    (incompat::MMP, "mmp"),
    (incompat::FLEX_BG, "flex_bg"),
    (incompat::EA_INODE, "ea_inode"),
    (incompat::DIRDATA, "dirdata"),
    (incompat::METADATA_CSUM_SEED, "metadata_csum_seed"),
    (incompat::LARGE_DIR, "large_dir"),
    (incompat::INLINE_DATA, "inline_data"),
    (incompat::ENCRYPT, "encrypt"),
    (incompat::CASEFOLD, "casefold"),
];

/// The names of ro_compat bits, as mke2fs spells them.
pub const RO_COMPAT_NAMES: &[(u32, &str)] = &[
    (ro_compat::SPARSE_SUPER, "sparse_super"),
    (ro_compat::LARGE_FILE, "large_file"),
    (ro_compat::BTREE_DIR, "btree_dir"),
    (ro_compat::HUGE_FILE, "huge_file"),
    (ro_compat::UNINIT_BG, "uninit_bg"),
    (ro_compat::DIR_NLINK, "dir_nlink"),
    (ro_compat::EXTRA_ISIZE, "extra_isize"),
    (ro_compat::SNAPSHOT, "snapshot"),
    (ro_compat::QUOTA, "quota"),
    (ro_compat::BIGALLOC, "bigalloc"),
    (ro_compat::METADATA_CSUM, "metadata_csum"),
    (ro_compat::REPLICA, "replica"),
    (ro_compat::READ_ONLY, "read-only"),
    (ro_compat::PROJECT, "project"),
    (ro_compat::SHARED_BLOCKS, "shared_blocks"),
    (ro_compat::VERITY, "verity"),
    (ro_compat::ORPHAN_PRESENT, "orphan_present"),
];

/// Compat bits that change where metadata lies or what must be kept up, and which the writer does not serve. Any other
/// compat bit, known or not, may be ignored.
const COMPAT_READ_ONLY: u32 = compat::SPARSE_SUPER2;

/// Incompat bits that may be written.
const INCOMPAT_READ_WRITE: u32 = incompat::FILETYPE
    | incompat::NEEDS_RECOVERY
    | incompat::EXTENT
    | incompat::WIDE_BLOCKS
    | incompat::FLEX_BG
    | incompat::METADATA_CSUM_SEED;

/// Incompat bits that may be read. With `mmp` only while its block says that nobody has it mounted.
const INCOMPAT_READ_ONLY: u32 =
    incompat::META_BG | incompat::MMP | incompat::EA_INODE | incompat::INLINE_DATA | incompat::CASEFOLD;

/// Ro_compat bits that may be written.
const RO_COMPAT_READ_WRITE: u32 = ro_compat::SPARSE_SUPER
    | ro_compat::LARGE_FILE
    | ro_compat::HUGE_FILE
    | ro_compat::UNINIT_BG
    | ro_compat::DIR_NLINK
    | ro_compat::EXTRA_ISIZE
    | ro_compat::METADATA_CSUM
    | ro_compat::ORPHAN_PRESENT;

/// What may be done with an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everything.
    ReadWrite,
    /// It may be read.
    ReadOnly {
        /// What stands against writing.
        why: Vec<Reason>,
    },
    /// Nothing.
    Refused {
        /// What stands against reading.
        why: Vec<Reason>,
    },
}

/// One thing that stands against writing or reading an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A feature, by its name.
    Feature(&'static str),
    /// A bit of this mask that has no name here.
    Unknown(Mask, u32),
    /// There is no journal, so that no change could be made safely.
    NoJournal,
    /// The journal is on another device.
    ExternalJournal,
    /// The journal wants to be replayed, and may hold fast commits, which this engine cannot replay.
    DirtyFastCommits,
}

/// One of the three masks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// [`Features::compat`].
    Compat,
    /// [`Features::incompat`].
    Incompat,
    /// [`Features::ro_compat`].
    RoCompat,
}

/// What these features allow. Whether the journal is on another device, the masks do not tell: see
/// [`super::superblock::Superblock::decode`].
pub fn access(features: Features) -> Access {
    let Features { compat, incompat, ro_compat } = features;
    let mut why = Vec::new();
    Mask::Incompat.reasons(incompat & !(INCOMPAT_READ_WRITE | INCOMPAT_READ_ONLY), &mut why);
    if compat & compat::FAST_COMMIT != 0 && incompat & incompat::NEEDS_RECOVERY != 0 {
        why.push(Reason::DirtyFastCommits);
    }
    if !why.is_empty() {
        return Access::Refused { why };
    }
    Mask::Compat.reasons(compat & COMPAT_READ_ONLY, &mut why);
    Mask::Incompat.reasons(incompat & INCOMPAT_READ_ONLY, &mut why);
    Mask::RoCompat.reasons(ro_compat & !RO_COMPAT_READ_WRITE, &mut why);
    if compat & compat::HAS_JOURNAL == 0 {
        why.push(Reason::NoJournal);
    }
    if why.is_empty() { Access::ReadWrite } else { Access::ReadOnly { why } }
}

impl Features {
    /// True when one of the compat bits in `mask` is set.
    pub fn has_compat(self, mask: u32) -> bool {
        self.compat & mask != 0
    }

    /// True when one of the incompat bits in `mask` is set.
    pub fn has_incompat(self, mask: u32) -> bool {
        self.incompat & mask != 0
    }

    /// True when one of the ro_compat bits in `mask` is set.
    pub fn has_ro_compat(self, mask: u32) -> bool {
        self.ro_compat & mask != 0
    }

    /// Every feature that is on.
    pub fn names(self) -> Vec<Reason> {
        let mut names = Vec::new();
        Mask::Compat.reasons(self.compat, &mut names);
        Mask::Incompat.reasons(self.incompat, &mut names);
        Mask::RoCompat.reasons(self.ro_compat, &mut names);
        names
    }
}

impl Mask {
    /// Appends one reason for each bit set in `bits`, lowest first.
    fn reasons(self, bits: u32, why: &mut Vec<Reason>) {
        let names = match self {
            Self::Compat => COMPAT_NAMES,
            Self::Incompat => INCOMPAT_NAMES,
            Self::RoCompat => RO_COMPAT_NAMES,
        };
        for bit in (0..u32::BITS).filter(|bit| bits & (1 << bit) != 0) {
            let named = names.iter().find(|(mask, _)| *mask == 1 << bit);
            why.push(named.map_or(Reason::Unknown(self, bit), |(_, name)| Reason::Feature(name)));
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Feature(name) => f.write_str(name),
            // As e2fsprogs spells them.
            Self::Unknown(Mask::Compat, bit) => write!(f, "FEATURE_C{bit}"),
            Self::Unknown(Mask::Incompat, bit) => write!(f, "FEATURE_I{bit}"),
            Self::Unknown(Mask::RoCompat, bit) => write!(f, "FEATURE_R{bit}"),
            Self::NoJournal => f.write_str("no journal"),
            Self::ExternalJournal => f.write_str("a journal on another device"),
            Self::DirtyFastCommits => f.write_str("fast commits to be replayed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Features = Features {
        compat: compat::HAS_JOURNAL | compat::EXT_ATTR | compat::RESIZE_INODE | compat::DIR_INDEX,
        incompat: INCOMPAT_READ_WRITE,
        ro_compat: RO_COMPAT_READ_WRITE & !ro_compat::UNINIT_BG & !ro_compat::ORPHAN_PRESENT,
    };

    #[test]
    fn our_own_profile_is_written() {
        assert_eq!(access(OURS), Access::ReadWrite);
    }

    #[test]
    fn each_incompat_bit_beyond_the_lists_is_refused_by_name() {
        for bit in (0..32).filter(|bit| (1 << bit) & (INCOMPAT_READ_WRITE | INCOMPAT_READ_ONLY) == 0) {
            let Access::Refused { why } = access(Features { incompat: OURS.incompat | 1 << bit, ..OURS }) else {
                panic!("bit {bit} is let in");
            };
            assert_eq!(why.len(), 1);
        }
        let odd = access(Features { incompat: OURS.incompat | 1 << 31 | incompat::ENCRYPT, ..OURS });
        let why = vec![Reason::Feature("encrypt"), Reason::Unknown(Mask::Incompat, 31)];
        assert_eq!(odd, Access::Refused { why });
    }

    #[test]
    fn each_ro_compat_bit_beyond_the_list_is_read_only_and_each_compat_bit_but_one_is_ignored() {
        for bit in (0..32).filter(|bit| (1 << bit) & RO_COMPAT_READ_WRITE == 0) {
            let found = access(Features { ro_compat: OURS.ro_compat | 1 << bit, ..OURS });
            assert!(matches!(found, Access::ReadOnly { why } if why.len() == 1), "bit {bit}");
        }
        for bit in (0..32).filter(|bit| *bit != 9) {
            let clean = OURS.incompat & !incompat::NEEDS_RECOVERY;
            let found = access(Features { compat: OURS.compat | 1 << bit, incompat: clean, ..OURS });
            assert_eq!(found, Access::ReadWrite, "bit {bit}");
        }
        let sparse = access(Features { compat: OURS.compat | compat::SPARSE_SUPER2, ..OURS });
        assert_eq!(sparse, Access::ReadOnly { why: vec![Reason::Feature("sparse_super2")] });
    }

    #[test]
    fn fast_commits_are_refused_only_with_a_journal_to_replay() {
        let dirty = Features { compat: OURS.compat | compat::FAST_COMMIT, ..OURS };
        assert_eq!(access(dirty), Access::Refused { why: vec![Reason::DirtyFastCommits] });
        let clean = Features { incompat: OURS.incompat & !incompat::NEEDS_RECOVERY, ..dirty };
        assert_eq!(access(clean), Access::ReadWrite);
    }

    #[test]
    fn without_a_journal_nothing_is_written() {
        let bare = Features { compat: compat::EXT_ATTR, ..OURS };
        assert_eq!(access(bare), Access::ReadOnly { why: vec![Reason::NoJournal] });
    }
}
