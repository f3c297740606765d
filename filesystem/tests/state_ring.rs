//! The state ring through the engine: groups of operations and records over power losses at random moments, judged by our
//! recovery and by e2fsck; what the ring refuses; and the count of starts.

mod image;

use std::collections::BTreeMap;
use std::rc::Rc;

use block_device::{BlockDevice, RamDevice, RecordingDevice};
use bytes::Bytes;
use filesystem::directory::Cookie;
use filesystem::engine::{
    AttributeChanges, Done, Failure, Filesystem, Handle, NewFile, Options, Place, Rename, change_attribute,
    is_hidden_name,
};
use filesystem::journal::CommitTime;
use filesystem::layout::file_kind::{FileKind, Mode};
use filesystem::layout::timestamp::Timestamp;
use filesystem::layout::xattr::SetMode;
use filesystem::state_ring::{Record, RecordId};
use filesystem::units::ROOT_INODE;
use filesystem::{InodeNumber, Refusal, Stop, TransactionId};
use image::Image;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::runtime::Builder;
use tokio::task::LocalSet;

/// Files by their names, which are the keys of records, and what these say of them: inode and generation.
type Tree = BTreeMap<u128, Vec<u8>>;

const NOW: Timestamp = Timestamp { seconds: 1_700_000_000, nanoseconds: 0 };

/// Bytes of a block, and features.
const SHAPES: [(usize, &str); 2] =
    [(4096, "metadata_csum,metadata_csum_seed"), (1024, "^metadata_csum,^extent,^64bit,^flex_bg")];

fn options() -> Options {
    let clock = || CommitTime { seconds: 1_700_000_000, nanoseconds: 0 };
    Options { cache_bytes_max: 128 << 10, data_bytes_max: 1 << 20, read_only: false, clock }
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = Builder::new_current_thread().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, future)
}

/// Opened, driven, and with its ring.
async fn open<D: BlockDevice + 'static>(device: D, ring_bytes: u64) -> (Rc<Filesystem<D>>, Vec<Record>) {
    let (mounted, _) = Filesystem::open(device, &options()).await.expect("it opens");
    let mounted = Rc::new(mounted);
    let driver = Rc::clone(&mounted);
    tokio::task::spawn_local(async move { driver.drive().await });
    let records = mounted.open_state_ring(ring_bytes).await.expect("a ring").records;
    (mounted, records)
}

/// An operation.
type Step<'a> = dyn Fn(&mut Handle<'_>) -> Result<(), Stop> + 'a;

fn id(key: u128) -> RecordId {
    RecordId { kind: 7, key }
}

fn new(kind: FileKind) -> NewFile<'static> {
    NewFile { mode: Mode::new(kind, 0o644), user: 0, group: 0, device: None, target: &[] }
}

fn name_of(key: u128) -> Vec<u8> {
    format!("{key:039}").into_bytes()
}

fn in_root(name: &[u8]) -> Place<'_> {
    Place { directory: ROOT_INODE, name }
}

/// What the tree and the ring say; they must agree.
async fn read<D: BlockDevice>(mounted: &Filesystem<D>, records: &[Record], what: &str) -> Tree {
    let mut tree = Tree::new();
    let mut after = Cookie::START;
    loop {
        let batch = mounted.run(|handle| handle.read_directory(ROOT_INODE, after, 50)).await.expect("readable").value;
        for entry in batch.entries {
            after = entry.cookie;
            let is_other = entry.name.starts_with(b".") || entry.name == b"lost+found";
            if is_other || is_hidden_name(ROOT_INODE, &entry.name) {
                continue;
            }
            let key = String::from_utf8(entry.name).expect("a number").parse().expect("a number");
            let inode = mounted.run(|handle| handle.stat(entry.inode)).await.expect("in use").value;
            tree.insert(key, [entry.inode.0.to_le_bytes(), inode.generation.to_le_bytes()].concat());
        }
        if batch.at_end {
            break;
        }
    }
    let said: Tree = records.iter().map(|record| (record.id.key, record.payload[..8].to_vec())).collect();
    assert_eq!(said, tree, "{what}: records and files differ");
    for key in tree.keys() {
        let payload = mounted.run(|handle| handle.record(id(*key))).await.expect("readable").value;
        assert_eq!(payload.map(|payload| payload[..8].to_vec()), tree.get(key).cloned(), "{what}");
    }
    tree
}

