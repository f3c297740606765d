//! A file or raw block device that holds a store: opening it for direct I/O, its lock, and reading its superblocks.
//!
//! Blocking; used where stores are scanned, created and opened, not on the way of reads and writes.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use block_device::AlignedBuf;

use super::layout::{HEAD_BYTES, SLOT_OFFSETS};
use super::superblock::{self, Chosen, SLOT_BYTES, SlotProblem, Superblock};
use super::{FoundStore, StoreError};

/// Why a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// To look at it, whoever else has it open.
    Read,
    /// To own it. A raw device that is mounted or otherwise in use is refused by the kernel (`O_EXCL`) with EBUSY.
    Write,
}

/// An open file or block device.
#[derive(Debug)]
pub(super) struct Backing {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) is_device: bool,
    pub(super) length: u64,
}

pub(super) fn refused(path: &Path, why: impl Into<String>) -> StoreError {
    StoreError::Refused { path: path.to_owned(), why: why.into() }
}

pub(super) fn io_at(path: &Path) -> impl Fn(io::Error) -> StoreError + '_ {
    |source| StoreError::Io { path: path.to_owned(), source }
}

impl Backing {
    /// Opens an existing file or device.
    pub(super) fn open(path: &Path, access: Access) -> io::Result<Backing> {
        let kind = fs::metadata(path)?.file_type();
        let is_device = kind.is_block_device();
        if !is_device && !kind.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a file nor a block device"));
        }
        let exclusive = if is_device && access == Access::Write { libc::O_EXCL } else { 0 };
        let mut options = OpenOptions::new();
        options.read(true).write(access == Access::Write);
        let file = direct(&mut options, exclusive, path)?;
        Self::of(file, path, is_device)
    }

    /// Makes a new file; it must not exist.
    pub(super) fn create_file(path: &Path) -> io::Result<Backing> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        // `create_new` is lost with a second try, so the file is made first and opened for direct I/O then.
        drop(options.open(path)?);
        Self::open(path, Access::Write)
    }

    fn of(mut file: File, path: &Path, is_device: bool) -> io::Result<Backing> {
        let length = file.seek(SeekFrom::End(0))?;
        Ok(Backing { file, path: path.to_owned(), is_device, length })
    }

    /// Takes the lock that says "this process does I/O here"; false if another holds it. The kernel gives it back when
    /// the last reference to the open file is gone: requests in an io_uring of a dead process are such references.
    pub(super) fn try_lock(&self) -> io::Result<bool> {
        match self.file.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// True while the path still leads to this very file.
    pub(super) fn is_at_its_path(&self) -> io::Result<bool> {
        let mine = self.file.metadata()?;
        let named = match fs::metadata(&self.path) {
            Ok(named) => named,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        Ok(mine.dev() == named.dev() && mine.ino() == named.ino())
    }

    /// Reads both superblock slots and chooses between them.
    pub(super) fn read_superblock(&self) -> Result<Chosen, SlotProblem> {
        superblock::choose([self.read_slot(0), self.read_slot(1)])
    }

    fn read_slot(&self, slot: usize) -> Result<Superblock, SlotProblem> {
        if self.length < SLOT_OFFSETS[slot] + SLOT_BYTES as u64 {
            return Err(SlotProblem::Blank);
        }
        let mut buf = AlignedBuf::zeroed(SLOT_BYTES);
        match self.file.read_exact_at(&mut buf, SLOT_OFFSETS[slot]) {
            Ok(()) => decode_slot(&buf),
            Err(error) => Err(SlotProblem::Damaged(format!("it cannot be read ({error})"))),
        }
    }

    /// True when the first MiB holds zeros only.
    pub(super) fn is_blank(&self) -> io::Result<bool> {
        let mut buf = AlignedBuf::zeroed(HEAD_BYTES.min(self.length) as usize);
        self.file.read_exact_at(&mut buf, 0)?;
        Ok(buf.iter().all(|byte| *byte == 0))
    }
}

/// The superblock to use of a place of `length` bytes, if that can hold the store it describes.
pub(super) fn judge(path: &Path, length: u64, chosen: Result<Chosen, SlotProblem>) -> Result<Chosen, StoreError> {
    let chosen = chosen.map_err(|problem| refused(path, explain(&problem)))?;
    let expected = chosen.superblock.layout.store_bytes();
    if length < expected {
        return Err(refused(
            path,
            format!(
                "the store is truncated: its superblock says {expected} bytes, but there are {length}; restore it, or \
                 remove it and let the volume be rebuilt from the other copy"
            ),
        ));
    }
    Ok(chosen)
}

/// Decodes what was read of a slot; a short read is damage.
pub(super) fn decode_slot(bytes: &[u8]) -> Result<Superblock, SlotProblem> {
    match bytes.try_into() {
        Ok(slot) => Superblock::decode(slot),
        Err(_) => Err(SlotProblem::Damaged("it could not be read whole".into())),
    }
}

/// What is wrong and what to do about it.
fn explain(problem: &SlotProblem) -> String {
    match problem {
        SlotProblem::Blank | SlotProblem::Foreign => {
            "this is not a store of Tandem; move it elsewhere, or take it out of the configuration".into()
        }
        SlotProblem::Damaged(what) => format!(
            "no superblock of the store can be used: {what}; remove it and let the volume be rebuilt from the other copy"
        ),
        SlotProblem::Older(version) => format!(
            "the store is of format version {version}, which has no checksums and is not read any more; remove it and let \
             the volume be rebuilt, or take its data from the program that wrote it"
        ),
        SlotProblem::Newer(what) => format!("the store was written by a newer program ({what}); upgrade this box"),
    }
}

/// What a superblock says, in the words of the seam.
pub(super) fn found(path: &Path, superblock: &Superblock) -> FoundStore {
    FoundStore {
        path: path.to_owned(),
        cluster: superblock.cluster,
        volume: superblock.volume,
        disk_id: superblock.disk_id,
        size_bytes: superblock.size_bytes,
        data_offset: superblock.layout.data.offset,
        last_in_sync: superblock.last_in_sync,
        suspect: superblock.suspect || superblock.failed,
        clean: superblock.clean,
        boot: superblock.boot,
    }
}

/// Opens with O_DIRECT, or without where the file system has none.
fn direct(options: &mut OpenOptions, flags: i32, path: &Path) -> io::Result<File> {
    match options.custom_flags(flags | libc::O_DIRECT).open(path) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            tracing::warn!(path = %path.display(), "the file system has no direct I/O; the page cache is used");
            options.custom_flags(flags).open(path)
        }
        other => other,
    }
}

/// Makes the entries of a directory durable.
pub(super) fn sync_directory(directory: &Path) -> Result<(), StoreError> {
    File::open(directory).and_then(|d| d.sync_all()).map_err(io_at(directory))
}

/// Reads a small file whole; `None` if there is none. Fails past `bytes_max`.
pub(super) fn read_small(path: &Path, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut out = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut out)?;
    if out.len() as u64 > bytes_max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("longer than {bytes_max} bytes")));
    }
    Ok(Some(out))
}
