//! Runs: random operations on a filesystem whose device records what it is told, beside the model of what they did.
//!
//! A run is a function of its seed: shape, length, operations, and what happens while something else is under way.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use block_device::recording::{Effect, Event};
use block_device::{BlockDevice, RamDevice, RecordingDevice};
use filesystem::engine::{Filesystem, Options};
use filesystem::journal::{CommitBlock, CommitTime};
use filesystem::{InodeNumber, TransactionId};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::data::{self, FileId};
use super::model::{Model, Standing, Tree};
use super::names::{self, Outcome};
use super::schedule::{LateDevice, Task, pass, run_alone, run_together};
use super::shapes::SHAPES;

/// Bytes of cache: few, so that blocks are fetched anew while operations are in flight.
const CACHE_BYTES: usize = 256 << 10;
/// Bytes of data that may wait: few, so that writes have to wait for others.
const DATA_BYTES: usize = 512 << 10;
/// A long run ends when the log has gone round so often.
const WRAPS_MIN: u32 = 3;
/// And is given up after so many operations.
const LONG_OPERATIONS_MAX: usize = 20_000;
/// Operations between two looks at whether the log has gone round often enough.
const LOOK_EVERY: usize = 250;
/// Names past which as many are removed as made.
const NAMES_FULL: usize = 350;

thread_local! {
    /// The clock of the run under way, in seconds since it began.
    static CLOCK: Cell<u64> = const { Cell::new(0) };
}

/// Real time as a box has it: it goes on, and sometimes back.
fn clock() -> CommitTime {
    let now = CLOCK.with(|clock| {
        let now = clock.get();
        clock.set(if now % 7 == 6 { now - 3 } else { now + 2 });
        now
    });
    CommitTime { seconds: 1_700_000_000 + now, nanoseconds: 0 }
}

pub(super) fn options(read_only: bool) -> Options {
    Options { cache_bytes_max: CACHE_BYTES, data_bytes_max: DATA_BYTES, read_only, clock }
}

/// What kind of run a seed stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Few operations; every moment of it is judged.
    Short,
    /// Some hundred operations.
    Usual,
    /// So many that the log goes round several times.
    Long,
    /// Some hundred operations on what a loss of power left of other ones.
    Again,
}

/// What a seed stands for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) shape: usize,
    pub(super) kind: Kind,
}

impl Plan {
    /// All shapes come with all kinds in 40 seeds that follow one another.
    pub(super) fn of(seed: u64) -> Self {
        let shapes = SHAPES.len() as u64;
        let kind = match seed / shapes % 8 {
            0 | 4 => Kind::Short,
            1 => Kind::Long,
            2 | 5 | 7 => Kind::Again,
            _ => Kind::Usual,
        };
        Self { seed, shape: (seed % shapes) as usize, kind }
    }
}

/// Operations, recorded.
pub(super) struct Run {
    pub(super) recording: Rc<RecordingDevice>,
    pub(super) model: Model,
    /// How often the log went round its end.
    pub(super) wraps: u32,
}

/// What operations work on.
pub(super) struct Work<'a, D> {
    pub(super) mounted: &'a Filesystem<D>,
    pub(super) model: &'a RefCell<Model>,
    pub(super) recording: &'a RecordingDevice,
    /// Most names lie in one directory.
    pub(super) is_crowded: bool,
    /// Many small holes are punched.
    pub(super) is_perforated: bool,
    /// Files of which most operations on data are.
    files: usize,
    /// Files with an operation on their data under way.
    pub(super) busy: RefCell<BTreeSet<FileId>>,
    /// Files that are open, with a name or without.
    pub(super) held: RefCell<Vec<FileId>>,
}

