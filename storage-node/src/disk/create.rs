//! Making a store: in a file under a temporary name, or on a raw device whose superblocks are written last. Blocking.
//!
//! Interrupted at any moment it leaves no store: a half-made file keeps its `.creating` name and is removed by the next
//! scan, a half-made device has no superblock.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use block_device::AlignedBuf;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;
use proto::{Boot, ConfigVersion};

use super::backing::{Access, Backing, found, io_at, judge, refused, sync_directory};
use super::layout::{Area, HEAD_BYTES, Layout, SLOT_OFFSETS, size_problem};
use super::scrubs::Scrubs;
use super::superblock::Superblock;
use super::{FoundStore, StoreError, StoreSpec};
use crate::fault::point;

/// Ending of a store file's name.
pub(super) const STORE_SUFFIX: &str = ".tandem";
/// Ending of the name while the file is being made.
pub(super) const CREATING_SUFFIX: &str = ".tandem.creating";
/// Bytes zeroed by one write.
const ZERO_CHUNK_BYTES: u64 = 4 << 20;

/// Where the file of a volume's store lies.
pub(super) fn store_path(directory: &Path, spec: &StoreSpec) -> PathBuf {
    directory.join(format!("{}{STORE_SUFFIX}", spec.volume))
}

/// Makes a store in a file of `directory`. One that is already there with the same identity is given back as it is.
pub(super) fn create_file(
    directory: &Path,
    spec: &StoreSpec,
    progress: &dyn Fn(u64, u64),
) -> Result<FoundStore, StoreError> {
    let path = store_path(directory, spec);
    let layout = checked_layout(&path, spec)?;
    if path.try_exists().map_err(io_at(&path))? {
        let backing = Backing::open(&path, Access::Read).map_err(io_at(&path))?;
        return existing(&backing, spec);
    }
    check_space(directory, &path, spec, &layout)?;
    let temporary = directory.join(format!("{}{CREATING_SUFFIX}", spec.volume));
    let backing = begin_temporary(&temporary)?;
    let _unfinished = RemoveOnDrop(&temporary);
    backing.file.set_len(layout.store_bytes()).map_err(io_at(&temporary))?;
    if spec.preallocate {
        // All at once: contiguous, and a full disk shows now. The zeros that follow make the extents written.
        let length = layout.store_bytes() as i64;
        match fallocate(&backing.file, FallocateFlags::empty(), 0, length) {
            Ok(()) | Err(Errno::EOPNOTSUPP) => {}
            Err(errno) => return Err(io_at(&temporary)(errno.into())),
        }
    }
    let superblock = format(&backing, spec, layout, progress)?;
    point("store.rename.before");
    fs::rename(&temporary, &path).map_err(io_at(&path))?;
    point("store.rename.after");
    sync_directory(directory)?;
    point("store.directory-sync.after");
    Ok(found(&path, &superblock))
}

/// Makes a store on a raw device. Its first MiB must be blank, or hold the very same store.
pub(super) fn create_on_device(
    path: &Path,
    spec: &StoreSpec,
    progress: &dyn Fn(u64, u64),
) -> Result<FoundStore, StoreError> {
    let layout = checked_layout(path, spec)?;
    let backing = match Backing::open(path, Access::Write) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            return Err(refused(path, "the device is in use, mounted or part of another one; release it first"));
        }
        other => other.map_err(io_at(path))?,
    };
    if !backing.is_device {
        return Err(refused(path, "this is not a block device; name a directory for stores in files"));
    }
    if !backing.try_lock().map_err(io_at(path))? {
        return Err(refused(path, "another process holds the device; stop it first"));
    }
    if !backing.is_blank().map_err(io_at(path))? {
        return existing(&backing, spec);
    }
    if backing.length < layout.store_bytes() {
        return Err(refused(
            path,
            format!("the device has {} bytes, the store needs {}", backing.length, layout.store_bytes()),
        ));
    }
    let superblock = format(&backing, spec, layout, progress)?;
    Ok(found(path, &superblock))
}

fn checked_layout(path: &Path, spec: &StoreSpec) -> Result<Layout, StoreError> {
    match size_problem(spec.size_bytes) {
        Some(problem) => Err(refused(path, problem)),
        None => Ok(Layout::for_volume(spec.size_bytes)),
    }
}

/// The store that is already at a place where one is to be made: fine if it is the same one.
fn existing(backing: &Backing, spec: &StoreSpec) -> Result<FoundStore, StoreError> {
    let path = &backing.path;
    let Ok(chosen) = backing.read_superblock() else {
        return Err(refused(
            path,
            "the place is not empty: its first MiB holds data that is not a store of Tandem, perhaps a file system; \
             choose another place, or erase it there (`wipefs -a`, then zero the first MiB) if nothing on it is needed",
        ));
    };
    let chosen = judge(path, backing.length, Ok(chosen))?;
    let s = &chosen.superblock;
    if (s.cluster, s.volume, s.disk_id, s.size_bytes) == (spec.cluster, spec.volume, spec.disk_id, spec.size_bytes) {
        return Ok(found(path, s));
    }
    Err(refused(
        path,
        format!(
            "a store of volume {} (copy {}, cluster {}) is already here; remove it first if it is not needed",
            s.volume, s.disk_id, s.cluster
        ),
    ))
}

