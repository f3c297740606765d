//! One damaged structure at a time: the operation that meets it names it, nothing is changed any more, the rest is still read,
//! and the volume is left alone but for the mark that it has to be checked.

mod layout_images;

use std::fs;
use std::rc::Rc;

use block_device::{BlockDevice, RamDevice, RecordingDevice};
use filesystem::attributes::{self, Format};
use filesystem::directory::Cookie;
use filesystem::engine::{Failure, Filesystem, Handle, NewFile, OpenError, Options, Place, Rename};
use filesystem::journal::{CommitTime, JournalSuperblock};
use filesystem::layout::Structure;
use filesystem::layout::file_kind::{FileKind, Mode};
use filesystem::layout::timestamp::Timestamp;
use filesystem::map::FileMap;
use filesystem::units::{BlockNumber, FileBlock, GroupNumber, ROOT_INODE};
use filesystem::{InodeNumber, Stop};
use layout_images::{Image, MIB, OURS};
use tokio::runtime::Builder;

const NOW: Timestamp = Timestamp { seconds: 1_700_000_000, nanoseconds: 0 };
const BLOCK: u64 = 1024;
const SIZE: u64 = 32 * MIB;

type Recorded = Rc<RecordingDevice>;

fn options() -> Options {
    Options {
        cache_bytes_max: 1 << 20,
        data_bytes_max: 1 << 20,
        read_only: false,
        clock: || CommitTime { seconds: 1_700_000_000, nanoseconds: 0 },
    }
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    Builder::new_current_thread().build().expect("a runtime").block_on(future)
}

/// A filesystem with something of every kind: `many`, a directory with an index; `holes`, a file whose map has a node; both
/// in the root, beside `sound`, a directory with a file.
fn image() -> Image {
    let image = Image::make(SIZE, &format!("-O {OURS} -b 1024 -N 2048 -J size=2"));
    let directory = tempfile::tempdir().expect("a directory");
    let holes = directory.path().join("holes");
    let file = fs::File::create(&holes).expect("a file");
    for part in 0..24 {
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; 4096], part * 16384).expect("a part of it");
    }
    let value = directory.path().join("value");
    fs::write(&value, [1; 400]).expect("a value");
    image.debugfs("mkdir sound");
    image.debugfs(&format!("write {} sound/file", value.display()));
    image.debugfs(&format!("write {} holes", holes.display()));
    image.debugfs(&format!("ea_set -f {} holes user.long", value.display()));
    image.debugfs("mkdir many");
    let device = RamDevice::from_image(&image.read(0, SIZE as usize));
    let closed = wait(async {
        let (mounted, _) = Filesystem::open(device, &options()).await.expect("it opens");
        let many = mounted.run(|handle| handle.lookup(ROOT_INODE, b"many")).await.expect("it is there").value;
        for number in 0..120 {
            let name = format!("a-name-of-some-length-{number}");
            create(&mounted, many, name.as_bytes()).await.expect("there is room");
        }
        mounted.close().await.expect("the volume is sound");
        mounted.into_device()
    });
    image.write(0, &closed.to_vec());
    assert_eq!(image.complaints(), None);
    image
}

async fn create<D: BlockDevice>(
    mounted: &Filesystem<D>,
    directory: InodeNumber,
    name: &[u8],
) -> Result<InodeNumber, Failure> {
    let new = NewFile { mode: Mode::new(FileKind::Regular, 0o644), user: 0, group: 0, device: None, target: &[] };
    Ok(mounted.run(|handle| handle.create(Place { directory, name }, &new, NOW)).await?.value.inode)
}

/// Where the block of a file is, by debugfs.
fn block_of(image: &Image, path: &str, index: u32) -> BlockNumber {
    let said = image.asked(&format!("bmap {path} {index}"));
    BlockNumber(said.lines().find_map(|line| line.trim().parse().ok()).expect("debugfs tells a number"))
}

/// The byte at which an inode starts.
fn inode_at(image: &Image, path: &str) -> u64 {
    let geometry = image.superblock().geometry().clone();
    let number = inode_of(image, path);
    let (group, _) = geometry.group_of_inode(number).expect("it is in the filesystem");
    let table = image.descriptors(&geometry)[group.0 as usize].inode_table;
    let place = geometry.inode_place(number, table).expect("it is in the filesystem");
    place.block.0 * BLOCK + u64::from(place.offset)
}