impl<D: BlockDevice> Work<'_, D> {
    /// The operation has changed something, which the model knows by now.
    pub(super) fn end_of_operation(&self, transaction: Option<TransactionId>) -> Outcome {
        if let Some(transaction) = transaction {
            self.model.borrow_mut().end_of_operation(transaction);
        }
        Ok(transaction)
    }

    /// The moment of the record.
    pub(super) fn position(&self) -> usize {
        self.recording.position()
    }

    /// A file that nobody changes, for its data to be changed, until [`Self::give_file`].
    pub(super) fn take_file(&self, rng: &mut ChaCha8Rng) -> Option<FileId> {
        let model = self.model.borrow();
        let mut busy = self.busy.borrow_mut();
        let named = model.tree().nodes.iter().filter(|(_, node)| node.is_regular());
        let named = named.map(|(inode, node)| (*inode, node.generation)).take(self.files);
        let all: Vec<_> = named.chain(self.held.borrow().iter().copied()).filter(|file| !busy.contains(file)).collect();
        let file = all.choose(rng).copied()?;
        busy.insert(file);
        Some(file)
    }

    /// The end of a [`Self::take_file`].
    pub(super) fn give_file(&self, file: FileId) {
        self.busy.borrow_mut().remove(&file);
    }

    /// There are so many names that they are to become fewer.
    pub(super) fn is_full(&self) -> bool {
        self.model.borrow().tree().names.len() > NAMES_FULL
    }
}

impl Run {
    /// Does what a seed stands for, on a fresh filesystem. Errors: the engine refused what it must do, or did what cannot be.
    pub(super) fn of(plan: Plan, fresh: &RamDevice) -> Result<Self> {
        CLOCK.set(0);
        let mut rng = ChaCha8Rng::seed_from_u64(plan.seed);
        match plan.kind {
            Kind::Short => record(fresh.clone(), &mut rng, plan.kind, 60),
            Kind::Usual => record(fresh.clone(), &mut rng, plan.kind, 300),
            Kind::Long => {
                let run = record(fresh.clone(), &mut rng, plan.kind, LONG_OPERATIONS_MAX)?;
                ensure!(run.wraps >= WRAPS_MIN, "the log went round {} times only", run.wraps);
                Ok(run)
            }
            Kind::Again => {
                let before = record(fresh.clone(), &mut rng, plan.kind, 200)?;
                let position = rng.random_range(0..=before.recording.position());
                let image = before.recording.crash_image(position, |_, _| rng.random());
                let run = record(image, &mut rng, plan.kind, 200)?;
                let first = run.model.first();
                let standing = before.model.standing(first, position, true);
                let differences = || before.model.differences(first, position, true);
                ensure!(standing == Standing::Legal, "what it began with is {standing:?}: {}", differences());
                let contents = before.model.judge_contents(first, first, position);
                ensure!(contents.is_ok(), "what it began with: {contents:?}");
                Ok(run)
            }
        }
    }
}

