//! Tests of the disk engine on real files, and on loop devices where the tests run as root.

mod concurrency;
mod content;
mod lifecycle;
mod operations;
mod places;
mod space;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use proto::checksum::{BlockSums, Salt};
use proto::peer::message::WriteKind;
use proto::{BlockRange, Boot, ClusterId, DiskId, VolumeId};
use replication::local_copy::{Hot, ReadCheck};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::LocalSet;

use super::{DiskDone, DiskError, DiskOp, FoundStore, OpenedStore, Ring, Store, StoreError, StorePool, StoreSpec};

const BOOT: Boot = Boot(77);
const LOCK_WAIT: Duration = Duration::from_secs(20);

const VOLUME: VolumeId = VolumeId(2);

type Ended = Result<Option<Bytes>, DiskError>;

/// Runs a future as a shard does.
fn on_shard<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, future)
}

fn spec(size_bytes: u64) -> StoreSpec {
    StoreSpec { cluster: ClusterId(1), volume: VOLUME, disk_id: DiskId(3), size_bytes, preallocate: false }
}

/// A new store in a temporary directory.
struct Place {
    directory: TempDir,
    pool: StorePool,
    found: FoundStore,
}

impl Place {
    fn new(size_bytes: u64) -> Place {
        let directory = tempfile::tempdir().unwrap();
        let pool = StorePool::new(directory.path(), &[]).unwrap();
        let found = pool.create(&spec(size_bytes), &|_, _| {}).unwrap();
        Place { directory, pool, found }
    }

    /// What the file holds at a block of the volume, whatever the store thinks of it.
    fn raw_block(&self, block: u64) -> Vec<u8> {
        let image = std::fs::read(&self.found.path).unwrap();
        let at = (self.found.data_offset + block * 4096) as usize;
        image[at..at + 4096].to_vec()
    }

    /// The only store as a scan sees it.
    fn rescan(&self) -> FoundStore {
        let mut results = self.pool.scan(Some(ClusterId(1)));
        assert_eq!(results.len(), 1);
        results.remove(0).unwrap()
    }
}

type Waiting = Rc<RefCell<HashMap<u64, oneshot::Sender<DiskDone>>>>;

/// An open store whose operations can be awaited.
struct Client {
    ring: Rc<Ring>,
    store: Store,
    /// What was hot when it was opened.
    hot: Hot,
    bitmaps: Vec<Vec<u8>>,
    next: Cell<u64>,
    waiting: Waiting,
}

/// A read whose content is checked.
fn read_op(range: BlockRange) -> DiskOp {
    DiskOp::Read { range, check: ReadCheck::Verify }
}

/// A write of data with its checksums.
fn data_op(range: BlockRange, fua: bool, data: Bytes) -> DiskOp {
    let sums = Salt::of(VOLUME).sums(range, &data);
    DiskOp::Write { range, kind: WriteKind::Data, fua, data: Some(data), sums }
}

/// A batch with its checksums.
fn batch_op(groups: Vec<Vec<BlockRange>>, data: impl Into<Bytes>) -> DiskOp {
    let data = data.into();
    let sums = Salt::of(VOLUME).sums_of_ranges(groups.iter().flatten().copied(), &data);
    DiskOp::Batch { groups, data, sums }
}

fn erase(kind: WriteKind, range: BlockRange, fua: bool) -> DiskOp {
    DiskOp::Write { range, kind, fua, data: None, sums: BlockSums::new() }
}

impl Client {
    /// Opens a store and makes all of it hot.
    async fn open(found: &FoundStore) -> Client {
        let client = Self::open_at(found, BOOT).await.unwrap();
        client.heat_all().await;
        client
    }

    async fn open_at(found: &FoundStore, boot: Boot) -> Result<Client, StoreError> {
        Self::open_on(Ring::start(64).unwrap(), found, boot, LOCK_WAIT).await
    }

    async fn open_on(ring: Rc<Ring>, found: &FoundStore, boot: Boot, wait: Duration) -> Result<Client, StoreError> {
        let waiting: Waiting = Rc::default();
        let sink = {
            let waiting = Rc::clone(&waiting);
            Rc::new(move |done: DiskDone| {
                let sender = waiting.borrow_mut().remove(&done.tag).expect("an end belongs to one start");
                let _ = sender.send(done);
            })
        };
        let opened = Store::open(Rc::clone(&ring), found, boot, wait, sink).await?;
        let OpenedStore { store, hot, bitmaps } = opened;
        Ok(Client { ring, store, hot, bitmaps, next: Cell::new(0), waiting })
    }

    fn extents(&self) -> Vec<u64> {
        (0..self.store.found().size_bytes.div_ceil(proto::EXTENT_BYTES)).collect()
    }

    async fn heat_all(&self) {
        self.run(DiskOp::Heat { extents: self.extents() }).await.unwrap();
    }

    async fn cool_all(&self) {
        self.run(DiskOp::Cool { extents: self.extents(), bitmaps: vec![] }).await.unwrap();
    }

    /// Starts without submitting.
    fn start(&self, op: DiskOp) -> oneshot::Receiver<DiskDone> {
        let tag = self.next.get();
        self.next.set(tag + 1);
        let (send, receive) = oneshot::channel();
        self.waiting.borrow_mut().insert(tag, send);
        self.store.start(tag, op);
        receive
    }

    async fn run_whole(&self, op: DiskOp) -> DiskDone {
        let receive = self.start(op);
        self.ring.submit();
        receive.await.expect("every operation ends")
    }

    async fn run(&self, op: DiskOp) -> Ended {
        ended(self.run_whole(op).await)
    }

    async fn write(&self, start: u64, data: Bytes) -> Result<(), DiskError> {
        let range = BlockRange::new(start, data.len() as u64 / 4096);
        self.run(data_op(range, false, data)).await.map(|_| ())
    }

    async fn read(&self, start: u64, count: u64) -> Bytes {
        let read = self.run(read_op(BlockRange::new(start, count))).await;
        read.unwrap().expect("a read gives data")
    }
}

fn ended(done: DiskDone) -> Ended {
    done.result.map(|()| done.data)
}

/// Blocks that hold `byte`.
fn blocks(byte: u8, count: usize) -> Bytes {
    Bytes::from(vec![byte; 4096 * count])
}

/// Says why a test does nothing here.
fn skipped(reason: &str) {
    println!("skipped: {reason}");
}

/// Runs a program of the system; its trimmed output, or `None` if it failed.
fn run_program(name: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(name).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A loop device over a sparse file, detached when dropped.
struct LoopDevice {
    name: String,
}

impl LoopDevice {
    fn new(directory: &Path, size_bytes: u64) -> Option<LoopDevice> {
        let backing = directory.join("loop-backing");
        std::fs::File::create(&backing).and_then(|file| file.set_len(size_bytes)).unwrap();
        let name = run_program("losetup", &["--find", "--show", backing.to_str().unwrap()])?;
        Some(LoopDevice { name })
    }

    fn path(&self) -> &Path {
        Path::new(&self.name)
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        run_program("losetup", &["--detach", &self.name]);
    }
}