/// Makes a file and its record, as one.
fn make(handle: &mut Handle<'_>, key: u128, bytes: usize) -> Result<Vec<u8>, Stop> {
    let made = handle.create(in_root(&name_of(key)), &new(FileKind::Regular), NOW)?;
    let mut payload = [made.inode.0.to_le_bytes(), made.generation.to_le_bytes()].concat();
    let said = payload.clone();
    payload.resize(bytes.max(8), 0xaa);
    handle.append_record(id(key), &payload)?;
    Ok(said)
}

fn drop_file(handle: &mut Handle<'_>, key: u128) -> Result<(), Stop> {
    handle.remove(in_root(&name_of(key)), false, NOW)?;
    assert!(handle.delete_record(id(key))?, "it has a record");
    Ok(())
}

/// No inode is free, or the ring has no room.
fn is_full(failure: &Failure) -> bool {
    matches!(failure, Failure::NoSpace | Failure::Refused(Refusal::StateRingFull))
}

struct Run {
    recording: Rc<RecordingDevice>,
    /// The ring is whole and open from here on.
    begin: usize,
    /// The tree after each group, and the transaction that makes it durable.
    states: Vec<(TransactionId, Tree)>,
    /// Moments at which so many states had been acknowledged.
    acknowledged: Vec<(usize, usize)>,
}

async fn record(image: &Image, seed: u64, groups: usize, ring_bytes: u64) -> Run {
    let recording = Rc::new(RecordingDevice::over(RamDevice::from_image(&image.bytes())));
    let (mounted, records) = open(Rc::clone(&recording), ring_bytes).await;
    assert_eq!(records, []);
    let begin = recording.position();
    let (states, acknowledged) = (vec![(TransactionId(0), Tree::new())], vec![(begin, 1)]);
    let mut run = Run { recording, begin, states, acknowledged };
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for number in 0..groups as u128 {
        let mut tree = run.states.last().expect("there is one").1.clone();
        let existing = tree.keys().choose(&mut rng).copied();
        let most = if rng.random_range(0..9) == 0 { 900 } else { 400 };
        let bytes = rng.random_range(8..most);
        let done: Result<Done<()>, Failure> = match (rng.random_range(0..10), existing) {
            (0..=4, _) | (_, None) => {
                let made = mounted.run(|handle| make(handle, number, bytes)).await;
                made.map(|done| done.map(|file| drop(tree.insert(number, file))))
            }
            // Of a group that is refused in the end nothing is there, its records included.
            (5, Some(key)) => {
                let group = |handle: &mut Handle<'_>| {
                    drop_file(handle, key)?;
                    make(handle, number, bytes)?;
                    make(handle, number, bytes).map(drop)
                };
                let refused = mounted.run(group).await;
                let failure = refused.expect_err("the name exists");
                assert!(is_full(&failure) || failure == Failure::Refused(Refusal::Exists), "{failure}");
                continue;
            }
            (6, Some(key)) => {
                // The record of a file is said anew beside those of others.
                let said = tree[&key].clone();
                let again = [&said[..], &vec![0xbb; bytes - 8]].concat();
                mounted.run(|handle| handle.append_record(id(key), &again)).await
            }
            (_, Some(key)) => {
                tree.remove(&key);
                mounted.run(|handle| drop_file(handle, key)).await
            }
        };
        match done {
            Ok(done) => run.states.push((done.transaction.expect("it changed something"), tree)),
            Err(full) if is_full(&full) => continue,
            Err(failure) => panic!("group {number}: {failure}"),
        }
        if rng.random_range(0..4) == 0 {
            let transaction = run.states.last().expect("there is one").0;
            mounted.durable(transaction).await.expect("the volume is sound");
            run.acknowledged.push((run.recording.position(), run.states.len()));
        }
    }
    let written = mounted.state_ring_usage().expect("it is open").blocks_written;
    let blocks = ring_bytes / image.block_bytes as u64;
    assert!(written > 5 * blocks, "{written} blocks were written of a ring of {blocks}");
    run
}

