//! A filesystem made in a device in memory, judged by e2fsck, dumpe2fs and our engine.

use std::cell::RefCell;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;

use block_device::{RamDevice, RecordingDevice};
use filesystem::layout::superblock::Superblock;
use filesystem::units::ROOT_INODE;
use tokio::runtime::Builder;

use super::*;
use crate::files::mke2fs::tool;
use crate::files::real_time;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn wait<T>(future: impl Future<Output = T>) -> T {
    Builder::new_current_thread().build().expect("a runtime").block_on(future)
}

fn options() -> Options {
    Options { cache_bytes_max: 4 << 20, data_bytes_max: 1 << 20, read_only: false, clock: real_time }
}

fn image(size: u64) -> Arc<FreshImage> {
    let home = tempfile::tempdir().expect("a directory");
    Arc::new(FreshImage::make(home.path(), size).expect("mke2fs (e2fsprogs) is installed"))
}

/// Copies what a device holds into a sparse file.
fn dump<D: BlockDevice>(device: &D, path: &Path) {
    let file = std::fs::File::create(path).expect("a file");
    file.set_len(device.size_bytes()).expect("a sparse file");
    for range in wait(allocated(device)).expect("it tells") {
        for piece in pieces(range, COPY_BYTES) {
            let bytes = wait(device.read(piece)).expect("it reads");
            file.write_all_at(&bytes, piece.offset).expect("it is written");
        }
    }
}

fn said(program: &str, arguments: &[&str], path: &Path) -> (i32, String) {
    let output = tool(program).args(arguments).arg(path).output().expect("e2fsprogs is installed");
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    (output.status.code().unwrap_or(-1), text)
}

/// Panics unless e2fsck finds nothing to say.
fn assert_clean<D: BlockDevice>(device: &D) -> String {
    let home = tempfile::tempdir().expect("a directory");
    let path = home.path().join("image");
    dump(device, &path);
    let (status, text) = said("e2fsck", &["-fn"], &path);
    let complains = ["Fix?", "Clear?", "Connect"].iter().any(|word| text.contains(word));
    assert!(status == 0 && !complains, "{status}: {text}");
    said("dumpe2fs", &["-h"], &path).1
}

#[test]
fn a_large_volume_gets_a_filesystem_of_our_profile() {
    let device = RamDevice::new(100 * GIB);
    let device = wait(make(device, image(100 * GIB), Clearing::Discard, &options(), &|_| ())).expect("it is made");
    let header = assert_clean(&device);
    let line = |name: &str| {
        let line = header.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_default().split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let mut features = line("Filesystem features");
    features.sort();
    let mut wanted: Vec<&str> = crate::files::mke2fs::FEATURES.split(',').filter(|name| *name != "none").collect();
    wanted.sort();
    assert_eq!(features, wanted, "{header}");
    let mut journal = line("Journal features");
    journal.sort();
    assert_eq!(journal, ["journal_64bit", "journal_checksum_v3", "journal_incompat_revoke"], "{header}");
    assert_eq!(line("Inode size"), ["256"]);
    assert_eq!(line("Reserved block count"), ["0"]);
    assert_eq!(line("Total journal size"), ["128M"], "{header}");
    let (engine, recovered) = wait(Filesystem::open(device, &options())).expect("our engine opens it");
    assert_eq!(recovered.transactions, 0);
    assert!(wait(engine.run(|handle| handle.lookup(ROOT_INODE, b"lost+found"))).is_ok());
}

#[test]
fn two_filesystems_differ_in_uuid_and_seed() {
    let superblock = |image: &FreshImage| {
        let bytes = image.read(ByteRange { offset: SUPERBLOCK_OFFSET, length: SUPERBLOCK_BYTES as u64 });
        Superblock::decode(&bytes.expect("it reads")).expect("it is sound")
    };
    let (one, other) = (image(64 * MIB), image(64 * MIB));
    assert_ne!(superblock(&one).uuid(), superblock(&other).uuid());
    assert_ne!(superblock(&one).hash_seed(), superblock(&other).hash_seed());
}

/// A device that is full of a pattern.
fn used(size: u64) -> RamDevice {
    RamDevice::from_image(&vec![0xc5; size as usize])
}

#[test]
fn nothing_of_the_old_content_shines_through() {
    for clearing in [Clearing::Discard, Clearing::KeepAllocated] {
        let stages = RefCell::new(Vec::new());
        let note = |progress: Progress| stages.borrow_mut().push(progress);
        let made = wait(make(used(64 * MIB), image(64 * MIB), clearing, &options(), &note)).expect("it is made");
        assert_clean(&made);
        let bytes = made.to_vec();
        assert!(!bytes.chunks(4096).any(|block| block.iter().all(|byte| *byte == 0xc5)), "an old block is there");
        let (first, last) = (stages.borrow()[0], *stages.borrow().last().expect("it told"));
        assert_eq!((first.stage, first.done), (Stage::Clearing, first.total));
        assert_eq!((last.stage, last.done), (Stage::Writing, last.total));
    }
}

#[test]
fn a_space_that_was_reserved_stays_reserved() {
    let made = wait(make(used(32 * MIB), image(32 * MIB), Clearing::KeepAllocated, &options(), &|_| ()));
    let made = made.expect("it is made");
    let bytes: u64 = wait(allocated(&made)).expect("it tells").iter().map(|range| range.length).sum();
    assert_eq!(bytes, 32 * MIB);
}

#[test]
fn a_power_loss_while_it_is_made_leaves_no_filesystem_or_a_whole_one() {
    let device = Rc::new(RecordingDevice::over(used(16 * MIB)));
    let made = wait(write(&device, image(16 * MIB), Clearing::Discard, &|_| ()));
    made.expect("it is made");
    let last = device.position();
    let (mut none, mut whole) = (0, 0);
    for (position, keeps) in (0..=last).flat_map(|position| [(position, true), (position, false)]) {
        let crashed = device.crash_image(position, |_, _| keeps);
        match wait(content(&crashed)).expect("it reads") {
            Content::Filesystem => {
                assert_clean(&crashed);
                whole += 1;
            }
            _ => none += 1,
        }
    }
    assert!(none > 2 && whole >= 1, "{none} without, {whole} with a filesystem");
}

#[test]
fn what_a_volume_holds_is_seen() {
    let empty = RamDevice::new(64 * MIB);
    assert_eq!(wait(content(&empty)), Ok(Content::Nothing));
    wait(empty.write(40 * MIB, Bytes::from_static(&[0; 4096]), false)).expect("it writes");
    assert_eq!(wait(content(&empty)), Ok(Content::Nothing), "zeros are nothing");
    wait(empty.write(50 * MIB, Bytes::from_static(b"x"), false)).expect("it writes");
    assert_eq!(wait(content(&empty)), Ok(Content::Data));
    let made = wait(make(empty, image(64 * MIB), Clearing::Discard, &options(), &|_| ())).expect("it is made");
    assert_eq!(wait(content(&made)), Ok(Content::Filesystem));
}

#[test]
fn much_data_is_sampled_from_end_to_end() {
    let allocated = [ByteRange { offset: 0, length: GIB }, ByteRange { offset: 4 * GIB, length: GIB }];
    let samples = samples(&allocated);
    assert_eq!(samples.len() as u64, LOOKS_MAX);
    assert!(samples.iter().all(|sample| allocated.iter().any(|range| {
        range.offset <= sample.offset && sample.offset + sample.length <= range.offset + range.length
    })));
    assert_eq!(samples.iter().filter(|sample| sample.offset >= 4 * GIB).count(), 128);
}
