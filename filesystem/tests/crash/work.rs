//! Random operations on names, recorded, with what they made of the tree.

use std::fs::{self, File};
use std::process::Command;
use std::rc::Rc;

use block_device::{RamDevice, RecordingDevice};
use filesystem::engine::{Failure, Filesystem, NewFile, Options, Place, Rename};
use filesystem::journal::CommitTime;
use filesystem::layout::file_kind::{FileKind, Mode};
use filesystem::layout::timestamp::Timestamp;
use filesystem::{InodeNumber, TransactionId};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::task::LocalSet;

use crate::model::Tree;

/// Bytes of the volume.
const BYTES: u64 = 16 << 20;

pub(crate) fn options(read_only: bool) -> Options {
    Options {
        cache_bytes_max: 256 << 10,
        data_bytes_max: 256 << 10,
        read_only,
        clock: || CommitTime { seconds: 1_700_000_000, nanoseconds: 0 },
    }
}

/// A record of operations.
pub(crate) struct Run {
    pub(crate) recording: Rc<RecordingDevice>,
    /// The first moment with a mounted filesystem.
    pub(crate) begin: usize,
    /// The tree after each operation, and the transaction that makes it durable.
    pub(crate) states: Vec<(TransactionId, Tree)>,
    /// Moments of the record at which this many of the states had been acknowledged.
    pub(crate) acknowledged: Vec<(usize, usize)>,
}

/// A fresh image.
pub(crate) fn image(shape: &[&str]) -> RamDevice {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("image");
    File::create(&path).and_then(|file| file.set_len(BYTES)).expect("a sparse file");
    let mut make = Command::new("/sbin/mke2fs");
    make.args(["-q", "-t", "ext4", "-E", "lazy_itable_init=1"]).args(shape).arg(&path);
    let status = make.status().expect("mke2fs (e2fsprogs) runs");
    assert!(status.success(), "mke2fs: {status}");
    RamDevice::from_image(&fs::read(&path).expect("the image"))
}

impl Run {
    /// Does operations on a fresh filesystem of a shape, and leaves it as it is.
    pub(crate) fn record(shape: &[&str], seed: u64, operations: usize) -> Self {
        let recording = Rc::new(RecordingDevice::over(image(shape)));
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        LocalSet::new().block_on(&runtime, record(recording, seed, operations))
    }
}

async fn record(recording: Rc<RecordingDevice>, seed: u64, operations: usize) -> Run {
    let (mounted, _) =
        Filesystem::open(Rc::clone(&recording), &options(false)).await.expect("a fresh filesystem opens");
    let mounted = Rc::new(mounted);
    let driver = Rc::clone(&mounted);
    tokio::task::spawn_local(async move { driver.drive().await });
    let first = Tree::read(&*mounted).await;
    let begin = recording.position();
    let before = TransactionId(0);
    let mut run = Run { recording, begin, states: vec![(before, first)], acknowledged: vec![(begin, 1)] };
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for number in 0..operations {
        let mut tree = run.states.last().expect("there is a first").1.clone();
        if let Some(transaction) = operate(&mounted, &mut tree, &mut rng, number).await {
            run.states.push((transaction, tree));
            // Sometimes somebody waits; else operations gather in one transaction.
            if rng.random_range(0..6) == 0 {
                mounted.durable(transaction).await.expect("the volume is sound");
                run.acknowledged.push((run.recording.position(), run.states.len()));
            }
        }
    }
    run
}

/// One operation, on the filesystem and on the tree; none if it was refused. What it refused has to be wrong in the tree, too.
async fn operate(
    mounted: &Filesystem<Rc<RecordingDevice>>,
    tree: &mut Tree,
    rng: &mut ChaCha8Rng,
    number: usize,
) -> Option<TransactionId> {
    let now = Timestamp { seconds: 1_700_000_000 + number as i64, nanoseconds: 7 };
    let directories = tree.directories();
    let directory = *directories.choose(rng).expect("there is a root");
    let names: Vec<_> = tree.names.iter().filter(|((_, name), _)| name != b"lost+found").collect();
    let existing = names.choose(rng).map(|(place, inode)| ((*place).clone(), **inode));
    let length = if rng.random_range(0..4) == 0 { 200 } else { 6 };
    let fresh = (directory, format!("{number:0length$}").into_bytes());
    let place = |(directory, name): &'_ (u32, Vec<u8>)| (InodeNumber(*directory), name.clone());
    let result = match rng.random_range(0..10) {
        0..=3 => create(mounted, tree, rng, &fresh, now).await,
        4 => {
            let (_, inode) = existing?;
            let (directory, name) = place(&fresh);
            let done =
                mounted.run(|handle| handle.link(InodeNumber(inode), Place { directory, name: &name }, now)).await;
            done.map(|done| {
                tree.names.insert(fresh, inode);
                tree.nodes.get_mut(&inode).expect("it has a name").links += 1;
                done.transaction
            })
        }
        5..=7 => {
            let (gone, inode) = existing?;
            let (directory, name) = place(&gone);
            let is_directory = tree.nodes[&inode].mode & 0xf000 == 0x4000;
            let remove = mounted.run(|handle| handle.remove(Place { directory, name: &name }, is_directory, now)).await;
            match remove {
                Ok(done) => {
                    tree.names.remove(&gone);
                    let orphan = lose(tree, inode);
                    assert_eq!(done.value, (InodeNumber(inode), orphan));
                    if is_directory {
                        tree.nodes.get_mut(&gone.0).expect("the parent").links -= 1;
                    }
                    Ok(done.transaction)
                }
                Err(failure) => Err(failure),
            }
        }
        _ => rename(mounted, tree, rng, existing?, fresh, now).await,
    };
    match result {
        Ok(transaction) => transaction,
        Err(Failure::Refused(_) | Failure::NoSpace) => None,
        Err(failure) => panic!("operation {number}: {failure}"),
    }
}

