//! Our side: the same operations and the same reader on the engine, and a file as its volume.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use block_device::{AlignedBuf, Allocation, BatchWrite, BlockDevice, BlockError, ByteRange};
use bytes::Bytes;
use filesystem::engine::{Failure, Filesystem, NewFile, Options, Place, Recovered, Rename, Seek};
use filesystem::journal::CommitTime;
use filesystem::layout::file_kind::{DeviceNumber, FileKind, Mode};
use filesystem::layout::timestamp::Timestamp;
use filesystem::layout::xattr::SetMode;
use filesystem::units::ROOT_INODE;
use filesystem::{InodeNumber, Refusal};
use tokio::task::{JoinHandle, LocalSet};

use super::Finding;
use super::operation::{New, Operation, Outcome, Taking, join, split};
use super::tree::{Content, Entry, Fingerprint, Time, Tree};

/// Bytes of metadata and of waiting data: little, so that both have to go home in between.
const CACHE_BYTES: usize = 1 << 20;
const DATA_BYTES: usize = 512 << 10;
/// Files up to this size are read whole, holes too.
const WHOLE_BYTES: u64 = 1 << 20;
/// The time of the first change.
const NOW_SECONDS: i64 = 1_700_000_000;

/// An image in a file, as a volume that never loses anything.
pub struct FileDevice {
    file: File,
    size_bytes: u64,
}

impl FileDevice {
    /// Opens an image. Errors: the file's.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        let size_bytes = file.metadata()?.len();
        Ok(Self { file, size_bytes })
    }
}

impl BlockDevice for FileDevice {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    async fn read(&self, range: ByteRange) -> Result<Bytes, BlockError> {
        let mut buffer = AlignedBuf::zeroed(range.length as usize);
        self.file.read_exact_at(&mut buffer, range.offset).map_err(|_| BlockError::Closed)?;
        Ok(buffer.freeze())
    }

    async fn write(&self, offset: u64, data: Bytes, _fua: bool) -> Result<(), BlockError> {
        self.file.write_all_at(&data, offset).map_err(|_| BlockError::Closed)
    }

    async fn flush(&self) -> Result<(), BlockError> {
        Ok(())
    }

    async fn confirm(&self) -> Result<(), BlockError> {
        Ok(())
    }

    async fn discard(&self, range: ByteRange, fua: bool) -> Result<(), BlockError> {
        self.write_zeroes(range, false, fua).await
    }

    async fn write_zeroes(&self, range: ByteRange, _keep_allocated: bool, fua: bool) -> Result<(), BlockError> {
        self.write(range.offset, Bytes::from(vec![0; range.length as usize]), fua).await
    }

    async fn write_batch(&self, groups: Vec<Vec<BatchWrite>>) -> Result<(), BlockError> {
        for write in groups.into_iter().flatten() {
            self.write(write.offset, write.data, false).await?;
        }
        Ok(())
    }

    async fn allocation(&self, range: ByteRange) -> Result<Vec<Allocation>, BlockError> {
        Ok(vec![Allocation { range, hole: false }])
    }
}

/// Runs what uses an engine, to its end.
pub fn block_on<T>(future: impl Future<Output = T>) -> Result<T, Finding> {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.map_err(|error| Finding::Different(format!("no runtime: {error}")))?;
    Ok(LocalSet::new().block_on(&runtime, future))
}

/// An open engine, driven.
pub struct Engine<D> {
    mounted: Rc<Filesystem<D>>,
    driver: JoinHandle<()>,
    changes: i64,
}

fn unclean(what: &str) -> impl Fn(Failure) -> Finding {
    let what = what.to_owned();
    move |failure| Finding::Unclean(format!("our engine, {what}: {failure}"))
}