/// What a power loss left is a state that was there, no older than what was acknowledged.
fn judge(run: &Run, crashed: &RamDevice, position: usize, image: &Image, ring_bytes: u64, what: &str) {
    let device = Rc::new(crashed.clone());
    let tree = wait(async {
        let (mounted, records) = open(Rc::clone(&device), ring_bytes).await;
        mounted.reclaim_orphans(&Default::default()).await.expect("sound");
        let tree = read(&mounted, &records, what).await;
        // It goes on from there.
        match mounted.run(|handle| make(handle, u128::MAX, 100)).await {
            Ok(_) => drop(mounted.run(|handle| drop_file(handle, u128::MAX)).await.expect("it is there")),
            Err(full) => assert!(is_full(&full), "{full}"),
        }
        mounted.stop();
        mounted.drive().await;
        mounted.close().await.expect("sound");
        tree
    });
    let least = run.acknowledged.iter().rev().find(|(moment, _)| *moment <= position).map_or(1, |(_, states)| *states);
    let ends = |at: usize| run.states.get(at + 1).is_none_or(|next| next.0 != run.states[at].0);
    let mut possible = run.states.iter().enumerate().skip(least - 1);
    assert!(
        possible.any(|(at, (_, state))| (at == least - 1 || ends(at)) && *state == tree),
        "{what}: the tree is none of those from state {least} on"
    );
    image.write(&device.to_vec());
    image.assert_clean();
}

fn crash(shape: usize, seed: u64, ring_bytes: u64) {
    let (block_bytes, features) = SHAPES[shape];
    let image = Image::new(block_bytes, 256, features);
    let run = wait(record(&image, seed, 1_000, ring_bytes));
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for number in 0..30 {
        let position = rng.random_range(run.begin..=run.recording.position());
        let part = rng.random_range(0..=4_u32);
        let crashed = run.recording.crash_image(position, |_, _| rng.random_range(0..4) < part);
        let what = format!("seed {seed}, image {number}, after event {position} with {part}/4 of what may be lost");
        judge(&run, &crashed, position, &image, ring_bytes, &what);
    }
    let end = run.recording.position();
    judge(&run, &run.recording.crash_image(end, |_, _| true), end, &image, ring_bytes, "the end");
}

#[test]
fn a_record_and_what_it_tells_of_survive_a_power_loss_together_or_not_at_all() {
    (0..3).for_each(|seed| crash(0, seed, 100 << 10));
}

#[test]
fn the_same_with_small_blocks_and_indirect_maps() {
    (10..13).for_each(|seed| crash(1, seed, 40 << 10));
}

#[test]
fn a_ring_that_was_being_made_is_made_whole_at_the_next_start() {
    for (block_bytes, features) in SHAPES {
        let image = Image::new(block_bytes, 256, features);
        let ring_bytes = 2 << 20;
        let recording = Rc::new(RecordingDevice::over(RamDevice::from_image(&image.bytes())));
        wait(open(Rc::clone(&recording), ring_bytes));
        let mut rng = ChaCha8Rng::seed_from_u64(block_bytes as u64);
        let run = Run { recording, begin: 0, states: vec![(TransactionId(0), Tree::new())], acknowledged: Vec::new() };
        for number in 0..15 {
            let position = rng.random_range(0..=run.recording.position());
            let crashed = run.recording.crash_image(position, |_, _| rng.random());
            judge(&run, &crashed, position, &image, ring_bytes, &format!("image {number} after event {position}"));
        }
    }
}