async fn create(
    mounted: &Filesystem<Rc<RecordingDevice>>,
    tree: &mut Tree,
    rng: &mut ChaCha8Rng,
    at: &(u32, Vec<u8>),
    now: Timestamp,
) -> Result<Option<TransactionId>, Failure> {
    let kind = *[FileKind::Regular, FileKind::Regular, FileKind::Directory, FileKind::Symlink, FileKind::Fifo]
        .choose(rng)
        .expect("there are some");
    let target = match kind {
        FileKind::Symlink => vec![b'x'; *[3, 59, 60, 500].choose(rng).expect("there are some")],
        _ => Vec::new(),
    };
    let new = NewFile { mode: Mode::new(kind, 0o755), user: 5, group: 6, device: None, target: &target };
    let place = Place { directory: InodeNumber(at.0), name: &at.1 };
    let done = mounted.run(|handle| handle.create(place, &new, now)).await?;
    let is_directory = kind == FileKind::Directory;
    let node = crate::model::Node {
        mode: new.mode.0,
        links: if is_directory { 2 } else { 1 },
        generation: done.value.generation,
        size: target.len() as u64,
        target: (kind == FileKind::Symlink && target.len() < 60).then(|| target.clone()),
    };
    assert!(tree.nodes.insert(done.value.inode.0, node).is_none(), "an inode in use was taken");
    tree.names.insert(at.clone(), done.value.inode.0);
    tree.nodes.get_mut(&at.0).expect("the parent").links += u16::from(is_directory);
    Ok(done.transaction)
}

async fn rename(
    mounted: &Filesystem<Rc<RecordingDevice>>,
    tree: &mut Tree,
    rng: &mut ChaCha8Rng,
    (from, inode): ((u32, Vec<u8>), u32),
    fresh: (u32, Vec<u8>),
    now: Timestamp,
) -> Result<Option<TransactionId>, Failure> {
    let names: Vec<_> = tree.names.keys().filter(|(_, name)| name != b"lost+found").cloned().collect();
    let (to, how) = match rng.random_range(0..4) {
        0 => (fresh, Rename::NoReplace),
        1 => (fresh, Rename::Replace),
        2 => (names.choose(rng).expect("there is one").clone(), Rename::Replace),
        _ => (names.choose(rng).expect("there is one").clone(), Rename::Exchange),
    };
    let place = |at: &(u32, Vec<u8>)| InodeNumber(at.0);
    let source = Place { directory: place(&from), name: &from.1 };
    let target = Place { directory: place(&to), name: &to.1 };
    let done = mounted.run(|handle| handle.rename(source, target, how, now)).await?;
    let other = tree.names.get(&to).copied();
    if other == Some(inode) {
        return Ok(done.transaction);
    }
    let is_directory = |tree: &Tree, inode: u32| tree.nodes[&inode].mode & 0xf000 == 0x4000;
    let add = |tree: &mut Tree, directory: u32, by: i16| {
        let links = &mut tree.nodes.get_mut(&directory).expect("a directory").links;
        *links = links.checked_add_signed(by).expect("counted");
    };
    if is_directory(tree, inode) {
        add(tree, from.0, -1);
        add(tree, to.0, 1);
    }
    match (how, other) {
        (Rename::Exchange, Some(other)) => {
            if is_directory(tree, other) {
                add(tree, to.0, -1);
                add(tree, from.0, 1);
            }
            tree.names.insert(from, other);
        }
        (_, Some(other)) => {
            if is_directory(tree, other) {
                add(tree, to.0, -1);
            }
            let orphan = lose(tree, other);
            assert_eq!(done.value, Some((InodeNumber(other), orphan)));
            tree.names.remove(&from);
        }
        (_, None) => drop(tree.names.remove(&from)),
    }
    tree.names.insert(to, inode);
    Ok(done.transaction)
}

/// An inode has a name fewer; true when it was the last.
fn lose(tree: &mut Tree, inode: u32) -> bool {
    let node = tree.nodes.get_mut(&inode).expect("it has a name");
    node.links = if node.mode & 0xf000 == 0x4000 { 0 } else { node.links - 1 };
    let orphan = node.links == 0;
    if orphan {
        tree.nodes.remove(&inode);
    }
    orphan
}
