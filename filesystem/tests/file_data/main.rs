//! The data of files against plain vectors: written, cut, grown, punched, allocated, zeroed, synced and read by several tasks
//! at once on a device whose operations interleave, with little memory for what waits, on filesystems of several shapes; full
//! ones, too. Then the filesystem is closed: e2fsck finds nothing, and opened again everything is there.

mod device;
mod hard_cases;
mod model;
mod write_behind;

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::rc::Rc;

use block_device::RamDevice;
use bytes::Bytes;
use filesystem::engine::{Failure, Filesystem, NewFile, Options, Place, Seek};
use filesystem::journal::CommitTime;
use filesystem::layout::file_kind::{FileKind, Mode};
use filesystem::layout::timestamp::Timestamp;
use filesystem::map::FileMap;
use filesystem::units::ROOT_INODE;
use filesystem::{BlockNumber, FileBlock, InodeNumber};
use tokio::task::LocalSet;

use device::SlowDevice;
use model::Client;

/// Arguments of mke2fs: our own profile, and what differs most from it.
const SHAPES: [&[&str]; 4] = [
    &["-b", "4096", "-J", "size=4", "-O", "metadata_csum_seed"],
    &["-b", "1024", "-J", "size=1"],
    &["-b", "2048", "-J", "size=2", "-O", "^flex_bg"],
    &["-b", "1024", "-J", "size=1", "-O", "^metadata_csum,uninit_bg,^flex_bg,^64bit,^extent", "-I", "128"],
];

const NOW: Timestamp = Timestamp { seconds: 1_700_000_000, nanoseconds: 5 };

type Mounted = Filesystem<SlowDevice>;

fn image(shape: &[&str], bytes: u64) -> RamDevice {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("image");
    File::create(&path).and_then(|file| file.set_len(bytes)).expect("a sparse file");
    let mut make = Command::new("/sbin/mke2fs");
    make.args(["-q", "-t", "ext4", "-m", "0", "-E", "lazy_itable_init=1"]).args(shape).arg(&path);
    let status = make.status().expect("mke2fs (e2fsprogs) runs");
    assert!(status.success(), "mke2fs: {status}");
    RamDevice::from_image(&fs::read(&path).expect("the image"))
}

fn options(data_bytes_max: usize) -> Options {
    let clock = || CommitTime { seconds: 1_700_000_000, nanoseconds: 0 };
    Options { cache_bytes_max: 1 << 20, data_bytes_max, read_only: false, clock }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, future)
}

async fn open(image: RamDevice, seed: u64, data_bytes_max: usize) -> (Rc<Mounted>, tokio::task::JoinHandle<()>) {
    let device = SlowDevice::new(image, seed);
    let (mounted, _) = Filesystem::open(device, &options(data_bytes_max)).await.expect("it opens");
    let mounted = Rc::new(mounted);
    mounted.reclaim_orphans(&Default::default()).await.expect("a sound list");
    let driver = Rc::clone(&mounted);
    (mounted, tokio::task::spawn_local(async move { driver.drive().await }))
}

async fn close((mounted, driver): (Rc<Mounted>, tokio::task::JoinHandle<()>)) -> RamDevice {
    mounted.stop();
    driver.await.expect("it ends");
    mounted.close().await.expect("it closes");
    Rc::into_inner(mounted).expect("nobody else has it").into_device().into_inner()
}

async fn create(mounted: &Mounted, name: &str) -> InodeNumber {
    let new = NewFile { mode: Mode::new(FileKind::Regular, 0o644), user: 0, group: 0, device: None, target: b"" };
    let place = Place { directory: ROOT_INODE, name: name.as_bytes() };
    mounted.run(|handle| handle.create(place, &new, NOW)).await.expect("room for a name").value.inode
}