#[test]
fn nobody_else_changes_the_ring_even_before_it_is_opened() {
    let image = Image::new(1024, 256, SHAPES[0].1);
    let volume = Rc::new(RamDevice::from_image(&image.bytes()));
    wait(async {
        let (mounted, _) = open(Rc::clone(&volume), 30 << 10).await;
        assert_eq!(mounted.open_state_ring(1).await, Err(Failure::Refused(Refusal::Reserved)));
        mounted.stop();
        mounted.drive().await;
        mounted.close().await.expect("sound");
    });
    image.write(&volume.to_vec());
    image.assert_clean();
    let (_, said) = image::run("debugfs", &["-R", "stat /.tandem/state", &image.path_text()]);
    assert!(said.contains("Mode:  0600") && said.contains("Flags: 0x84000"), "{said}");
    wait(async {
        let (mounted, _) = Filesystem::open(Rc::clone(&volume), &options()).await.expect("it opens");
        let find = |handle: &mut Handle<'_>| {
            let directory = handle.lookup(ROOT_INODE, b".tandem")?;
            Ok((directory, handle.lookup(directory, b"state")?))
        };
        let (directory, file) = mounted.run(find).await.expect("they are there").value;
        let other = mounted.run(|handle| handle.create(in_root(b"other"), &new(FileKind::Regular), NOW)).await;
        let other = other.expect("there is room").value.inode;
        let state = Place { directory, name: b"state" };
        let tandem = in_root(b".tandem");
        let chmod = AttributeChanges { mode: Some(0), ..AttributeChanges::default() };
        let how = Rename::Replace;
        let refused: [&Step<'_>; 14] = [
            &|handle| handle.remove(state, false, NOW).map(drop),
            &|handle| handle.remove(tandem, true, NOW).map(drop),
            &|handle| handle.rename(state, in_root(b"stolen"), how, NOW).map(drop),
            &|handle| handle.rename(tandem, in_root(b"stolen"), how, NOW).map(drop),
            &|handle| handle.rename(in_root(b"other"), state, how, NOW).map(drop),
            &|handle| handle.rename(in_root(b"other"), tandem, Rename::Exchange, NOW).map(drop),
            &|handle| handle.rename(in_root(b"other"), Place { directory, name: b"more" }, how, NOW).map(drop),
            &|handle| handle.link(file, in_root(b"second"), NOW),
            &|handle| handle.create(Place { directory, name: b"more" }, &new(FileKind::Fifo), NOW).map(drop),
            &|handle| handle.set_attributes(file, &chmod, NOW),
            &|handle| handle.set_attribute(directory, (b"user.a", b""), SetMode::Any, NOW),
            &|handle| handle.truncate(file, 0, NOW),
            &|handle| handle.write(file, 0, &Bytes::from_static(b"no"), NOW).map(drop),
            &|handle| handle.append_record(id(1), b"without a ring that is open"),
        ];
        for (number, operation) in refused.iter().enumerate() {
            let done = mounted.run(operation).await;
            assert_eq!(done.err(), Some(Failure::Refused(Refusal::Reserved)), "operation {number}");
        }
        let hidden = |number| mounted.run(move |handle| Ok(handle.is_hidden(number)));
        assert!(hidden(file).await.expect("yes").value && hidden(directory).await.expect("yes").value);
        assert!(!hidden(other).await.expect("no").value && !hidden(ROOT_INODE).await.expect("no").value);
        assert!(is_hidden_name(ROOT_INODE, b".tandem") && !is_hidden_name(directory, b".tandem"));
        assert_eq!(mounted.state_ring_usage(), None);
    });
}

#[test]
fn state_beyond_half_of_the_ring_is_refused_and_what_is_there_stays() {
    let image = Image::new(4096, 256, SHAPES[0].1);
    wait(async {
        let (mounted, _) = open(RamDevice::from_image(&image.bytes()), 256 << 10).await;
        let mut kept = 0;
        let full = loop {
            match mounted.run(|handle| handle.append_record(id(kept), &[1; 410])).await {
                Ok(_) => kept += 1,
                Err(failure) => break failure,
            }
        };
        assert_eq!(full, Failure::Refused(Refusal::StateRingFull));
        let usage = mounted.state_ring_usage().expect("it is open");
        assert!(usage.records as u128 == kept && usage.per_mille >= 990, "{usage:?}");
        assert!(kept * 446 > (256 << 10) / 3, "{kept} records");
        let too_large = mounted.run(|handle| handle.append_record(id(0), &[1; 4096])).await;
        assert!(matches!(too_large, Err(Failure::TooLarge(_))), "{too_large:?}");
        for round in 0..kept * 3 {
            // Replacing and going away are never refused.
            let done = mounted.run(|handle| handle.append_record(id(round % kept), &[2; 410])).await;
            let transaction = done.expect("it takes the place of another").transaction.expect("it changed something");
            if round % 3 == 0 {
                mounted.durable(transaction).await.expect("the volume is sound");
            }
        }
        for key in 0..kept {
            assert_eq!(
                mounted.run(|handle| handle.record(id(key))).await.map(|done| done.value),
                Ok(Some(vec![2; 410]))
            );
            assert_eq!(mounted.run(|handle| handle.delete_record(id(key))).await.map(|done| done.value), Ok(true));
        }
        assert_eq!(mounted.run(|handle| handle.delete_record(id(0))).await.map(|done| done.value), Ok(false));
        assert_eq!(mounted.state_ring_usage().map(|usage| usage.records), Some(0));
    });
}