/// Does operations on a filesystem, and closes it or leaves it as it is.
fn record(image: RamDevice, rng: &mut ChaCha8Rng, kind: Kind, operations: usize) -> Result<Run> {
    let recording = Rc::new(RecordingDevice::over(image));
    let late = ChaCha8Rng::seed_from_u64(rng.random());
    let device = LateDevice::new(Rc::clone(&recording), late, *[0, 2, 8].get(rng.random_range(0..3)).unwrap_or(&0));
    let (mounted, _) = run_alone(Filesystem::open(device, &options(false)))?.context("opening it")?;
    run_alone(mounted.reclaim_orphans(&BTreeSet::new()))?.context("reclaiming orphans")?;
    let model = RefCell::new(Model::new(run_alone(Tree::read(&mounted))??));
    let workers = rng.random_range(1..=4);
    let crew = Crew {
        work: Work {
            mounted: &mounted,
            model: &model,
            recording: &recording,
            is_crowded: rng.random_range(0..3) == 0,
            is_perforated: rng.random_range(0..4) == 0,
            // Few are changed often; many fill the volume.
            files: if rng.random_range(0..4) == 0 { 80 } else { 10 },
            busy: RefCell::default(),
            held: RefCell::default(),
        },
        data: rng.random_range(0..=3),
        next: Cell::new(0),
        operations: Cell::new(operations),
        until_wrapped: kind == Kind::Long,
        working: Cell::new(workers),
        failed: RefCell::new(None),
        // Who waits often makes small transactions.
        waits: match kind {
            Kind::Short => rng.random_range(1..=2),
            Kind::Long => 2,
            Kind::Usual | Kind::Again => [2, 6, 20][rng.random_range(0..3)],
        },
    };
    let mut tasks: Vec<Task<'_>> = vec![Box::pin(mounted.drive())];
    for _ in 0..workers {
        let rng = ChaCha8Rng::seed_from_u64(rng.random());
        tasks.push(Box::pin(crew.worker(rng)));
    }
    run_together(tasks, rng)?;
    if let Some(error) = crew.failed.take() {
        return Err(error);
    }
    if rng.random() {
        run_alone(mounted.close())?.context("closing it")?;
        model.borrow_mut().all_is_durable(recording.position());
    }
    drop(crew);
    drop(mounted);
    let wraps = wraps(&recording);
    Ok(Run { recording, model: model.into_inner(), wraps })
}

/// Those who do a run's operations.
struct Crew<'a, D> {
    work: Work<'a, D>,
    /// Of four operations so many are on data.
    data: u32,
    /// The number of the next operation.
    next: Cell<usize>,
    /// How many there are to be.
    operations: Cell<usize>,
    /// Fewer, if the log has gone round often enough.
    until_wrapped: bool,
    /// Workers that have not ended.
    working: Cell<usize>,
    /// What cannot be, if it was seen.
    failed: RefCell<Option<anyhow::Error>>,
    /// After one operation of so many its worker waits until it is durable.
    waits: u32,
}

impl<D: BlockDevice> Crew<'_, D> {
    async fn worker(&self, mut rng: ChaCha8Rng) {
        while self.failed.borrow().is_none() && self.next.get() < self.operations.get() {
            let number = self.next.replace(self.next.get() + 1);
            if let Err(error) = self.step(&mut rng, number).await {
                self.failed.borrow_mut().get_or_insert(error.context(format!("operation {number}")));
            }
            if self.until_wrapped && number.is_multiple_of(LOOK_EVERY) && wraps(self.work.recording) >= WRAPS_MIN {
                self.operations.set(0);
            }
        }
        self.working.set(self.working.get() - 1);
        if self.working.get() == 0 {
            let held = self.work.held.take();
            held.into_iter().for_each(|(inode, _)| self.work.mounted.let_go(InodeNumber(inode)));
            self.work.mounted.stop();
        }
    }

    async fn step(&self, rng: &mut ChaCha8Rng, number: usize) -> Result<()> {
        if rng.random_range(0..3) == 0 {
            pass(rng.random_range(0..12)).await;
        }
        let outcome = match rng.random_range(0..4) < self.data {
            true => data::operate(&self.work, rng, number).await?,
            false => names::operate(&self.work, rng, number).await?,
        };
        let Some(transaction) = outcome else { return Ok(()) };
        if rng.random_range(0..self.waits) == 0 {
            self.work.mounted.durable(transaction).await.context("waiting for it")?;
            self.work.model.borrow_mut().acknowledge(self.work.position(), transaction);
        }
        Ok(())
    }
}

/// How often the log went round its end: a commit block that lies before the one before it.
fn wraps(recording: &RecordingDevice) -> u32 {
    let mut last = 0;
    let mut wraps = 0;
    for event in recording.events() {
        let Event::Write(write) = event else { continue };
        let Effect::Data(data) = &write.effect else { continue };
        if CommitBlock::decode(data).is_some() {
            wraps += u32::from(write.offset < last);
            last = write.offset;
        }
    }
    wraps
}
