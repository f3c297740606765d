//! Logs that one side leaves and another replays.
//!
//! The kernel's come from copies of an image under a mount: with `commit=600`, and younger than the half minute after
//! which the kernel writes old pages, a mount writes only when it is called, so that two equal copies are what a power loss
//! would leave. Ours come from a recording device. Whoever replays, e2fsck has to find nothing afterwards, the kernel,
//! our engine and e2fsck have to come to the same tree, and what was synced before has to be in it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use block_device::{RamDevice, RecordingDevice};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::engine::{Engine, block_on, with_engine};
use super::image::{self, Shape};
use super::kernel::Mount;
use super::mix::Mix;
use super::model::Model;
use super::operation::{New, Operation};
use super::tree::{self, Tree};
use super::turns::{IMAGE_BYTES, Plan, both_read, settle};
use super::{Finding, Tally};

/// Copies are compared with the image this often before a round gives up on one.
const COPIES_MAX: usize = 20;
/// Bytes that are written or left out together in a copy.
const PIECE_BYTES: usize = 4096;

/// What has to be found after a replay.
#[derive(Clone)]
enum Promise {
    /// All that was done: it was synced.
    Everything,
    /// All names, and all of this file.
    File(Vec<u8>),
    /// Nothing in particular.
    Sound,
}

impl std::fmt::Display for Promise {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Everything => f.write_str("all of it synced"),
            Self::File(path) => write!(f, "after fsync of {}", path.escape_ascii()),
            Self::Sound => f.write_str("nothing synced"),
        }
    }
}

/// What a power loss would have left of the kernel's work.
struct Copy {
    bytes: Vec<u8>,
    model: Model,
    promise: Promise,
}

fn failed(what: &str) -> impl Fn(std::io::Error) -> Finding {
    let what = what.to_owned();
    move |error| Finding::Unclean(format!("{what}: {error}"))
}

fn write_sparse(path: &Path, bytes: &[u8]) -> Result<(), Finding> {
    let write = || {
        let file = File::create(path)?;
        file.set_len(bytes.len() as u64)?;
        for (number, piece) in bytes.chunks(PIECE_BYTES).enumerate() {
            if piece.iter().any(|byte| *byte != 0) {
                file.write_all_at(piece, (number * PIECE_BYTES) as u64)?;
            }
        }
        Ok(())
    };
    write().map_err(failed("a copy"))
}

/// The image under a mount that does nothing.
fn stable_copy(path: &Path) -> Result<Vec<u8>, Finding> {
    let mut copy = fs::read(path).map_err(failed("the image"))?;
    for _ in 0..COPIES_MAX {
        let again = fs::read(path).map_err(failed("the image"))?;
        if copy == again {
            return Ok(copy);
        }
        copy = again;
    }
    Err(Finding::Unclean("the image never stays as it is".into()))
}

/// The kernel works on a new image and is copied from; all copies are judged. Errors: the first finding.
pub fn kernels(shape: &Shape, plan: Plan, home: &Path) -> Result<Tally, Finding> {
    let path = home.join("image");
    image::make(&path, shape, IMAGE_BYTES)?;
    let mut model = Model::new(shape.extents, shape.wide_inodes);
    let mut rng = ChaCha8Rng::seed_from_u64(plan.seed);
    let mut tally = Tally::default();
    let options = [shape.mount, "commit=600"].into_iter().filter(|option| !option.is_empty()).collect::<Vec<_>>();
    let mount = Mount::new(&path, &options.join(","))?;
    let (mut copies, mut held) = (Vec::new(), Vec::new());
    for _ in 0..plan.turns {
        for _ in 0..plan.draws {
            for operation in (Mix { shape, rng: &mut rng }).draw(&model) {
                if let Operation::Remove { path, directory: false } = &operation
                    && held.len() < 50
                    && model.find(path).is_some_and(|id| model.nodes[&id].new == New::File)
                {
                    // It loses its name while it is open, and is an orphan then.
                    held.push(mount.open(path).map_err(failed("an open file"))?);
                }
                tally.operations += settle(&mut model, &operation, mount.apply(&operation), "the kernel")?;
            }
        }
        let promise = promise(&mount, &mut model, &mut rng)?;
        copies.push(Copy { bytes: stable_copy(&path)?, model: model.clone(), promise });
    }
    drop(held);
    mount.unmount()?;
    image::expect_clean(&path, "after the kernel")?;
    for (number, copy) in copies.iter().enumerate() {
        tally += judge_kernels(copy, &mut rng, home, &format!("copy {number}, {}", copy.promise))?;
    }
    Ok(tally)
}

/// Syncs everything, a file, or nothing. The file is changed first: else it may be durable already, and fsync commits nothing.
fn promise(mount: &Mount, model: &mut Model, rng: &mut ChaCha8Rng) -> Result<Promise, Finding> {
    let files = model.paths().into_iter().filter(|(_, id)| model.nodes[id].new == New::File);
    let files: Vec<_> = files.map(|(path, _)| path).collect();
    match (rng.random_range(0..5), files.choose(rng)) {
        (0, _) => {
            mount.sync().map_err(failed("syncfs"))?;
            Ok(Promise::Everything)
        }
        (1..=3, Some(path)) => {
            let change = Operation::Mode { path: path.clone(), mode: rng.random_range(0..0o1000) };
            settle(model, &change, mount.apply(&change), "the kernel")?;
            mount.open(path).and_then(|file| file.sync_all()).map_err(failed("fsync"))?;
            Ok(Promise::File(path.clone()))
        }
        _ => Ok(Promise::Sound),
    }
}

