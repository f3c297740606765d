//! An image file as a block device: under the engine as a mount, and under the measurements of it.
//!
//! Reads and writes go to the page cache and return at once; only flushes wait for the medium, on a thread of their own, so that
//! one commit on its way does not hold up operations.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use block_device::{AlignedBuf, Allocation, BatchWrite, BlockDevice, BlockError, ByteRange};
use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

/// Bytes of the unit of sizes.
const UNIT_BYTES: u64 = 4096;
/// Zeros written at a time where the file's own filesystem cannot make them.
const ZEROS_BYTES: usize = 1 << 20;

/// A regular file that is used as a disk.
#[derive(Debug)]
pub struct ImageFile {
    file: Arc<File>,
    size_bytes: u64,
}

impl ImageFile {
    /// Opens an image for reading and writing; bytes beyond the last whole 4096 are left alone. Errors: the file's.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let size_bytes = file.metadata()?.len() / UNIT_BYTES * UNIT_BYTES;
        Ok(Self { file: Arc::new(file), size_bytes })
    }

    fn check(&self, offset: u64, length: u64) -> Result<(), BlockError> {
        match offset.checked_add(length) {
            Some(end) if end <= self.size_bytes => Ok(()),
            _ => Err(BlockError::OutOfRange { offset, length, size: self.size_bytes }),
        }
    }

    async fn finish(&self, fua: bool) -> Result<(), BlockError> {
        if fua { self.flush().await } else { Ok(()) }
    }

    fn fallocate(&self, mode: FallocateFlags, range: ByteRange) -> Result<(), Errno> {
        let signed = |number| i64::try_from(number).map_err(|_| Errno::EFBIG);
        fallocate(self.file.as_fd(), mode, signed(range.offset)?, signed(range.length)?)
    }

    fn write_zeros(&self, range: ByteRange) -> io::Result<()> {
        let zeros = vec![0; ZEROS_BYTES];
        let mut at = range.offset;
        let end = range.offset + range.length;
        while at < end {
            let count = (end - at).min(ZEROS_BYTES as u64);
            self.file.write_all_at(&zeros[..count as usize], at)?;
            at += count;
        }
        Ok(())
    }
}

fn failed(error: io::Error) -> BlockError {
    match error.kind() {
        io::ErrorKind::StorageFull => BlockError::OutOfSpace,
        _ => BlockError::Io,
    }
}

impl BlockDevice for ImageFile {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    async fn read(&self, range: ByteRange) -> Result<Bytes, BlockError> {
        self.check(range.offset, range.length)?;
        let mut out = AlignedBuf::to_overwrite(range.length as usize);
        self.file.read_exact_at(&mut out, range.offset).map_err(failed)?;
        Ok(out.freeze())
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), BlockError> {
        self.check(offset, data.len() as u64)?;
        self.file.write_all_at(&data, offset).map_err(failed)?;
        self.finish(fua).await
    }

    async fn flush(&self) -> Result<(), BlockError> {
        let file = Arc::clone(&self.file);
        let flushed = tokio::task::spawn_blocking(move || file.sync_data()).await;
        flushed.map_err(|_| BlockError::Closed)?.map_err(failed)
    }

    async fn confirm(&self) -> Result<(), BlockError> {
        Ok(())
    }

    async fn discard(&self, range: ByteRange, fua: bool) -> Result<(), BlockError> {
        self.write_zeroes(range, false, fua).await
    }

    async fn write_zeroes(&self, range: ByteRange, keep_allocated: bool, fua: bool) -> Result<(), BlockError> {
        self.check(range.offset, range.length)?;
        if range.length > 0 {
            let how = if keep_allocated {
                FallocateFlags::FALLOC_FL_ZERO_RANGE
            } else {
                FallocateFlags::FALLOC_FL_PUNCH_HOLE
            };
            match self.fallocate(how | FallocateFlags::FALLOC_FL_KEEP_SIZE, range) {
                Ok(()) => {}
                Err(Errno::EOPNOTSUPP) => self.write_zeros(range).map_err(failed)?,
                Err(errno) => return Err(failed(errno.into())),
            }
        }
        self.finish(fua).await
    }

    async fn write_batch(&self, groups: Vec<Vec<BatchWrite>>) -> Result<(), BlockError> {
        for group in groups {
            for write in group {
                self.write(write.offset, write.data, false).await?;
            }
            self.flush().await?;
        }
        Ok(())
    }

    /// The image's own holes are not looked for.
    async fn allocation(&self, range: ByteRange) -> Result<Vec<Allocation>, BlockError> {
        self.check(range.offset, range.length)?;
        Ok(vec![Allocation { range, hole: false }])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_keeps_what_is_written_and_nothing_is_written_beyond_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("image");
        File::create(&path).and_then(|file| file.set_len(4 * UNIT_BYTES + 5)).expect("a sparse file");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let image = ImageFile::open(&path).expect("it is there");
            assert_eq!(image.size_bytes(), 4 * UNIT_BYTES);
            let write = |offset, byte| BatchWrite { offset, data: Bytes::from(vec![byte; 3]) };
            image.write_batch(vec![vec![write(10, 1), write(13, 2)], vec![write(16, 3)]]).await.expect("in range");
            image.write_zeroes(ByteRange { offset: 11, length: 3 }, true, true).await.expect("in range");
            let read = image.read(ByteRange { offset: 9, length: 11 }).await.expect("in range");
            assert_eq!(&*read, [0, 1, 0, 0, 0, 2, 2, 3, 3, 3, 0]);
            image.discard(ByteRange { offset: 0, length: UNIT_BYTES }, false).await.expect("in range");
            let read = image.read(ByteRange { offset: 0, length: UNIT_BYTES }).await.expect("in range");
            assert!(read.iter().all(|byte| *byte == 0));
            let beyond = image.write(4 * UNIT_BYTES - 1, Bytes::from_static(b"ab"), false).await;
            assert!(matches!(beyond, Err(BlockError::OutOfRange { .. })), "{beyond:?}");
        });
    }
}
