//! What opening, closing and the limits of a filesystem do to its volume, and what they leave alone.

mod layout_images;

use std::process::Command;
use std::rc::Rc;

use block_device::recording::{Effect, Event};
use block_device::{RamDevice, RecordingDevice};
use filesystem::engine::{Failure, Filesystem, NewFile, OpenError, Options, Place, Rename};
use filesystem::journal::{CommitBlock, CommitTime};
use filesystem::layout::file_kind::{FileKind, Mode};
use filesystem::layout::timestamp::Timestamp;
use filesystem::units::ROOT_INODE;
use filesystem::{InodeNumber, Refusal};
use layout_images::{Image, MIB, OURS};
use tokio::runtime::Builder;

const NOW: Timestamp = Timestamp { seconds: 1_700_000_000, nanoseconds: 0 };

fn options(read_only: bool) -> Options {
    Options {
        cache_bytes_max: 1 << 20,
        data_bytes_max: 1 << 20,
        read_only,
        clock: || CommitTime { seconds: 1_700_000_000, nanoseconds: 0 },
    }
}

fn make(features: &str) -> Image {
    Image::make(64 * MIB, &format!("-O {OURS}{features} -b 4096 -J size=4"))
}

fn device(image: &Image) -> RamDevice {
    RamDevice::from_image(&image.read(0, (64 * MIB) as usize))
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    Builder::new_current_thread().build().expect("a runtime").block_on(future)
}

fn in_root(name: &[u8]) -> Place<'_> {
    Place { directory: ROOT_INODE, name }
}

fn new(kind: FileKind) -> NewFile<'static> {
    NewFile { mode: Mode::new(kind, 0o755), user: 0, group: 0, device: None, target: &[] }
}

async fn create<D: block_device::BlockDevice>(
    mounted: &Filesystem<D>,
    place: Place<'_>,
    kind: FileKind,
) -> Result<InodeNumber, Failure> {
    Ok(mounted.run(|handle| handle.create(place, &new(kind), NOW)).await?.value.inode)
}

#[test]
fn closing_commits_what_nobody_waited_for() {
    let image = make("");
    let closed = wait(async {
        let (mounted, _) = Filesystem::open(device(&image), &options(false)).await.expect("it opens");
        create(&mounted, in_root(b"late"), FileKind::Regular).await.expect("there is room");
        mounted.close().await.expect("the volume is sound");
        mounted.into_device()
    });
    image.write(0, &closed.to_vec());
    assert_eq!(image.complaints(), None);
    let (mounted, recovered) = wait(Filesystem::open(closed, &options(false))).expect("it opens again");
    assert_eq!(recovered.transactions, 0, "there was nothing to recover");
    assert!(wait(mounted.run(|handle| handle.lookup(ROOT_INODE, b"late"))).is_ok());
}

#[test]
fn a_reader_sees_what_the_log_holds_and_writes_nothing() {
    let image = make("");
    let crashed = wait(async {
        let (mounted, _) = Filesystem::open(device(&image), &options(false)).await.expect("it opens");
        create(&mounted, in_root(b"logged"), FileKind::Regular).await.expect("there is room");
        mounted.stop();
        mounted.drive().await;
        mounted.into_device()
    });
    let volume = Rc::new(RecordingDevice::over(crashed));
    let (mounted, recovered) = wait(Filesystem::open(Rc::clone(&volume), &options(true))).expect("it opens");
    assert_eq!(recovered.transactions, 1);
    assert!(wait(mounted.run(|handle| handle.lookup(ROOT_INODE, b"logged"))).is_ok());
    let refused = wait(create(&mounted, in_root(b"more"), FileKind::Regular));
    assert!(matches!(refused, Err(Failure::ReadOnly(_))), "{refused:?}");
    assert_eq!(volume.position(), 0, "nothing was written");
}