fn expect_clean(image: &RamDevice, what: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("image");
    fs::write(&path, image.to_vec()).expect("written");
    let output = Command::new("/sbin/e2fsck").arg("-fn").arg(&path).output().expect("e2fsck runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let suspicious = ["Fix?", "Clear?", "Connect"].iter().any(|word| said.contains(word));
    if output.status.code() != Some(0) || suspicious {
        keep(&path);
        panic!("{what}: e2fsck -fn: {said}");
    }
}

fn keep(path: &Path) {
    fs::copy(path, std::env::temp_dir().join("file-data-image")).expect("kept");
}

/// Several clients at once, each with a file of its own.
fn clients(shape: &[&str], seed: u64, bytes: u64, data_bytes_max: usize, operations: usize) {
    let (image, files) = block_on(async {
        let opened = open(image(shape, bytes), seed, data_bytes_max).await;
        let mut tasks = Vec::new();
        for number in 0..3 {
            let mounted = Rc::clone(&opened.0);
            let file = create(&mounted, &format!("file{number}")).await;
            let client = Client::new(mounted, file, seed * 10 + number);
            tasks.push(tokio::task::spawn_local(client.work(operations)));
        }
        let mut files = Vec::new();
        for task in tasks {
            files.push(task.await.expect("a client ends well"));
        }
        (close(opened).await, files)
    });
    expect_clean(&image, &format!("{shape:?} with seed {seed}"));
    block_on(async {
        let opened = open(image, seed, data_bytes_max).await;
        for (file, content) in files {
            model::expect_content(&opened.0, file, &content, "after opening again").await;
        }
        close(opened).await;
    });
}

#[test]
fn files_are_as_their_clients_left_them() {
    for shape in SHAPES {
        (0..4).for_each(|seed| clients(shape, seed, 24 << 20, 256 << 10, 400));
    }
}

#[test]
fn files_are_as_their_clients_left_them_when_space_runs_out() {
    for shape in SHAPES {
        (20..24).for_each(|seed| clients(shape, seed, 9 << 20, 256 << 10, 400));
    }
}

#[test]
fn much_memory_changes_nothing() {
    (40..44).for_each(|seed| clients(SHAPES[0], seed, 24 << 20, 64 << 20, 400));
}

#[test]
fn an_open_file_without_a_name_is_there_until_it_is_let_go() {
    block_on(async {
        let opened = open(image(SHAPES[0], 24 << 20), 1, 1 << 20).await;
        let mounted = &opened.0;
        let before = mounted.run(|handle| Ok(handle.available_blocks())).await.expect("counted").value;
        let file = create(mounted, "gone").await;
        assert!(mounted.hold(file));
        let data = Bytes::from(vec![7; 3 << 20]);
        mounted.write(file, 0, data.clone(), NOW).await.expect("room");
        let place = Place { directory: ROOT_INODE, name: b"gone" };
        mounted.run(|handle| handle.remove(place, false, NOW)).await.expect("it was there");
        mounted.fsync(file).await.expect("it is still a file");
        assert_eq!(mounted.read(file, 1 << 20, 100).await.expect("readable").value, data.slice(0..100));
        mounted.write(file, 5, Bytes::from_static(b"more"), NOW).await.expect("room");
        mounted.let_go(file);
        while mounted.read(file, 0, 1).await.is_ok() {
            tokio::task::yield_now().await;
        }
        mounted.sync().await.expect("durable");
        let after = mounted.run(|handle| Ok(handle.available_blocks())).await.expect("counted").value;
        assert_eq!(before, after, "all its blocks are free");
        let image = close(opened).await;
        expect_clean(&image, "after an unlinked file");
    });
}

#[test]
fn a_large_cut_is_whole_at_once_and_frees_everything_later() {
    block_on(async {
        let opened = open(image(&["-b", "1024", "-J", "size=1"], 64 << 20), 1, 1 << 20).await;
        let mounted = &opened.0;
        let file = create(mounted, "large").await;
        // Every other block, so that the map is large and one transaction does not do.
        for at in 0..6000_u64 {
            mounted.write(file, at * 2048, Bytes::from_static(&[9; 1024]), NOW).await.expect("room");
        }
        mounted.fsync(file).await.expect("durable");
        mounted.truncate(file, 1000, NOW).await.expect("it can be cut");
        assert_eq!(mounted.read(file, 0, 4096).await.expect("readable").value, vec![9; 1000]);
        mounted.truncate(file, 5000, NOW).await.expect("it can grow");
        let mut expected = vec![0; 5000];
        expected[..1000].fill(9);
        assert_eq!(mounted.read(file, 0, 1 << 20).await.expect("readable").value, expected);
        assert_eq!(mounted.seek(file, 0, Seek::Hole).await.expect("readable"), Some(1024));
        assert_eq!(mounted.seek(file, 1024, Seek::Data).await.expect("readable"), None);
        let image = close(opened).await;
        expect_clean(&image, "after a large cut");
    });
}

#[test]
fn space_is_refused_when_it_is_asked_for_and_comes_back() {
    block_on(async {
        let opened = open(image(SHAPES[0], 9 << 20), 3, 64 << 20).await;
        let mounted = &opened.0;
        let file = create(mounted, "all").await;
        let chunk = Bytes::from(vec![1; 64 << 10]);
        let mut at = 0;
        let failure = loop {
            match mounted.write(file, at, chunk.clone(), NOW).await {
                Ok(done) => at += done.value as u64,
                Err(failure) => break failure,
            }
        };
        assert_eq!(failure, Failure::NoSpace);
        mounted.fsync(file).await.expect("what was taken in has its room");
        let left = mounted.run(|handle| Ok(handle.available_blocks())).await.expect("counted").value;
        assert!(left < 16 + 8, "{left} blocks of 64 KiB that was refused, and what maps may need");
        mounted.truncate(file, 0, NOW).await.expect("cutting needs no space");
        assert_eq!(mounted.write(file, 0, chunk.clone(), NOW).await.expect("there is room again").value, chunk.len());
        let image = close(opened).await;
        expect_clean(&image, "after a full filesystem");
    });
}

#[test]
fn files_that_grow_side_by_side_stay_whole() {
    block_on(async {
        let opened = open(image(SHAPES[0], 24 << 20), 5, 1 << 20).await;
        let mounted = &opened.0;
        let files = [create(mounted, "one").await, create(mounted, "two").await];
        for at in 0..200_u64 {
            for file in files {
                mounted.write(file, at * 4096, Bytes::from(vec![3; 4096]), NOW).await.expect("room");
                mounted.fsync(file).await.expect("durable");
            }
        }
        for file in files {
            let extents = mounted.run(|handle| {
                let inode = handle.stat(file)?;
                let map = FileMap::of_inode(&inode, file, &handle.inode_rules(), BlockNumber(0));
                let (mut count, mut at) = (0, 0);
                while let Some(extent) = map.next(handle, FileBlock(at))? {
                    (count, at) = (count + 1, extent.end());
                }
                Ok(count)
            });
            let extents = extents.await.expect("readable").value;
            assert!(extents < 20, "{extents} extents for 200 blocks");
        }
        let image = close(opened).await;
        expect_clean(&image, "after files grew side by side");
    });
}
