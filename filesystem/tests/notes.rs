//! Notes through the engine: what was answered when a note was on the device is there after a crash of the process at any
//! moment; after a power loss it is there, or the records are those of a moment before, no older than what is durable.

mod image;

use std::collections::BTreeMap;
use std::rc::Rc;

use block_device::{BlockDevice, RamDevice, RecordingDevice};
use filesystem::Stop;
use filesystem::directory::Cookie;
use filesystem::engine::{Filesystem, Handle, NewFile, OpenedRing, Options, Place, is_hidden_name};
use filesystem::journal::CommitTime;
use filesystem::layout::file_kind::{FileKind, Mode};
use filesystem::layout::timestamp::Timestamp;
use filesystem::state_ring::RecordId;
use filesystem::units::ROOT_INODE;
use image::Image;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::runtime::Builder;
use tokio::task::LocalSet;

/// Names of files, and records: what a moment is known by.
type Moment = (Vec<Vec<u8>>, BTreeMap<u128, Vec<u8>>);

const NOW: Timestamp = Timestamp { seconds: 1_700_000_000, nanoseconds: 0 };
const SHAPE: (usize, usize, &str) = (4096, 256, "metadata_csum,metadata_csum_seed");
const RING_BYTES: u64 = 1 << 20;

fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = Builder::new_current_thread().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, future)
}

async fn open<D: BlockDevice + 'static>(device: D) -> (Rc<Filesystem<D>>, OpenedRing) {
    let clock = || CommitTime { seconds: 1_700_000_000, nanoseconds: 0 };
    let options = Options { cache_bytes_max: 4 << 20, data_bytes_max: 1 << 20, read_only: false, clock };
    let (mounted, _) = Filesystem::open(device, &options).await.expect("it opens");
    let mounted = Rc::new(mounted);
    let driver = Rc::clone(&mounted);
    tokio::task::spawn_local(async move { driver.drive().await });
    let ring = mounted.open_state_ring(RING_BYTES).await.expect("a ring");
    (mounted, ring)
}

async fn close<D: BlockDevice>(mounted: &Filesystem<D>) {
    mounted.stop();
    mounted.drive().await;
    mounted.close().await.expect("sound");
}

fn id(key: u128) -> RecordId {
    RecordId { kind: 9, key }
}

fn make(handle: &mut Handle<'_>, name: &[u8]) -> Result<(), Stop> {
    let mode = Mode::new(FileKind::Fifo, 0o644);
    let new = NewFile { mode, user: 0, group: 0, device: None, target: &[] };
    handle.create(Place { directory: ROOT_INODE, name }, &new, NOW).map(drop)
}

async fn names<D: BlockDevice>(mounted: &Filesystem<D>) -> Vec<Vec<u8>> {
    let (mut names, mut after) = (Vec::new(), Cookie::START);
    loop {
        let batch = mounted.run(|handle| handle.read_directory(ROOT_INODE, after, 100)).await.expect("readable").value;
        after = batch.entries.last().map_or(after, |entry| entry.cookie);
        let ours = |name: &Vec<u8>| name != b"lost+found" && !name.starts_with(b".");
        names.extend(batch.entries.into_iter().map(|entry| entry.name).filter(ours));
        if batch.at_end {
            names.sort();
            return names;
        }
    }
}

fn records(ring: &OpenedRing) -> BTreeMap<u128, Vec<u8>> {
    ring.records.iter().map(|record| (record.id.key, record.payload.clone())).collect()
}

/// What was done, and what was known to be kept when.
struct Run {
    recording: Rc<RecordingDevice>,
    begin: usize,
    moments: Vec<Moment>,
    /// At this position of the recording so many moments were kept, and so many durable.
    kept: Vec<(usize, usize)>,
    durable: Vec<(usize, usize)>,
    /// Answers that waited for a note only.
    noted: usize,
}

