//! The places where a node keeps stores: finding, making and removing them. Blocking; not for a shard's thread.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use proto::{ClusterId, VolumeId};

use super::backing::{Access, Backing, found, io_at, judge, refused, sync_directory};
use super::create::{self, CREATING_SUFFIX, STORE_SUFFIX};
use super::layout::{Layout, size_problem};
use super::superblock::SlotProblem;
use super::{FoundStore, StoreError, StoreSpec};

/// The places where a node keeps stores: a directory, and raw block devices.
#[derive(Clone, Debug)]
pub struct StorePool {
    directory: PathBuf,
    devices: Vec<PathBuf>,
}

impl StorePool {
    /// `directory` is created if missing; each device of `devices` holds at most one volume.
    pub fn new(directory: &Path, devices: &[PathBuf]) -> Result<Self, StoreError> {
        fs::create_dir_all(directory).map_err(io_at(directory))?;
        Ok(Self { directory: directory.to_owned(), devices: devices.to_vec() })
    }

    /// Every store found, or why it is refused.
    ///
    /// Stores are the files of the directory whose names end in `.tandem`, and the devices that are not blank. Files
    /// left by an interrupted creation are removed. Two stores of one volume are both refused: which one holds what was
    /// acknowledged cannot be told from here.
    pub fn scan(&self, cluster: Option<ClusterId>) -> Vec<Result<FoundStore, StoreError>> {
        let mut results = Vec::new();
        match self.list_directory() {
            Ok(files) => results.extend(files.iter().map(|path| examine_file(path, cluster))),
            Err(error) => results.push(Err(error)),
        }
        results.extend(self.devices.iter().filter_map(|path| examine_device(path, cluster).transpose()));
        refuse_duplicates(results)
    }

    /// Makes a store (blocking; call it off the shard). `progress(done, total)` in bytes. Interrupted, it leaves nothing.
    ///
    /// The smallest blank device that is large enough takes it, else the directory. A device that is neither blank nor
    /// a store of ours is refused, so that a forgotten one does not silently send volumes to the directory.
    pub fn create(&self, spec: &StoreSpec, progress: &dyn Fn(u64, u64)) -> Result<FoundStore, StoreError> {
        if let Some(problem) = size_problem(spec.size_bytes) {
            return Err(refused(&self.directory, problem));
        }
        let needed = Layout::for_volume(spec.size_bytes).store_bytes();
        let mut chosen: Option<(u64, &PathBuf)> = None;
        for path in &self.devices {
            let backing = Backing::open(path, Access::Read).map_err(io_at(path))?;
            match backing.read_superblock() {
                Ok(held) if held.superblock.disk_id == spec.disk_id => {
                    return create::create_on_device(path, spec, progress);
                }
                Ok(_) => {}
                Err(SlotProblem::Blank) if backing.is_blank().map_err(io_at(path))? => {
                    if backing.length >= needed && chosen.is_none_or(|(length, _)| backing.length < length) {
                        chosen = Some((backing.length, path));
                    }
                }
                Err(_) => return create::create_on_device(path, spec, progress),
            }
        }
        match chosen {
            Some((_, path)) => create::create_on_device(path, spec, progress),
            None => create::create_file(&self.directory, spec, progress),
        }
    }

    /// Removes the store of a deleted volume.
    pub fn remove(&self, store: &FoundStore) -> Result<(), StoreError> {
        let path = &store.path;
        let in_use = || refused(path, "the store is open; close the volume before removing it");
        let backing = match Backing::open(path, Access::Write) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Err(in_use()),
            other => other.map_err(io_at(path))?,
        };
        if !backing.try_lock().map_err(io_at(path))? {
            return Err(in_use());
        }
        match backing.read_superblock() {
            Ok(held) if held.superblock.disk_id == store.disk_id => {}
            _ => {
                return Err(refused(
                    path,
                    format!("the place no longer holds copy {}; it is left as it is", store.disk_id),
                ));
            }
        }
        if backing.is_device {
            return create::wipe_head(&backing);
        }
        fs::remove_file(path).map_err(io_at(path))?;
        sync_directory(&self.directory)
    }

    /// The store files, sorted by name; leftovers of interrupted creations are removed.
    fn list_directory(&self) -> Result<Vec<PathBuf>, StoreError> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(io_at(&self.directory))? {
            let path = entry.map_err(io_at(&self.directory))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.ends_with(CREATING_SUFFIX) {
                create::remove_leftover(&path)?;
            } else if name.ends_with(STORE_SUFFIX) {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }
}

fn examine_file(path: &Path, cluster: Option<ClusterId>) -> Result<FoundStore, StoreError> {
    let store = examine(&Backing::open(path, Access::Read).map_err(io_at(path))?, cluster)?;
    let expected = format!("{}{STORE_SUFFIX}", store.volume);
    if path.file_name() != Some(expected.as_ref()) {
        return Err(refused(
            path,
            format!("the file holds a store of volume {} and must be named {expected}; is it a copy?", store.volume),
        ));
    }
    Ok(store)
}

/// `None` for a blank device.
fn examine_device(path: &Path, cluster: Option<ClusterId>) -> Result<Option<FoundStore>, StoreError> {
    let backing = Backing::open(path, Access::Read).map_err(io_at(path))?;
    if !backing.is_device {
        return Err(refused(path, "this is not a block device; name a directory for stores in files"));
    }
    if backing.is_blank().map_err(io_at(path))? {
        return Ok(None);
    }
    examine(&backing, cluster).map(Some)
}

fn examine(backing: &Backing, cluster: Option<ClusterId>) -> Result<FoundStore, StoreError> {
    let chosen = judge(&backing.path, backing.length, backing.read_superblock())?;
    let store = found(&backing.path, &chosen.superblock);
    match cluster {
        Some(ours) if ours != store.cluster => Err(refused(
            &backing.path,
            format!(
                "the store belongs to cluster {}, this node to {ours}; take it back there, or remove it",
                store.cluster
            ),
        )),
        _ => Ok(store),
    }
}

fn refuse_duplicates(results: Vec<Result<FoundStore, StoreError>>) -> Vec<Result<FoundStore, StoreError>> {
    let mut places: BTreeMap<VolumeId, Vec<PathBuf>> = BTreeMap::new();
    for store in results.iter().flatten() {
        places.entry(store.volume).or_default().push(store.path.clone());
    }
    let judge = |store: FoundStore| {
        let others: Vec<String> = places
            .get(&store.volume)
            .into_iter()
            .flatten()
            .filter(|path| **path != store.path)
            .map(|path| path.display().to_string())
            .collect();
        if others.is_empty() {
            return Ok(store);
        }
        Err(refused(
            &store.path,
            format!(
                "volume {} has another store at {}; remove the one that is not wanted",
                store.volume,
                others.join(", ")
            ),
        ))
    };
    results.into_iter().map(|result| result.and_then(judge)).collect()
}
