//! Contents of files.

use std::ops::Range;

use bytes::Bytes;
use filesystem::InodeNumber;
use filesystem::engine::{AttributeChanges, Done, Failure, Seek};
use filesystem::layout::file_kind::Mode;
use fuser::Errno;
use nix::libc;

use super::errno::errno;
use super::mount::{Mount, now};

/// The bit of a mode by which the group runs the file; without it the set-group bit means something else.
const GROUP_RUNS: u16 = 0o010;

/// What has to be done beside a write.
#[derive(Clone, Copy, Debug)]
pub(super) struct With {
    /// The bits that let a program run as its owner are taken away: somebody else writes it.
    pub(super) unprivileged: bool,
    /// The data is durable when the write returns.
    pub(super) durable: bool,
}

impl Mount {
    /// Bytes of a regular file; fewer than asked for only at its end.
    pub(super) async fn read(&self, number: InodeNumber, offset: u64, length: u32) -> Result<Bytes, Errno> {
        value(self.engine.read(number, offset, length as usize).await)
    }

    /// Writes into a regular file; gives how many bytes.
    pub(super) async fn write(&self, number: InodeNumber, offset: u64, data: Bytes, with: With) -> Result<u32, Errno> {
        let written = value(self.engine.write(number, offset, data, now()).await)?;
        if with.unprivileged {
            self.drop_privileges(number).await?;
        }
        if with.durable {
            self.sync(number).await?;
        }
        Ok(written as u32)
    }

    async fn drop_privileges(&self, number: InodeNumber) -> Result<(), Errno> {
        let dropped = self.run(|handle| {
            let former = handle.stat(number)?.mode.permissions();
            let mut bits = Mode::SET_USER;
            if former & GROUP_RUNS != 0 {
                bits |= Mode::SET_GROUP;
            }
            if former & bits == 0 {
                return Ok(());
            }
            let changes = AttributeChanges { mode: Some(former & !bits), ..AttributeChanges::default() };
            handle.set_attributes(number, &changes, now())
        });
        dropped.await
    }

    /// Makes a file or directory durable.
    pub(super) async fn sync(&self, number: InodeNumber) -> Result<(), Errno> {
        self.engine.fsync(number).await.map_err(|failure| errno(&failure))
    }

    /// fallocate(2).
    pub(super) async fn allocate(&self, number: InodeNumber, range: Range<u64>, mode: i32) -> Result<(), Errno> {
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        value(match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 => self.engine.allocate(number, range, keep_size, now()).await,
            libc::FALLOC_FL_PUNCH_HOLE if keep_size => self.engine.punch(number, range, now()).await,
            libc::FALLOC_FL_ZERO_RANGE => self.engine.zero(number, range, keep_size, now()).await,
            _ => return Err(Errno::EOPNOTSUPP),
        })
    }

    /// SEEK_DATA and SEEK_HOLE of lseek(2); the kernel does the others.
    pub(super) async fn seek(&self, number: InodeNumber, from: i64, whence: i32) -> Result<i64, Errno> {
        let what = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return Err(Errno::EINVAL),
        };
        let from = u64::try_from(from).map_err(|_| Errno::ENXIO)?;
        let found = self.engine.seek(number, from, what).await.map_err(|failure| errno(&failure))?;
        found.and_then(|at| i64::try_from(at).ok()).ok_or(Errno::ENXIO)
    }
}

fn value<T>(done: Result<Done<T>, Failure>) -> Result<T, Errno> {
    done.map(|done| done.value).map_err(|failure| errno(&failure))
}