fn inode_of(image: &Image, path: &str) -> InodeNumber {
    let said = image.asked(&format!("stat {path}"));
    let (_, after) = said.split_once("Inode: ").expect("debugfs tells its inode");
    InodeNumber(after.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number"))
}

fn damage(image: &Image, at: u64) {
    let byte = image.read(at, 1)[0];
    image.write(at, &[byte ^ 0x5a]);
}

fn mount(image: &Image) -> (Filesystem<Recorded>, Recorded) {
    let volume = Rc::new(RecordingDevice::over(RamDevice::from_image(&image.read(0, SIZE as usize))));
    let opened = wait(Filesystem::open(Rc::clone(&volume), &options())).expect("it opens");
    (opened.0, volume)
}

/// The operation meets the damage; then what has to hold whatever it was.
fn meets<T: std::fmt::Debug>(
    image: &Image,
    structure: Structure,
    mut operation: impl FnMut(&mut Handle<'_>) -> Result<T, Stop>,
) {
    let (mounted, volume) = mount(image);
    let sound = wait(mounted.run(|handle| handle.lookup(ROOT_INODE, b"sound"))).expect("it is sound").value;
    let failure = wait(mounted.run(&mut operation)).expect_err("it meets the damage");
    check_named(&failure, structure);
    let reason = failure.to_string();
    after_damage(&mounted, &volume, sound, &reason);
}

fn check_named(failure: &Failure, structure: Structure) {
    let Failure::Corrupt(corrupt) = failure else { panic!("{structure}: {failure:?}") };
    assert_eq!(corrupt.structure, structure, "{corrupt}");
    assert!(failure.to_string().contains(&structure.to_string()), "{failure}");
}

fn after_damage(mounted: &Filesystem<Recorded>, volume: &Recorded, sound: InodeNumber, reason: &str) {
    let before = volume.position();
    wait(mounted.drive());
    assert!(volume.position() > before, "the mark is left");
    assert!(volume.position() <= before + 2, "and nothing else is written");
    let marked = volume.position();
    let place = |name| Place { directory: sound, name };
    let rename = |handle: &mut Handle<'_>| handle.rename(place(b"file"), place(b"other"), Rename::NoReplace, NOW);
    let refused = wait(mounted.run(rename)).expect_err("nothing is changed any more");
    assert_eq!(refused, Failure::ReadOnly(reason.to_owned()));
    assert_eq!(wait(mounted.close()).expect_err("nor committed"), refused);
    let read = wait(mounted.run(|handle| handle.read_directory(sound, Cookie::START, 10))).expect("it is sound").value;
    assert_eq!(read.entries.len(), 3, "what is sound is read");
    wait(mounted.drive());
    assert_eq!(volume.position(), marked, "nothing is written any more");
}

#[test]
fn a_damaged_block_bitmap_is_named() {
    let image = image();
    let geometry = image.superblock().geometry().clone();
    damage(&image, image.descriptors(&geometry)[0].block_bitmap.0 * BLOCK + 5);
    let new =
        NewFile { mode: Mode::new(FileKind::Symlink, 0o777), user: 0, group: 0, device: None, target: &[b't'; 200] };
    meets(&image, Structure::BlockBitmap, |handle| {
        handle.create(Place { directory: ROOT_INODE, name: b"link" }, &new, NOW)
    });
}

#[test]
fn a_damaged_inode_bitmap_is_named() {
    let image = image();
    let geometry = image.superblock().geometry().clone();
    damage(&image, image.descriptors(&geometry)[0].inode_bitmap.0 * BLOCK + 5);
    let new = NewFile { mode: Mode::new(FileKind::Fifo, 0o644), user: 0, group: 0, device: None, target: &[] };
    meets(&image, Structure::InodeBitmap, |handle| {
        handle.create(Place { directory: ROOT_INODE, name: b"pipe" }, &new, NOW)
    });
}

#[test]
fn a_damaged_inode_is_named() {
    let image = image();
    let number = inode_of(&image, "/holes");
    damage(&image, inode_at(&image, "/holes") + 4);
    meets(&image, Structure::Inode, |handle| handle.inode(number));
}

#[test]
fn a_damaged_node_of_an_extent_tree_is_named() {
    let image = image();
    let root = image.read(inode_at(&image, "/holes") + 0x28, 60);
    assert_eq!(root[6], 1, "the tree has a node");
    let node = u32::from_le_bytes([root[16], root[17], root[18], root[19]]);
    damage(&image, u64::from(node) * BLOCK + 20);
    let number = inode_of(&image, "/holes");
    meets(&image, Structure::ExtentTree, |handle| {
        let inode = handle.inode(number)?;
        let map = FileMap::of_inode(&inode, number, &handle.inode_rules(), BlockNumber(0));
        map.lookup(handle, FileBlock(0))
    });
}

#[test]
fn a_damaged_block_of_a_directory_is_named() {
    let image = image();
    damage(&image, block_of(&image, "/many", 1).0 * BLOCK + 20);
    let many = inode_of(&image, "/many");
    meets(&image, Structure::Directory, |handle| handle.read_directory(many, Cookie::START, 1000));
}

#[test]
fn a_damaged_index_of_a_directory_is_named() {
    let image = image();
    damage(&image, block_of(&image, "/many", 0).0 * BLOCK + 44);
    let many = inode_of(&image, "/many");
    meets(&image, Structure::HashTree, |handle| handle.lookup(many, b"a-name-of-some-length-7"));
}

#[test]
fn a_damaged_block_of_attributes_is_named() {
    let image = image();
    let number = inode_of(&image, "/holes");
    let inode = image.read(inode_at(&image, "/holes"), 256);
    let block = u32::from_le_bytes([inode[0x68], inode[0x69], inode[0x6a], inode[0x6b]]);
    assert_ne!(block, 0, "the value is too long for the inode");
    damage(&image, u64::from(block) * BLOCK + 1000);
    meets(&image, Structure::ExtendedAttributes, |handle| {
        let geometry = handle.geometry();
        let format = Format { block_bytes: geometry.block_size as usize, seed: geometry.checksum_seed };
        let block = Some(handle.inode(number)?.attributes_block);
        match attributes::list(handle, format, attributes::Place { inode: number, body: &[], block }) {
            Err(attributes::AttributeError::Stop(stop)) => Err(stop),
            other => Ok(other),
        }
    });
}

#[test]
fn a_broken_list_of_orphans_is_named() {
    let image = image();
    // The journal's inode cannot be on it.
    image.debugfs("set_super_value last_orphan 8");
    let (mounted, volume) = mount(&image);
    let sound = wait(mounted.run(|handle| handle.lookup(ROOT_INODE, b"sound"))).expect("it is sound").value;
    let failure = wait(mounted.reclaim_orphans(&Default::default())).expect_err("it meets the damage");
    check_named(&failure, Structure::Orphans);
    after_damage(&mounted, &volume, sound, &failure.to_string());
}

#[test]
fn with_a_damaged_descriptor_the_filesystem_is_not_opened_and_the_volume_left_alone() {
    let image = image();
    let geometry = image.superblock().geometry().clone();
    let (at, _) = image.descriptor_bytes(&geometry, GroupNumber(2));
    damage(&image, at + 12);
    let (failure, volume) = not_opened(&image);
    check_named(&failure, Structure::GroupDescriptor);
    assert_eq!(volume.events().len(), 1, "but for the flush after a replay of nothing: {:?}", volume.events());
    // A reader does not look at groups that it does not need.
    let device = RamDevice::from_image(&image.read(0, SIZE as usize));
    let (mounted, _) = wait(Filesystem::open(device, &Options { read_only: true, ..options() })).expect("it opens");
    assert!(wait(mounted.run(|handle| handle.lookup(ROOT_INODE, b"sound"))).is_ok());
}

#[test]
fn with_a_damaged_log_the_filesystem_is_not_opened_and_the_volume_left_alone() {
    let image = image();
    let crashed = wait(async {
        let device = RamDevice::from_image(&image.read(0, SIZE as usize));
        let (mounted, _) = Filesystem::open(device, &options()).await.expect("it opens");
        create(&mounted, ROOT_INODE, b"logged").await.expect("there is room");
        mounted.stop();
        mounted.drive().await;
        mounted.into_device()
    });
    image.write(0, &crashed.to_vec());
    let journal = block_of(&image, "<8>", 0);
    let superblock = image.read(journal.0 * BLOCK, 1024);
    let superblock = JournalSuperblock::decode(&superblock, BLOCK as u32, 2048).expect("it is sound");
    let start = superblock.start().expect("there is something to replay");
    damage(&image, (block_of(&image, "<8>", start.0).0) * BLOCK + 40);
    let (failure, volume) = not_opened(&image);
    check_named(&failure, Structure::JournalBlock);
    assert_eq!(volume.position(), 0, "nothing is written");
}

fn not_opened(image: &Image) -> (Failure, Recorded) {
    let volume = Rc::new(RecordingDevice::over(RamDevice::from_image(&image.read(0, SIZE as usize))));
    match wait(Filesystem::open(Rc::clone(&volume), &options())).err() {
        Some(OpenError::Failed(failure)) => (failure, volume),
        other => panic!("{other:?}"),
    }
}

#[test]
fn e2fsck_sees_the_mark_and_checks_everything() {
    let image = image();
    let number = inode_of(&image, "/holes");
    damage(&image, inode_at(&image, "/holes") + 4);
    let (mounted, volume) = mount(&image);
    assert!(wait(mounted.run(|handle| handle.inode(number))).is_err());
    image.write(0, &volume.crash_image(volume.position(), |_, _| true).to_vec());
    assert!(!image.copy().repair().contains("Pass 1"), "the state is clean as long as there is no mark");
    wait(mounted.drive());
    image.write(0, &volume.crash_image(volume.position(), |_, _| true).to_vec());
    let said = image.repair();
    assert!(said.contains("Pass 1"), "without -f it would believe in a clean state: {said}");
}
