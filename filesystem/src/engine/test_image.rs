//! A small filesystem in memory for unit tests, made by mke2fs.

use std::fs::{self, File};
use std::process::Command;

use bytes::Bytes;

use super::cache::BlockCache;
use super::data::table::DataTable;
use super::handle::{Handle, View};
use super::profile::Profile;
use super::system_zone::SystemZone;
use super::transaction::{Closed, Transaction};
use crate::layout::geometry::Geometry;
use crate::layout::superblock::{SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET, Superblock};
use crate::store::Stop;
use crate::units::{BlockNumber, GroupNumber, TransactionId};

/// Profiles whose descriptors and bitmaps differ: checksums of both kinds and none, tables anywhere or in their group.
pub(super) const FEATURES: [&str; 3] =
    ["metadata_csum,flex_bg", "^metadata_csum,uninit_bg", "^metadata_csum,^uninit_bg,^flex_bg,^64bit"];

const BLOCK: u64 = 1024;

/// A filesystem of several groups in memory, all of it.
pub(super) struct Image {
    pub(super) geometry: Geometry,
    profile: Profile,
    cache: BlockCache,
    running: Transaction,
    pub(super) closing: Option<Closed>,
}

impl Image {
    /// As mke2fs makes it with these features, blocks of 1 KiB.
    pub(super) fn make(features: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("image");
        File::create(&path).and_then(|file| file.set_len(32 << 20)).expect("a sparse file");
        let mut make = Command::new("/sbin/mke2fs");
        make.args(["-q", "-t", "ext4", "-b", "1024", "-O", features]).arg(&path);
        let status = make.status().expect("mke2fs (e2fsprogs) runs");
        assert!(status.success(), "mke2fs: {status}");
        let bytes = fs::read(&path).expect("the image");
        let at = SUPERBLOCK_OFFSET as usize;
        let superblock = Superblock::decode(&bytes[at..at + SUPERBLOCK_BYTES]).expect("mke2fs made it");
        let mut cache = BlockCache::new(bytes.len());
        for (number, block) in bytes.chunks(BLOCK as usize).enumerate() {
            cache.fetched(BlockNumber(number as u64), Bytes::copy_from_slice(block));
        }
        let running = Transaction::new(TransactionId(1));
        let profile = Profile::of(&superblock);
        Self { geometry: superblock.geometry().clone(), profile, cache, running, closing: None }
    }

    /// An operation that joins the running transaction if it ends well.
    pub(super) fn run<T>(&mut self, op: impl FnOnce(&mut Handle<'_>) -> Result<T, Stop>) -> Result<T, Stop> {
        let Self { geometry, profile, cache, running, closing } = self;
        let closing = closing.as_ref();
        let (last_orphan, version_floor, ring, free_blocks) = (None, 0, None, i64::MAX / 2);
        let system_zone = &SystemZone::default();
        let table = &DataTable::new(0, BLOCK as usize);
        let mut handle = Handle::new(View {
            geometry,
            profile,
            last_orphan,
            version_floor,
            ring,
            cache,
            running,
            closing,
            table,
            system_zone,
            free_blocks,
        });
        let result = op(&mut handle)?;
        let edits = handle.finish().0;
        self.running.join(edits, &mut self.cache);
        Ok(result)
    }

    /// The running transaction is on its way into the log.
    pub(super) fn close(&mut self) {
        let next = Transaction::new(self.running.id().next());
        self.closing = Some(std::mem::replace(&mut self.running, next).close(&mut self.cache));
    }

    /// By the descriptors.
    pub(super) fn free_blocks(&mut self) -> u64 {
        let groups = self.geometry.group_count;
        let count = |handle: &mut Handle<'_>| {
            (0..groups).map(|group| Ok(u64::from(handle.descriptor(GroupNumber(group))?.free_clusters))).sum()
        };
        self.run(count).expect("all descriptors are here")
    }
}
