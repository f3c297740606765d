//! A volume that is a file: written through the page cache, flushed by fdatasync, as a loop device without direct I/O does it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use block_device::{AlignedBuf, Allocation, BatchWrite, BlockDevice, BlockError, ByteRange};
use bytes::Bytes;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

/// The file; only flushes leave the thread.
pub(crate) struct FileDevice {
    file: Arc<File>,
    size: u64,
}

impl FileDevice {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Self { size: file.metadata()?.len(), file: Arc::new(file) })
    }
}

/// Has the system forget what it holds of a file in memory.
pub(crate) fn forget(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    file.sync_all()?;
    Ok(posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?)
}

impl BlockDevice for FileDevice {
    fn size_bytes(&self) -> u64 {
        self.size
    }

    async fn read(&self, range: ByteRange) -> Result<Bytes, BlockError> {
        let mut data = AlignedBuf::zeroed(range.length as usize);
        self.file.read_exact_at(&mut data, range.offset).map_err(|_| BlockError::Io)?;
        Ok(data.freeze())
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), BlockError> {
        self.file.write_all_at(&data, offset).map_err(|_| BlockError::Io)?;
        if fua { self.flush().await } else { Ok(()) }
    }

    async fn flush(&self) -> Result<(), BlockError> {
        let file = Arc::clone(&self.file);
        let flushed = tokio::task::spawn_blocking(move || file.sync_data()).await;
        flushed.map_err(|_| BlockError::Closed)?.map_err(|_| BlockError::Io)
    }

    async fn discard(&self, range: ByteRange, fua: bool) -> Result<(), BlockError> {
        self.write_zeroes(range, false, fua).await
    }

    async fn write_zeroes(&self, range: ByteRange, _keep_allocated: bool, fua: bool) -> Result<(), BlockError> {
        self.write(range.offset, vec![0; range.length as usize].into(), fua).await
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

    async fn allocation(&self, range: ByteRange) -> Result<Vec<Allocation>, BlockError> {
        Ok(vec![Allocation { range, hole: false }])
    }
}