#[test]
fn garbage_in_the_ring_turns_the_filesystem_read_only_and_is_named() {
    let image = Image::new(4096, 256, SHAPES[0].1);
    let volume = Rc::new(RamDevice::from_image(&image.bytes()));
    wait(async {
        let (mounted, _) = open(Rc::clone(&volume), 100 << 10).await;
        let place = mounted.run(|handle| handle.append_record(id(1), &[0x77; 300])).await.expect("there is room");
        mounted.durable(place.transaction.expect("it changed something")).await.expect("the volume is sound");
        mounted.stop();
        mounted.drive().await;
        mounted.close().await.expect("sound");
    });
    let mut device = volume.to_vec();
    image.write(&device);
    let (_, said) = image::run("debugfs", &["-R", "bmap /.tandem/state 1", &image.path_text()]);
    let at = said.lines().find_map(|line| line.trim().parse::<usize>().ok()).expect("a block") * 4096;
    device[at + 100] ^= 1;
    wait(async {
        let (mounted, _) = Filesystem::open(RamDevice::from_image(&device), &options()).await.expect("it opens");
        let mounted = Rc::new(mounted);
        let driver = Rc::clone(&mounted);
        tokio::task::spawn_local(async move { driver.drive().await });
        let failure = mounted.open_state_ring(100 << 10).await.expect_err("it is broken");
        assert!(failure.to_string().contains("state ring, block 1"), "{failure}");
        let refused = mounted.run(|handle| handle.create(in_root(b"new"), &new(FileKind::Fifo), NOW)).await;
        assert!(matches!(refused, Err(Failure::ReadOnly(_))), "{refused:?}");
    });
}

#[test]
fn every_start_raises_the_change_attribute_of_the_next_change() {
    let image = Image::new(4096, 256, SHAPES[0].1);
    let mut volume = RamDevice::from_image(&image.bytes());
    let mut seen: Vec<u64> = Vec::new();
    for start in 1..=3_u64 {
        let device = Rc::new(volume);
        wait(async {
            let (mounted, _) = open(Rc::clone(&device), 100 << 10).await;
            let file = match mounted.run(|handle| handle.lookup(ROOT_INODE, b"f")).await {
                Ok(done) => done.value,
                Err(_) => {
                    let made = mounted.run(|handle| handle.create(in_root(b"f"), &new(FileKind::Regular), NOW)).await;
                    made.expect("there is room").value.inode
                }
            };
            for user in [start as u32, start as u32 + 10] {
                let chown = AttributeChanges { user: Some(user), ..AttributeChanges::default() };
                let done = mounted.run(|handle| handle.set_attributes(file, &chown, NOW)).await.expect("it is there");
                mounted.durable(done.transaction.expect("it changed something")).await.expect("sound");
                let change = change_attribute(&stat(&mounted, file).await);
                assert_eq!(change >> 40, start, "{change:#x}");
                seen.push(change);
            }
        });
        // No clean end: what is not home comes back from the log.
        volume = (*device).clone();
    }
    assert!(seen.is_sorted_by(|one, other| one < other), "{seen:x?}");
}

