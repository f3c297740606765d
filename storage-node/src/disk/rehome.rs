//! Gives a store to another cluster, offline: for the survivor of a cluster whose majority is gone for good. Blocking.
//!
//! Both superblocks are written, the one not in use first. Interrupted between the two the store is refused as one
//! whose superblocks belong to different clusters; a repeated call finishes it.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use block_device::AlignedBuf;
use proto::ClusterId;

use super::StoreError;
use super::backing::{Access, Backing, decode_slot, io_at, refused};
use super::create::STORE_SUFFIX;
use super::layout::SLOT_OFFSETS;
use super::superblock::{SLOT_BYTES, Superblock};
use crate::lock_wait::patience;

/// Makes every store in `directory` and on `devices` that belongs to `old` one of `new`; gives how many there are. What
/// belongs to neither is left alone. Errors: a store is open, or it cannot be read or written.
pub fn rehome_stores(
    directory: &Path,
    devices: &[PathBuf],
    old: ClusterId,
    new: ClusterId,
) -> Result<usize, StoreError> {
    let mut places = devices.to_vec();
    let entries = match fs::read_dir(directory) {
        // A witness has none.
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        entries => Some(entries.map_err(io_at(directory))?),
    };
    for entry in entries.into_iter().flatten() {
        let path = entry.map_err(io_at(directory))?.path();
        if path.to_string_lossy().ends_with(STORE_SUFFIX) {
            places.push(path);
        }
    }
    let mut count = 0;
    for path in &places {
        count += usize::from(rehome(path, old, new)?);
    }
    Ok(count)
}

/// False for a place that holds no store of either cluster.
fn rehome(path: &Path, old: ClusterId, new: ClusterId) -> Result<bool, StoreError> {
    let backing = Backing::open(path, Access::Write).map_err(io_at(path))?;
    let slots: Vec<Option<Superblock>> = SLOT_OFFSETS.iter().map(|offset| read(&backing, *offset)).collect();
    let ours = |slot: &&Superblock| slot.cluster == old || slot.cluster == new;
    let Some(newest) = slots.iter().flatten().filter(ours).max_by_key(|slot| slot.generation).cloned() else {
        return Ok(false);
    };
    let mut look_again = patience();
    while !backing.try_lock().map_err(io_at(path))? {
        if !look_again() {
            return Err(refused(path, "the store is open; stop the node first"));
        }
    }
    let in_use = slots.iter().position(|slot| slot.as_ref() == Some(&newest)).unwrap_or(0);
    for (number, slot) in [1 - in_use, in_use].into_iter().enumerate() {
        let generation = newest.generation + 1 + number as u64;
        let superblock = Superblock { cluster: new, generation, ..newest.clone() };
        let mut bytes = AlignedBuf::zeroed(SLOT_BYTES);
        bytes.copy_from_slice(&superblock.encode());
        backing.file.write_all_at(&bytes, SLOT_OFFSETS[slot]).map_err(io_at(path))?;
        backing.file.sync_all().map_err(io_at(path))?;
    }
    Ok(true)
}

fn read(backing: &Backing, offset: u64) -> Option<Superblock> {
    let mut bytes = AlignedBuf::zeroed(SLOT_BYTES);
    backing.file.read_exact_at(&mut bytes, offset).ok()?;
    decode_slot(&bytes).ok()
}
