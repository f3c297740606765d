//! The table of volumes that have, or are to have, a copy on this node.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use proto::{DiskId, VolumeId};

use crate::disk::FoundStore;
use crate::volume::VolumeHandle;

/// A local copy, from its registration to its removal.
#[derive(Clone)]
pub(crate) enum LocalVolume {
    /// Its store is being made.
    Creating { disk_id: DiskId, done: u64, total: u64 },
    /// Its store could not be made; tried again after `retry_at` (CLOCK_BOOTTIME microseconds).
    CreateFailed { disk_id: DiskId, why: String, retry_at: u64 },
    /// It runs, with or without a store.
    Running { disk_id: DiskId, handle: VolumeHandle, found: Option<FoundStore> },
    /// It is ending, because it is gone from the configuration.
    Removing { disk_id: DiskId },
}

impl LocalVolume {
    /// The registered copy.
    pub(crate) fn disk_id(&self) -> DiskId {
        match self {
            LocalVolume::Creating { disk_id, .. }
            | LocalVolume::CreateFailed { disk_id, .. }
            | LocalVolume::Running { disk_id, .. }
            | LocalVolume::Removing { disk_id } => *disk_id,
        }
    }

    /// The actor, where one runs.
    pub(crate) fn handle(&self) -> Option<&VolumeHandle> {
        match self {
            LocalVolume::Running { handle, .. } => Some(handle),
            _ => None,
        }
    }
}

/// The table; locked for moments only.
#[derive(Default)]
pub(crate) struct Volumes {
    table: Mutex<BTreeMap<VolumeId, LocalVolume>>,
}

impl Volumes {
    pub(crate) fn lock(&self) -> MutexGuard<'_, BTreeMap<VolumeId, LocalVolume>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The actor of a volume.
    pub(crate) fn handle(&self, volume: VolumeId) -> Option<VolumeHandle> {
        self.lock().get(&volume).and_then(|local| local.handle().cloned())
    }

    /// All actors.
    pub(crate) fn handles(&self) -> Vec<VolumeHandle> {
        self.lock().values().filter_map(|local| local.handle().cloned()).collect()
    }

    /// The shard with the fewest volumes.
    pub(crate) fn least_loaded_shard(&self, shards: usize) -> usize {
        let mut load = vec![0usize; shards.max(1)];
        for handle in self.lock().values().filter_map(LocalVolume::handle) {
            if let Some(count) = load.get_mut(handle.shard()) {
                *count += 1;
            }
        }
        load.iter().enumerate().min_by_key(|(_, count)| **count).map_or(0, |(shard, _)| shard)
    }
}
