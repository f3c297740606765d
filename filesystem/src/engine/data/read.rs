//! Reading: what waits in memory, what is on the device, and zeros where there is neither; and where holes are.

use block_device::{BlockDevice, ByteRange};
use bytes::{Bytes, BytesMut};

use super::content::Content;
use super::write::Lookup;
use crate::engine::filesystem::{Done, Failure, Filesystem};
use crate::engine::handle::Handle;
use crate::layout::extent::FILE_BLOCKS_MAX;
use crate::map::Mapping;
use crate::store::{BlockStore, Stop};
use crate::units::{BlockRun, FileBlock, InodeNumber};

/// Bytes that one read gives at most.
const READ_BYTES_MAX: usize = 4 << 20;

/// What to look for in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// The next byte that was written.
    Data,
    /// The next that was not; the end of the file is one.
    Hole,
}

/// What is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Of which file.
    pub file: InodeNumber,
    /// From which byte on.
    pub offset: u64,
    /// Bytes at most.
    pub length: usize,
}

/// Blocks of a file, and where their bytes are.
#[derive(Debug)]
enum Piece {
    Zeros(u32),
    Here(Content),
    Device(BlockRun),
}

/// What a read takes together.
#[derive(Debug, Default)]
struct Plan {
    pieces: Vec<Piece>,
    /// Bytes of the pieces before the first that is wanted.
    skip: usize,
    length: usize,
}

impl Handle<'_> {
    fn plan_read(&mut self, file: InodeNumber, offset: u64, length: usize) -> Result<Plan, Stop> {
        let inode = self.regular_file(file)?;
        let block_bytes = u64::from(self.geometry().block_size);
        // A length that no map can reach was written by somebody else; there is nothing where blocks cannot be numbered.
        let size = self.visible_size(file, &inode).min(u64::from(FILE_BLOCKS_MAX) * block_bytes);
        let length = (length.min(READ_BYTES_MAX) as u64).min(size.saturating_sub(offset));
        if length == 0 {
            return Ok(Plan::default());
        }
        let (first, last) = ((offset / block_bytes) as u32, ((offset + length - 1) / block_bytes) as u32);
        let mut lookup = Lookup::new(self.file_map(file, &inode));
        let mut pieces = Vec::new();
        let mut at = first;
        while at <= last {
            if let Some(page) = self.page(file, at) {
                pieces.push(Piece::Here(page.content));
                at += 1;
                continue;
            }
            let until = self.next_page(file, at).map_or(last + 1, |next| next.min(last + 1));
            let piece = match lookup.at(self, at)? {
                // Beyond what the map can hold.
                Mapping::Hole { count: 0 } => Piece::Zeros(until - at),
                Mapping::Hole { count } => Piece::Zeros(count.min(until - at)),
                Mapping::Mapped { run, unwritten: true } => Piece::Zeros(run.count.min(until - at)),
                Mapping::Mapped { run, .. } => self.on_device(BlockRun::new(run.start, run.count.min(until - at)))?,
            };
            at += match &piece {
                Piece::Zeros(count) => *count,
                Piece::Here(_) => 1,
                Piece::Device(run) => run.count,
            };
            pieces.push(piece);
        }
        Ok(Plan { pieces, skip: (offset % block_bytes) as usize, length: length as usize })
    }

    /// The first blocks of a run, from the device; or, as long as the log may have a newer one, from memory.
    fn on_device(&mut self, run: BlockRun) -> Result<Piece, Stop> {
        let count = match self.table().nothing_journaled() {
            true => run.count,
            false => {
                (0..run.count).take_while(|skip| !self.is_journaled(run.start.plus(u64::from(*skip)))).count() as u32
            }
        };
        if count == 0 {
            return Ok(Piece::Here(Content::whole(Bytes::copy_from_slice(self.block(run.start)?))));
        }
        let run = BlockRun::new(run.start, count);
        self.data_edits_mut().claims.push(run);
        Ok(Piece::Device(run))
    }

    /// The first block of a file in memory from `at` on.
    fn next_page(&self, file: InodeNumber, at: u32) -> Option<u32> {
        let own = self.data_edits().files.get(&file).and_then(|edit| edit.pages.range(at..).next());
        let below = self.table().pages(file, at).next().map(|(at, _)| at);
        // One of the operation's own that is dropped ends a run for nothing, which does no harm.
        own.map(|(at, _)| *at).into_iter().chain(below).min()
    }

    /// The first byte from `from` on that was written, or was not: [`Seek`]. None behind the end, and when no data follows.
    /// Errors: [`crate::Refusal`]s of a file that is no regular one.
    pub fn seek(&mut self, file: InodeNumber, from: u64, what: Seek) -> Result<Option<u64>, Stop> {
        let inode = self.regular_file(file)?;
        let block_bytes = u64::from(self.geometry().block_size);
        let size = self.visible_size(file, &inode).min(u64::from(FILE_BLOCKS_MAX) * block_bytes);
        if from >= size {
            return Ok(None);
        }
        let map = self.file_map(file, &inode);
        let mut at = (from / block_bytes) as u32;
        let end = size.div_ceil(block_bytes).min(u64::from(FILE_BLOCKS_MAX)) as u32;
        while at < end {
            let (data, count) = if self.page(file, at).is_some() {
                (true, 1)
            } else {
                let until = self.next_page(file, at).map_or(u32::MAX, |next| next - at);
                match map.lookup(self, FileBlock(at))? {
                    Mapping::Mapped { run, unwritten } => (!unwritten, run.count.min(until)),
                    // Beyond what the map can hold.
                    Mapping::Hole { count: 0 } => (false, end - at),
                    Mapping::Hole { count } => (false, count.min(until)),
                }
            };
            if data == (what == Seek::Data) {
                return Ok(Some(from.max(u64::from(at) * block_bytes)));
            }
            at = at.saturating_add(count.max(1));
        }
        Ok((what == Seek::Hole).then_some(size))
    }
}