/// Changes some records, and perhaps the tree.
fn change(handle: &mut Handle<'_>, moment: &mut Moment, step: u64, random: &mut ChaCha8Rng) -> Result<(), Stop> {
    if random.random_range(0..12) == 0 {
        let name = format!("file{step:06}").into_bytes();
        make(handle, &name)?;
        moment.0.push(name);
    }
    for _ in 0..random.random_range(1..4) {
        let key = random.random_range(0..40_u128);
        if random.random_range(0..4) == 0 {
            assert_eq!(handle.delete_record(id(key))?, moment.1.remove(&key).is_some());
        } else {
            let payload = vec![step as u8; random.random_range(0..500)];
            handle.append_record(id(key), &payload)?;
            moment.1.insert(key, payload);
        }
    }
    Ok(())
}

async fn record(image: &Image, seed: u64) -> Run {
    let recording = Rc::new(RecordingDevice::over(RamDevice::from_image(&image.bytes())));
    let (mounted, ring) = open(Rc::clone(&recording)).await;
    assert_eq!(ring, OpenedRing::default());
    let begin = recording.position();
    let (kept, durable) = (vec![(begin, 1)], vec![(begin, 1)]);
    let mut run = Run { recording, begin, moments: vec![Moment::default()], kept, durable, noted: 0 };
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    for step in 0..600 {
        let (before, choices) = (run.moments.last().expect("there is one").clone(), random.clone());
        let mut moment = before.clone();
        let done = mounted.run(|handle| {
            (moment, random) = (before.clone(), choices.clone());
            change(handle, &mut moment, step, &mut random)
        });
        let done = done.await.expect("there is room");
        let is_new = moment != run.moments[run.moments.len() - 1];
        run.moments.push(moment);
        match random.random_range(0..8) {
            0..=4 => {
                run.noted += usize::from(is_new && done.pending.is_note());
                mounted.kept(done.pending).await.expect("sound");
                run.kept.push((run.recording.position(), run.moments.len()));
            }
            5 if done.transaction.is_some() => {
                mounted.durable(done.transaction.expect("it is")).await.expect("sound");
                run.durable.push((run.recording.position(), run.moments.len()));
            }
            _ => {}
        }
    }
    run
}

fn least(of: &[(usize, usize)], position: usize) -> usize {
    of.iter().rev().find(|(moment, _)| *moment <= position).map_or(1, |(_, moments)| *moments)
}

/// Opens what is left; gives the device after that, the moment, and whether the records are in doubt.
fn reopened(crashed: &RamDevice) -> (Rc<RamDevice>, Moment, u64) {
    let device = Rc::new(crashed.clone());
    let (moment, disturbed) = wait(async {
        let (mounted, ring) = open(Rc::clone(&device)).await;
        let moment = (names(&mounted).await, records(&ring));
        for (key, payload) in &moment.1 {
            let read = mounted.run(|handle| handle.record(id(*key))).await.expect("readable").value;
            assert_eq!(read.as_ref(), Some(payload), "record {key}");
        }
        (moment, ring.disturbed)
    });
    (device, moment, disturbed)
}

#[test]
fn what_waited_for_a_note_only_outlives_a_crash_at_any_moment() {
    for seed in 0..4 {
        let image = Image::of_size(24, 512, SHAPE);
        let run = wait(record(&image, seed));
        assert!(run.noted > 100, "seed {seed}: only {} notes", run.noted);
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        for number in 0..40 {
            let position = random.random_range(run.begin..=run.recording.position());
            let crashed = run.recording.crash_image(position, |_, _| true);
            let what = format!("seed {seed}, image {number}, after event {position}");
            let (device, moment, disturbed) = reopened(&crashed);
            let kept = least(&run.kept, position).max(least(&run.durable, position));
            assert!(run.moments[kept - 1..].contains(&moment), "{what}: no moment from {kept} on");
            assert_eq!(disturbed, 0, "{what}");
            // And once more, though the first start may have come no further than its header.
            let (device, again, disturbed) = reopened(&device);
            assert_eq!((again, disturbed), (moment, 0), "{what}, again");
            wait(async { close(&open(Rc::clone(&device)).await.0).await });
            image.write(&device.to_vec());
            image.assert_clean();
        }
    }
}