#[test]
fn a_filesystem_in_use_elsewhere_is_not_opened_and_one_that_can_only_be_read_not_for_writing() {
    let image = make(",mmp");
    let opened = wait(Filesystem::open(device(&image), &options(false)));
    assert!(matches!(opened.err(), Some(OpenError::NotWritable(why)) if why == "mmp"));
    assert!(wait(Filesystem::open(device(&image), &options(true))).is_ok());
    let superblock = image.superblock();
    let at = superblock.multi_mount_block().expect("it has a mark");
    let mut block = image.block(superblock.geometry(), at);
    block[4..8].copy_from_slice(&5u32.to_le_bytes());
    block[16..80].fill(0);
    block[16..25].copy_from_slice(b"elsewhere");
    let sum = superblock.geometry().checksum_seed.expect("it has checksums").sum(&block[..1020]);
    block[1020..1024].copy_from_slice(&sum.to_le_bytes());
    image.write_block(superblock.geometry(), at, &block);
    let opened = wait(Filesystem::open(device(&image), &options(true)));
    assert!(matches!(opened.err(), Some(OpenError::InUse { node }) if node == "elsewhere"));
}

#[test]
fn without_dir_nlink_a_directory_with_all_its_links_takes_no_further_directory() {
    let image = make(",^dir_nlink");
    let device = wait(async {
        let (mounted, _) = Filesystem::open(device(&image), &options(false)).await.expect("it opens");
        for name in [&b"full"[..], b"other"] {
            create(&mounted, in_root(name), FileKind::Directory).await.expect("there is room");
        }
        mounted.close().await.expect("the volume is sound");
        mounted.into_device()
    });
    image.write(0, &device.to_vec());
    image.debugfs("sif /full links_count 65000");
    wait(async {
        let (mounted, _) = Filesystem::open(self::device(&image), &options(false)).await.expect("it opens");
        let full = mounted.run(|handle| handle.lookup(ROOT_INODE, b"full")).await.expect("it is there").value;
        let inside = Place { directory: full, name: b"new" };
        let refused = Err(Failure::Refused(Refusal::TooManyLinks));
        assert_eq!(create(&mounted, inside, FileKind::Directory).await, refused.clone());
        let moved = mounted.run(|handle| handle.rename(in_root(b"other"), inside, Rename::Replace, NOW)).await;
        assert_eq!(moved.map(|done| done.value), refused.map(|_| None));
        assert!(create(&mounted, inside, FileKind::Regular).await.is_ok(), "files count no links");
    });
}

/// One file is made on `volume`; gives the record, and where in it the commit block was written.
fn one_commit(volume: RamDevice) -> (Rc<RecordingDevice>, usize, u64) {
    let recording = Rc::new(RecordingDevice::over(volume));
    wait(async {
        let (mounted, _) = Filesystem::open(Rc::clone(&recording), &options(false)).await.expect("it opens");
        create(&mounted, in_root(b"file"), FileKind::Regular).await.expect("there is room");
        mounted.stop();
        mounted.drive().await;
    });
    let is_commit = |event: &Event| match event {
        Event::Write(write) => match &write.effect {
            Effect::Data(data) if CommitBlock::decode(data).is_some() => Some(write.offset),
            _ => None,
        },
        Event::Flush => None,
    };
    let commits: Vec<_> =
        recording.events().iter().enumerate().filter_map(|(at, event)| Some((at, is_commit(event)?))).collect();
    let &[(event, offset)] = &commits[..] else { panic!("{commits:?}") };
    (recording, event, offset)
}

#[test]
fn a_torn_commit_block_over_older_contents_of_the_log_is_its_end_for_others_too() {
    let image = make("");
    let (_, _, offset) = one_commit(device(&image));
    image.write(offset, &[0xaa; 4096]);
    let (recording, commit, _) = one_commit(device(&image));
    for kept in 0..8 {
        let torn = recording.crash_image(commit + 1, |_, sector| sector % 8 == kept);
        image.write(0, &torn.to_vec());
        let repaired = Command::new("/sbin/e2fsck").arg("-p").arg(image.path()).output().expect("e2fsck runs");
        let said = String::from_utf8_lossy(&repaired.stdout);
        assert!(matches!(repaired.status.code(), Some(0 | 1)) && !said.contains("corrupt"), "sector {kept}: {said}");
        assert_eq!(image.complaints(), None);
        let (mounted, _) = wait(Filesystem::open(torn, &options(false))).expect("it opens");
        // The first sector alone is the whole block: the others hold zeros already.
        assert_eq!(wait(mounted.run(|handle| handle.lookup(ROOT_INODE, b"file"))).is_ok(), kept == 0);
    }
}