async fn stat<D: BlockDevice>(mounted: &Filesystem<D>, file: InodeNumber) -> filesystem::layout::inode::Inode {
    mounted.run(|handle| handle.stat(file)).await.expect("in use").value
}

#[test]
fn a_file_that_a_record_says_is_open_outlives_its_last_name_and_a_crash() {
    let image = Image::new(4096, 256, SHAPES[0].1);
    let volume = Rc::new(RamDevice::from_image(&image.bytes()));
    let file = wait(async {
        let (mounted, _) = open(Rc::clone(&volume), 100 << 10).await;
        let made =
            |name: &'static [u8]| mounted.run(move |handle| handle.create(in_root(name), &new(FileKind::Regular), NOW));
        let file = made(b"open").await.expect("there is room").value.inode;
        made(b"not open").await.expect("there is room");
        mounted.hold(file);
        let unlink = |handle: &mut Handle<'_>| {
            handle.append_record(id(u128::from(file.0)), b"open")?;
            handle.remove(in_root(b"open"), false, NOW)?;
            handle.remove(in_root(b"not open"), false, NOW)
        };
        let done = mounted.run(unlink).await.expect("they are there");
        mounted.durable(done.transaction.expect("it changed something")).await.expect("sound");
        file
    });
    let volume = Rc::new((*volume).clone());
    wait(async {
        let (mounted, records) = open(Rc::clone(&volume), 100 << 10).await;
        let keep = records.iter().map(|record| InodeNumber(record.id.key as u32)).collect();
        mounted.reclaim_orphans(&keep).await.expect("sound");
        mounted.hold(file);
        assert_eq!(stat(&mounted, file).await.links, 0);
        let orphans = mounted.run(|handle| handle.orphans()).await.expect("readable").value;
        assert_eq!(orphans, [file], "the other is gone");
        mounted.run(|handle| handle.delete_record(id(u128::from(file.0)))).await.expect("it is there");
        mounted.let_go(file);
        mounted.stop();
        mounted.drive().await;
        mounted.close().await.expect("sound");
        let gone = mounted.run(|handle| handle.stat(file)).await.map(|done| done.value);
        assert_eq!(gone, Err(Failure::Refused(Refusal::Stale)));
    });
    image.write(&volume.to_vec());
    image.assert_clean();
}

/// Starts once on a volume and closes it. Gives the volume, and what the ring tells of others.
fn start(volume: &[u8]) -> (Vec<u8>, u64) {
    let device = Rc::new(RamDevice::from_image(volume));
    let disturbed = wait(async {
        let (mounted, _) = Filesystem::open(Rc::clone(&device), &options()).await.expect("it opens");
        let mounted = Rc::new(mounted);
        let driver = Rc::clone(&mounted);
        let driving = tokio::task::spawn_local(async move { driver.drive().await });
        let ring = mounted.open_state_ring(100 << 10).await.expect("a ring");
        mounted.stop();
        driving.await.expect("it ends");
        mounted.close().await.expect("sound");
        ring.disturbed
    });
    (device.to_vec(), disturbed)
}

#[test]
fn the_ring_knows_who_else_had_the_filesystem_in_between() {
    let image = Image::new(4096, 256, SHAPES[0].1);
    let (mut volume, mut disturbed) = start(&image.bytes());
    assert_eq!(disturbed, 0, "it is new");
    (volume, disturbed) = start(&volume);
    assert_eq!(disturbed, 0, "nobody but us");
    let by_others = [("e2fsck", vec!["-f", "-y"], 3), ("tune2fs", vec!["-C", "7"], 5)];
    for (tool, arguments, start_after) in by_others {
        image.write(&volume);
        let path = image.path_text();
        image::run(tool, &[&arguments[..], &[&path]].concat());
        (volume, disturbed) = start(&image.bytes());
        assert_eq!(disturbed, start_after, "{tool}");
        (volume, disturbed) = start(&volume);
        assert_eq!(disturbed, start_after, "after {tool}: it is told at each start, and only once counted");
    }
    // Looking at it changes nothing.
    image.write(&volume);
    image::run("e2fsck", &["-f", "-n", &image.path_text()]);
    assert_eq!(start(&image.bytes()).1, 5);
}