impl<D: BlockDevice + 'static> Engine<D> {
    /// Opens a volume, and gives back what files without a name hold. Errors: it cannot.
    pub async fn open(device: D, read_only: bool) -> Result<(Self, Recovered), Finding> {
        // e2fsck minds times to come, and the kernel commits by the same clock.
        let clock = || {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            CommitTime { seconds: since.as_secs(), nanoseconds: since.subsec_nanos() }
        };
        let options = Options { cache_bytes_max: CACHE_BYTES, data_bytes_max: DATA_BYTES, read_only, clock };
        let (mounted, recovered) = Filesystem::open(device, &options)
            .await
            .map_err(|error| Finding::Unclean(format!("our engine does not open it: {error}")))?;
        let mounted = Rc::new(mounted);
        let driver = Rc::clone(&mounted);
        let driver = tokio::task::spawn_local(async move { driver.drive().await });
        if !read_only {
            mounted.reclaim_orphans(&BTreeSet::new()).await.map_err(unclean("orphans"))?;
        }
        Ok((Self { mounted, driver, changes: 0 }, recovered))
    }

    /// Closes it. Errors: what could not be written.
    pub async fn close(self) -> Result<(), Finding> {
        self.mounted.stop();
        let ended = self.driver.await;
        ended.map_err(|error| Finding::Unclean(format!("our engine's driver: {error}")))?;
        self.mounted.close().await.map_err(unclean("closing"))
    }

    /// Ends without closing, as a power loss would.
    pub async fn abandon(self) {
        self.driver.abort();
        // It ends with being cancelled, which is what was asked for.
        let _ = self.driver.await;
    }

    /// Everything so far is durable. Errors: it is not.
    pub async fn sync(&self) -> Result<(), Finding> {
        self.mounted.sync().await.map_err(unclean("sync"))
    }

    async fn resolve(&self, path: &[u8]) -> Result<InodeNumber, Failure> {
        let mut at = ROOT_INODE;
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            at = self.mounted.run(|handle| handle.lookup(at, name)).await?.value;
        }
        Ok(at)
    }

    /// Does an operation. Errors: the engine found something broken.
    pub async fn apply(&mut self, operation: &Operation) -> Result<Outcome, Finding> {
        self.changes += 1;
        let (seconds, nanoseconds) = (NOW_SECONDS + self.changes / 100, (self.changes % 100) as u32 * 10_000_001);
        match self.execute(operation, Timestamp { seconds, nanoseconds }).await {
            Ok(()) => Ok(Outcome::Done),
            Err(Failure::NoSpace | Failure::Refused(Refusal::NoRoomForAttribute)) => Ok(Outcome::NoSpace),
            Err(Failure::Refused(why)) => Ok(Outcome::Refused(why.to_string())),
            Err(failure) => Err(unclean(&format!("{operation:?}"))(failure)),
        }
    }

    async fn execute(&self, operation: &Operation, now: Timestamp) -> Result<(), Failure> {
        let mounted = &*self.mounted;
        match operation {
            Operation::Write { path, at, data } => {
                let file = self.resolve(path).await?;
                let data = Bytes::copy_from_slice(data);
                let done = mounted.write(file, *at, data.clone(), now).await?.value;
                if done == data.len() { Ok(()) } else { Err(Failure::NoSpace) }
            }
            Operation::Truncate { path, size } => {
                mounted.truncate(self.resolve(path).await?, *size, now).await.map(|_| ())
            }
            Operation::Allocate { path, at, length, keep } => {
                mounted.allocate(self.resolve(path).await?, *at..at + length, *keep, now).await.map(|_| ())
            }
            Operation::Punch { path, at, length } => {
                mounted.punch(self.resolve(path).await?, *at..at + length, now).await.map(|_| ())
            }
            Operation::Zero { path, at, length, keep } => {
                mounted.zero(self.resolve(path).await?, *at..at + length, *keep, now).await.map(|_| ())
            }
            Operation::Fsync { path } => mounted.fsync(self.resolve(path).await?).await,
            Operation::Mode { path, .. }
            | Operation::Owner { path, .. }
            | Operation::Times { path, .. }
            | Operation::SetAttribute { path, .. }
            | Operation::RemoveAttribute { path, .. } => {
                let file = self.resolve(path).await?;
                self.change_inode(file, operation, now).await
            }
            Operation::Create { .. } | Operation::Link { .. } | Operation::Remove { .. } | Operation::Rename { .. } => {
                self.change_names(operation, now).await
            }
        }
    }

    async fn change_names(&self, operation: &Operation, now: Timestamp) -> Result<(), Failure> {
        let mounted = &*self.mounted;
        match operation {
            Operation::Create { path, new, mode } => {
                let (directory, name) = split(path);
                let place = Place { directory: self.resolve(directory).await?, name };
                let new = new_file(new, *mode);
                mounted.run(|handle| handle.create(place, &new, now)).await.map(|_| ())
            }
            Operation::Link { from, to } => {
                let (directory, name) = split(to);
                let file = self.resolve(from).await?;
                let place = Place { directory: self.resolve(directory).await?, name };
                mounted.run(|handle| handle.link(file, place, now)).await.map(|_| ())
            }
            Operation::Remove { path, directory: is_directory } => {
                let (directory, name) = split(path);
                let place = Place { directory: self.resolve(directory).await?, name };
                mounted.run(|handle| handle.remove(place, *is_directory, now)).await.map(|_| ())
            }
            Operation::Rename { from, to, how } => {
                let ((from_directory, from_name), (to_directory, to_name)) = (split(from), split(to));
                let from = Place { directory: self.resolve(from_directory).await?, name: from_name };
                let to = Place { directory: self.resolve(to_directory).await?, name: to_name };
                let how = match how {
                    Taking::Replace => Rename::Replace,
                    Taking::NoReplace => Rename::NoReplace,
                    Taking::Exchange => Rename::Exchange,
                };
                mounted.run(|handle| handle.rename(from, to, how, now)).await.map(|_| ())
            }
            _ => Ok(()),
        }
    }

    async fn change_inode(&self, file: InodeNumber, operation: &Operation, now: Timestamp) -> Result<(), Failure> {
        let mounted = &*self.mounted;
        let time = |time: &Time| Some(Timestamp { seconds: time.0, nanoseconds: time.1 });
        let mut changes = filesystem::engine::AttributeChanges::default();
        match operation {
            Operation::SetAttribute { name, value, .. } => {
                let set = mounted.run(|handle| handle.set_attribute(file, (name, value), SetMode::Any, now)).await;
                return set.map(|_| ());
            }
            Operation::RemoveAttribute { name, .. } => {
                return mounted.run(|handle| handle.remove_attribute(file, name, now)).await.map(|_| ());
            }
            Operation::Mode { mode, .. } => changes.mode = Some(*mode as u16),
            Operation::Owner { user, group, .. } => (changes.user, changes.group) = (Some(*user), Some(*group)),
            Operation::Times { accessed, modified, .. } => {
                (changes.accessed, changes.modified) = (time(accessed), time(modified));
            }
            _ => return Ok(()),
        }
        mounted.run(|handle| handle.set_attributes(file, &changes, now)).await.map(|_| ())
    }

    /// Reads everything. Errors: something cannot be read.
    pub async fn tree(&self) -> Result<Tree, Finding> {
        let mut tree = Tree::new();
        let mut waiting = vec![(Vec::new(), ROOT_INODE)];
        let failed = unclean("reading the tree");
        tree.insert(Vec::new(), self.entry(ROOT_INODE).await.map_err(&failed)?);
        while let Some((directory, number)) = waiting.pop() {
            let mut after = filesystem::directory::Cookie::START;
            loop {
                let read = self.mounted.run(|handle| handle.read_directory(number, after, 100)).await;
                let batch = read.map_err(&failed)?.value;
                for found in batch.entries {
                    after = found.cookie;
                    if found.name == b"." || found.name == b".." {
                        continue;
                    }
                    let path = join(&directory, &found.name);
                    let entry = self.entry(found.inode).await.map_err(unclean(&path.escape_ascii().to_string()))?;
                    if entry.mode & 0o170_000 == 0o040_000 {
                        waiting.push((path.clone(), found.inode));
                    }
                    if tree.insert(path.clone(), entry).is_some() {
                        return Err(Finding::Different(format!("{} is read twice", path.escape_ascii())));
                    }
                }
                if batch.at_end {
                    break;
                }
            }
        }
        Ok(tree)
    }

    async fn entry(&self, number: InodeNumber) -> Result<Entry, Failure> {
        let inode = self.mounted.run(|handle| handle.stat(number)).await?.value;
        let content = match inode.mode.kind() {
            Some(FileKind::Regular) => self.content(number, inode.size).await?,
            Some(FileKind::Symlink) => Content::Link(self.mounted.run(|handle| handle.read_link(number)).await?.value),
            Some(FileKind::BlockDevice | FileKind::CharacterDevice) => {
                inode.device().map_or(Content::Nothing, |device| Content::Device(device.major, device.minor))
            }
            _ => Content::Nothing,
        };
        let mut attributes = BTreeMap::new();
        for name in self.mounted.run(|handle| handle.list_attributes(number)).await?.value {
            let value = self.mounted.run(|handle| handle.get_attribute(number, &name)).await?.value;
            attributes.insert(name, value);
        }
        let time = |time: Timestamp| (time.seconds, time.nanoseconds);
        Ok(Entry {
            inode: u64::from(number.0),
            mode: u32::from(inode.mode.0),
            user: inode.user,
            group: inode.group,
            links: u64::from(inode.links),
            size: inode.size,
            content,
            attributes,
            accessed: time(inode.accessed),
            modified: time(inode.modified),
            changed: time(inode.changed),
            created: inode.created.map(time),
        })
    }

    async fn content(&self, file: InodeNumber, size: u64) -> Result<Content, Failure> {
        let (mut written, mut print) = (Vec::new(), Fingerprint::default());
        let mut at = 0;
        while let Some(start) = self.mounted.seek(file, at, Seek::Data).await? {
            at = self.mounted.seek(file, start, Seek::Hole).await?.unwrap_or(size);
            written.push((start, at));
        }
        let whole = [(0, size)];
        for (start, end) in if size <= WHOLE_BYTES { &whole[..] } else { &written } {
            let mut at = *start;
            while at < *end {
                let length = (end - at).min(1 << 20) as usize;
                let data = self.mounted.read(file, at, length).await?.value;
                print.add(at, &data);
                // Short reads show as another hash, and must not be asked for again and again.
                at += length as u64;
            }
        }
        Ok(Content::File { hash: print.finish(), written })
    }
}