fn check_space(directory: &Path, path: &Path, spec: &StoreSpec, layout: &Layout) -> Result<(), StoreError> {
    let status = statvfs(directory).map_err(|errno| io_at(directory)(errno.into()))?;
    let free = status.blocks_available().saturating_mul(status.fragment_size());
    let needed = if spec.preallocate { layout.store_bytes() } else { layout.checksums.offset };
    if free < needed {
        return Err(refused(path, format!("not enough space: the store needs {needed} bytes, {free} are free")));
    }
    Ok(())
}

/// Makes the temporary file and locks it, so that no scan takes it for a leftover.
fn begin_temporary(temporary: &Path) -> Result<Backing, StoreError> {
    remove_leftover(temporary)?;
    let backing = Backing::create_file(temporary).map_err(io_at(temporary))?;
    let locked = backing.try_lock().map_err(io_at(temporary))?;
    if !locked || !backing.is_at_its_path().map_err(io_at(temporary))? {
        return Err(refused(temporary, "another process is making this store"));
    }
    Ok(backing)
}

/// Removes what an interrupted creation left, unless it is still being made.
pub(super) fn remove_leftover(temporary: &Path) -> Result<(), StoreError> {
    let backing = match Backing::open(temporary, Access::Write) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(io_at(temporary))?,
    };
    if backing.try_lock().map_err(io_at(temporary))? && backing.is_at_its_path().map_err(io_at(temporary))? {
        fs::remove_file(temporary).map_err(io_at(temporary))?;
    }
    Ok(())
}

/// Writes everything a new store holds, superblocks last, and makes it durable.
fn format(
    backing: &Backing,
    spec: &StoreSpec,
    layout: Layout,
    progress: &dyn Fn(u64, u64),
) -> Result<Superblock, StoreError> {
    let io_error = io_at(&backing.path);
    let metadata = layout.zeroed_metadata();
    let rest = Area { offset: layout.checksums.offset, length: layout.store_bytes() - layout.checksums.offset };
    // The rest of a new sparse file is holes; of a device it is whatever was there, and must read as zeros.
    let whole = spec.preallocate || (backing.is_device && !punch(backing, rest));
    let total = metadata.length + if whole { rest.length } else { 0 };
    progress(0, total);
    write_zeros(backing, metadata, 0, total, progress)?;
    if whole {
        write_zeros(backing, rest, metadata.length, total, progress)?;
    }
    backing.file.sync_all().map_err(&io_error)?;
    let superblock = Superblock {
        generation: 1,
        cluster: spec.cluster,
        volume: spec.volume,
        disk_id: spec.disk_id,
        size_bytes: spec.size_bytes,
        last_in_sync: ConfigVersion(0),
        boot: Boot(0),
        clean: true,
        suspect: false,
        failed: false,
        layout,
        scrubs: Scrubs::default(),
    };
    let mut head = AlignedBuf::zeroed(HEAD_BYTES as usize);
    for offset in SLOT_OFFSETS {
        let slot = superblock.encode();
        head[offset as usize..offset as usize + slot.len()].copy_from_slice(&slot);
    }
    point("store.head.before");
    backing.file.write_all_at(&head, 0).map_err(&io_error)?;
    backing.file.sync_all().map_err(&io_error)?;
    point("store.head.after");
    Ok(superblock)
}

/// Has the kernel make a range of a device read as zeros, cheaply; false if it cannot.
fn punch(backing: &Backing, area: Area) -> bool {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&backing.file, flags, area.offset as i64, area.length as i64).is_ok()
}

/// Writes zeros; `before` of `total` bytes are already done.
fn write_zeros(
    backing: &Backing,
    area: Area,
    before: u64,
    total: u64,
    progress: &dyn Fn(u64, u64),
) -> Result<(), StoreError> {
    let zeros = AlignedBuf::zeroed(ZERO_CHUNK_BYTES as usize);
    let mut done = 0;
    while done < area.length {
        let part = (area.length - done).min(ZERO_CHUNK_BYTES);
        backing.file.write_all_at(&zeros[..part as usize], area.offset + done).map_err(io_at(&backing.path))?;
        done += part;
        progress(before + done, total);
    }
    Ok(())
}

/// Zeros the first MiB of a device, and with it both superblocks.
pub(super) fn wipe_head(backing: &Backing) -> Result<(), StoreError> {
    let zeros = AlignedBuf::zeroed(HEAD_BYTES as usize);
    backing.file.write_all_at(&zeros, 0).and_then(|()| backing.file.sync_all()).map_err(io_at(&backing.path))
}

/// Removes the half-made file when its making ends early, also by a panic. After the rename nothing is there to remove.
struct RemoveOnDrop<'a>(&'a Path);

impl Drop for RemoveOnDrop<'_> {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(self.0)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.0.display(), %error, "a half-made store could not be removed");
        }
    }
}