#[test]
fn a_power_loss_takes_notes_only_and_leaves_a_moment_that_was() {
    let mut doubtful = 0;
    for seed in 10..14 {
        let image = Image::of_size(24, 512, SHAPE);
        let run = wait(record(&image, seed));
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        for number in 0..40 {
            let position = random.random_range(run.begin..=run.recording.position());
            let part = random.random_range(0..=4_u32);
            let crashed = run.recording.crash_image(position, |_, _| random.random_range(0..4) < part);
            let what = format!("seed {seed}, image {number}, after event {position}");
            let (_, moment, disturbed) = reopened(&crashed);
            let durable = least(&run.durable, position);
            assert!(run.moments[durable - 1..].contains(&moment), "{what}: no moment from {durable} on");
            doubtful += usize::from(disturbed > 0);
        }
    }
    assert!(doubtful > 0, "that notes are missing before others was never noticed");
}

#[test]
fn who_changed_records_only_waits_for_no_flush_and_nobody_passes_what_is_not_kept() {
    let image = Image::of_size(24, 512, SHAPE);
    wait(async {
        let recording = Rc::new(RecordingDevice::over(RamDevice::from_image(&image.bytes())));
        let (mounted, _) = open(Rc::clone(&recording)).await;
        let put = |key| mounted.run(move |handle| handle.append_record(id(key), b"said"));
        let first = put(1).await.expect("there is room");
        assert!(first.pending.is_note());
        mounted.kept(first.pending).await.expect("sound");
        // It is in the running transaction only, which nobody has asked for.
        let transaction = first.transaction.expect("it changed something");
        assert_eq!(put(2).await.expect("there is room").transaction, Some(transaction));
        // What changes the tree takes all of it along.
        let mixed = mounted.run(|handle| {
            make(handle, b"mixed")?;
            handle.append_record(id(3), b"and more")
        });
        let mixed = mixed.await.expect("there is room");
        assert!(!mixed.pending.is_note() && mixed.transaction == Some(transaction));
        // And what follows it waits for it, as long as it is not durable.
        assert!(!put(4).await.expect("there is room").pending.is_note());
        mounted.kept(mixed.pending).await.expect("sound");
        assert!(put(5).await.expect("there is room").pending.is_note());
        // Who has seen what is not durable waits for that, too.
        mounted.run(|handle| make(handle, b"seen")).await.expect("there is room");
        let seen = mounted.run(|handle| {
            handle.lookup(ROOT_INODE, b"seen")?;
            handle.append_record(id(6), b"of it")
        });
        assert!(!seen.await.expect("there is room").pending.is_note());
        mounted.sync().await.expect("sound");
        // What is too large for a note has none.
        let large = mounted.run(|handle| (0..8).try_for_each(|key| handle.append_record(id(key), &[7; 3000])));
        let large = large.await.expect("there is room").pending;
        assert!(!large.is_note() && !large.is_nothing());
        mounted.kept(large).await.expect("sound");
        // Far more than the notes have room for.
        for key in 0..3000_u128 {
            let done = put(key).await.expect("there is room");
            if key % 7 == 0 {
                mounted.kept(done.pending).await.expect("sound");
            }
        }
        close(&mounted).await;
        let (mounted, ring) = open(recording.crash_image(recording.position(), |_, _| true)).await;
        assert_eq!((ring.records.len(), ring.disturbed), (3000, 0));
        let hidden = |handle: &mut Handle<'_>| {
            let directory = handle.lookup(ROOT_INODE, b".tandem")?;
            let notes = handle.lookup(directory, b"notes")?;
            assert!(handle.is_hidden(notes) && is_hidden_name(ROOT_INODE, b".tandem"));
            Ok(handle.truncate(notes, 0, NOW).is_err())
        };
        assert!(mounted.run(hidden).await.expect("they are there").value, "nobody else changes it");
    });
}

#[test]
fn where_there_is_hardly_room_there_are_no_notes_and_everything_waits_for_the_log() {
    let image = Image::new(4096, 256, SHAPE.2);
    wait(async {
        let (mounted, _) = open(RamDevice::from_image(&image.bytes())).await;
        let done = mounted.run(|handle| handle.append_record(id(1), b"said")).await.expect("there is room");
        assert!(!done.pending.is_note() && !done.pending.is_nothing());
        mounted.kept(done.pending).await.expect("sound");
        let find = |handle: &mut Handle<'_>| {
            let directory = handle.lookup(ROOT_INODE, b".tandem")?;
            handle.lookup(directory, b"notes")
        };
        assert!(mounted.run(find).await.is_err(), "none was made");
    });
}