fn judge_kernels(copy: &Copy, rng: &mut ChaCha8Rng, home: &Path, what: &str) -> Result<Tally, Finding> {
    let tree = replay_by_all(&copy.bytes, home, what)?;
    match &copy.promise {
        Promise::Everything => copy.model.expect(&tree, what)?,
        Promise::File(path) => {
            copy.model.expect_file(path, &tree, what)?;
            let names: Vec<_> = tree.keys().filter(|path| *path != b"lost+found").collect();
            let mut expected = copy.model.paths();
            expected.sort();
            if !expected.iter().map(|(path, _)| path).eq(names) {
                return Err(Finding::Different(format!("{what}: other names than at the fsync")));
            }
        }
        Promise::Sound => {}
    }
    let mut tally = Tally { logs: 1, files: tree.len() as u64, operations: 0 };
    // After a sync, metadata is at home already, and the log cannot be cut.
    if matches!(copy.promise, Promise::File(_)) && rng.random_range(0..2) == 0 {
        let mut cut = copy.bytes.clone();
        if cut_last_commit(&mut cut) {
            let tree = replay_by_all(&cut, home, &format!("{what}, without the last commit block"))?;
            tally += Tally { logs: 1, files: tree.len() as u64, operations: 0 };
        }
    }
    Ok(tally)
}

/// Takes the newest commit block out of the log, as if it had not been written yet (jbd2 on-disk format: magic, kind 2,
/// sequence, big-endian). False when there is none.
fn cut_last_commit(bytes: &mut [u8]) -> bool {
    const COMMIT: [u8; 8] = [0xc0, 0x3b, 0x39, 0x98, 0, 0, 0, 2];
    let sequence = |block: &[u8]| block[8..12].try_into().map_or(0, u32::from_be_bytes);
    // Stale ones in the log are older.
    let commits = (0..bytes.len()).step_by(1024).filter(|at| bytes[*at..].starts_with(&COMMIT));
    let Some(last) = commits.max_by_key(|at| sequence(&bytes[*at..])) else { return false };
    bytes[last..last + 1024].fill(0);
    true
}

/// Replays an image's log three times, by the kernel, by e2fsck and by our engine. Each leaves nothing to mend, and all leave
/// the same. Gives the tree.
fn replay_by_all(bytes: &[u8], home: &Path, what: &str) -> Result<Tree, Finding> {
    let copy = |name: &str| -> Result<PathBuf, Finding> {
        let path = home.join(name);
        write_sparse(&path, bytes)?;
        Ok(path)
    };
    let ours = copy("ours")?;
    with_engine(&ours, false, async |_| Ok(())).map_err(|finding| Finding::Unclean(format!("{what}: {finding}")))?;
    let ours = both_read(&ours, &format!("{what}, replayed by us"))?;
    let kernels = copy("kernel")?;
    Mount::new(&kernels, "")?.unmount()?;
    let kernels = both_read(&kernels, &format!("{what}, replayed by the kernel"))?;
    let e2fsck = copy("e2fsck")?;
    image::recover(&e2fsck)?;
    let e2fsck = both_read(&e2fsck, &format!("{what}, replayed by e2fsck"))?;
    // A file that was being cut gets new times when the kernel completes that.
    let same = |a: &tree::Entry, b: &tree::Entry| {
        let mut b = b.clone();
        if a.mode & 0o170_000 == 0o100_000 {
            (b.modified, b.changed) = (a.modified, a.changed);
        }
        *a == b
    };
    tree::expect(&kernels, &ours, &format!("{what}: the kernel's replay and ours"), same)?;
    tree::expect(&e2fsck, &ours, &format!("{what}: the replay of e2fsck and ours"), same)?;
    Ok(ours)
}

/// Our engine works on an image of the kernel, and power losses leave images that all replay. Errors: the first finding.
pub fn ours(shape: &Shape, plan: Plan, home: &Path) -> Result<Tally, Finding> {
    let path = home.join("image");
    image::make(&path, shape, IMAGE_BYTES)?;
    let mut model = Model::new(shape.extents, shape.wide_inodes);
    let mut rng = ChaCha8Rng::seed_from_u64(plan.seed);
    let mut tally = Tally::default();
    let mount = Mount::new(&path, shape.mount)?;
    for _ in 0..plan.draws {
        for operation in (Mix { shape, rng: &mut rng }).draw(&model) {
            tally.operations += settle(&mut model, &operation, mount.apply(&operation), "the kernel")?;
        }
    }
    mount.unmount()?;
    let first = RamDevice::from_image(&fs::read(&path).map_err(failed("the image"))?);
    let recording = Rc::new(RecordingDevice::over(first));
    let begin = block_on(async {
        let (mut engine, _) = Engine::open(Rc::clone(&recording), false).await?;
        let begin = recording.position();
        for _ in 0..plan.draws {
            for operation in (Mix { shape, rng: &mut rng }).draw(&model) {
                let outcome = engine.apply(&operation).await?;
                tally.operations += settle(&mut model, &operation, outcome, "our engine")?;
            }
        }
        engine.sync().await?;
        let end = recording.position();
        engine.abandon().await;
        Ok::<_, Finding>(begin..=end)
    })??;
    let end = *begin.end();
    for number in 0..plan.turns {
        let position = if number == 0 { end } else { rng.random_range(begin.clone()) };
        let part = if number == 0 { 0 } else { rng.random_range(0..=4_u32) };
        let image = recording.crash_image(position, |_, _| rng.random_range(0..4) < part);
        let what = format!("our log after event {position} of {end}, with {part}/4 of what may be lost");
        let tree = replay_by_all(&image.to_vec(), home, &what)?;
        if number == 0 {
            model.expect(&tree, &what)?;
        }
        tally += Tally { logs: 1, files: tree.len() as u64, operations: 0 };
    }
    Ok(tally)
}
