//! Tests of the disk engine on real files, and on loop devices where the tests run as root.

mod concurrency;
mod lifecycle;
mod operations;
mod places;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use proto::peer::message::WriteKind;
use proto::{BlockRange, Boot, ClusterId, DiskId, VolumeId};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::LocalSet;

use super::{DiskDone, DiskError, DiskOp, FoundStore, Ring, Store, StoreError, StorePool, StoreSpec};

const BOOT: Boot = Boot(77);
const LOCK_WAIT: Duration = Duration::from_secs(20);

type Ended = Result<Option<Bytes>, DiskError>;

/// Runs a future as a shard does.
fn on_shard<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, future)
}

fn spec(size_bytes: u64) -> StoreSpec {
    StoreSpec { cluster: ClusterId(1), volume: VolumeId(2), disk_id: DiskId(3), size_bytes, preallocate: false }
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

    /// The only store as a scan sees it.
    fn rescan(&self) -> FoundStore {
        let mut results = self.pool.scan(Some(ClusterId(1)));
        assert_eq!(results.len(), 1);
        results.remove(0).unwrap()
    }
}

/// An open store whose operations can be awaited.
struct Client {
    ring: Rc<Ring>,
    store: Store,
    next: Cell<u64>,
    waiting: Rc<RefCell<HashMap<u64, oneshot::Sender<Ended>>>>,
}

impl Client {
    async fn open(found: &FoundStore) -> Client {
        Self::open_at(found, BOOT).await.unwrap()
    }

    async fn open_at(found: &FoundStore, boot: Boot) -> Result<Client, StoreError> {
        Self::open_on(Ring::start(64).unwrap(), found, boot, LOCK_WAIT).await
    }

    async fn open_on(ring: Rc<Ring>, found: &FoundStore, boot: Boot, wait: Duration) -> Result<Client, StoreError> {
        let waiting: Rc<RefCell<HashMap<u64, oneshot::Sender<Ended>>>> = Rc::default();
        let sink = {
            let waiting = Rc::clone(&waiting);
            Rc::new(move |done: DiskDone| {
                let sender = waiting.borrow_mut().remove(&done.tag).expect("an end belongs to one start");
                let _ = sender.send(done.result);
            })
        };
        let store = Store::open(Rc::clone(&ring), found, boot, wait, sink).await?;
        Ok(Client { ring, store, next: Cell::new(0), waiting })
    }

    /// Starts without submitting.
    fn start(&self, op: DiskOp) -> oneshot::Receiver<Ended> {
        let tag = self.next.get();
        self.next.set(tag + 1);
        let (send, receive) = oneshot::channel();
        self.waiting.borrow_mut().insert(tag, send);
        self.store.start(tag, op);
        receive
    }

    async fn run(&self, op: DiskOp) -> Ended {
        let receive = self.start(op);
        self.ring.submit();
        receive.await.expect("every operation ends")
    }

    async fn write(&self, start: u64, data: Bytes) -> Result<(), DiskError> {
        let range = BlockRange::new(start, data.len() as u64 / 4096);
        self.run(DiskOp::Write { range, kind: WriteKind::Data, fua: false, data: Some(data) }).await.map(|_| ())
    }

    async fn read(&self, start: u64, count: u64) -> Bytes {
        let read = self.run(DiskOp::Read { range: BlockRange::new(start, count) }).await;
        read.unwrap().expect("a read gives data")
    }
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