fn new_file(new: &New, mode: u32) -> NewFile<'_> {
    let (kind, device, target) = match new {
        New::File => (FileKind::Regular, None, &[][..]),
        New::Directory => (FileKind::Directory, None, &[][..]),
        New::Link(target) => (FileKind::Symlink, None, &target[..]),
        New::Fifo => (FileKind::Fifo, None, &[][..]),
        New::Socket => (FileKind::Socket, None, &[][..]),
        New::Character(major, minor) => (FileKind::CharacterDevice, Some((*major, *minor)), &[][..]),
        New::Block(major, minor) => (FileKind::BlockDevice, Some((*major, *minor)), &[][..]),
    };
    let permissions = if kind == FileKind::Symlink { 0o777 } else { mode as u16 };
    let device = device.map(|(major, minor)| DeviceNumber { major, minor });
    NewFile { mode: Mode::new(kind, permissions), user: 0, group: 0, device, target }
}

/// Opens an image in a file, does something with the engine, and closes it.
pub fn with_engine<T>(
    path: &Path,
    read_only: bool,
    work: impl AsyncFnOnce(&mut Engine<FileDevice>) -> Result<T, Finding>,
) -> Result<T, Finding> {
    let device = FileDevice::open(path).map_err(|error| Finding::Unclean(format!("the image: {error}")))?;
    block_on(async {
        let (mut engine, _) = Engine::open(device, read_only).await?;
        let done = work(&mut engine).await?;
        if read_only {
            engine.abandon().await;
        } else {
            engine.close().await?;
        }
        Ok(done)
    })?
}