impl<D: BlockDevice> Filesystem<D> {
    /// Reads up to `length` bytes of a regular file from byte `offset` on: fewer at its end, and at most 4 MiB.
    ///
    /// Errors: [`crate::Refusal::IsDirectory`], [`crate::Refusal::WrongKind`], [`crate::Refusal::Stale`]; the volume's.
    pub async fn read(&self, file: InodeNumber, offset: u64, length: usize) -> Result<Done<Bytes>, Failure> {
        let found = self.read_found(|_| Ok((Some(Wanted { file, offset, length }), ()))).await?;
        Ok(found.map(|(data, ())| data))
    }

    /// The same of what `find` says, which looks for it in one run of an operation with the read's own look at the file: nothing
    /// comes between them. Gives what else it found, too. No bytes when it wants none.
    ///
    /// Errors: as [`Self::read`], and those of `find`.
    pub async fn read_found<T>(
        &self,
        mut find: impl FnMut(&mut Handle<'_>) -> Result<(Option<Wanted>, T), Stop>,
    ) -> Result<Done<(Bytes, T)>, Failure> {
        let planned = |handle: &mut Handle<'_>| {
            let (wanted, found) = find(handle)?;
            let plan = wanted.map(|Wanted { file, offset, length }| handle.plan_read(file, offset, length));
            Ok((plan.transpose()?.unwrap_or_default(), found))
        };
        let (done, _holds) = self.run_with_holds(planned, true).await?;
        let data = self.read_plan(&done.value.0).await?;
        Ok(done.map(|(_, found)| (data, found)))
    }

    /// The bytes of a plan whose blocks are held.
    async fn read_plan(&self, plan: &Plan) -> Result<Bytes, Failure> {
        let block_bytes = self.geometry.block_size as usize;
        let size = block_bytes as u64;
        let from_device = plan.pieces.iter().filter_map(|piece| match piece {
            Piece::Device(run) => Some(*run),
            _ => None,
        });
        let reads = from_device
            .map(|run| self.device.read(ByteRange { offset: run.start.0 * size, length: u64::from(run.count) * size }));
        let read = futures_util::future::try_join_all(reads).await?;
        let wanted = plan.skip..plan.skip + plan.length;
        if let ([Piece::Device(_)], [all]) = (&*plan.pieces, &*read) {
            return Ok(all.slice(wanted));
        }
        let mut read = read.into_iter();
        let mut data = BytesMut::with_capacity(plan.skip + plan.length);
        for piece in &plan.pieces {
            match piece {
                Piece::Zeros(count) => data.resize(data.len() + *count as usize * block_bytes, 0),
                Piece::Here(content) => data.extend_from_slice(content.bytes()),
                Piece::Device(_) => data.extend_from_slice(&read.next().unwrap_or_default()),
            }
        }
        Ok(data.freeze().slice(wanted))
    }

    /// The first byte from `from` on that was written, or was not; None when there is none before the end. A hole is at the
    /// end at the latest. Errors: as [`Self::read`].
    pub async fn seek(&self, file: InodeNumber, from: u64, what: Seek) -> Result<Option<u64>, Failure> {
        Ok(self.run(|handle| handle.seek(file, from, what)).await?.value)
    }
}
