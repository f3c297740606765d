//! Power losses under the filesystem engine: random operations on a device that records, every image that a loss may leave,
//! and judges of which most are not ours.
//!
//! Runs are numbered by seeds; workers take one after the other, record it, and have each of its images judged until so many
//! have been as were asked for. What is judged in an image is in `judge`, which images in `images`, what operations there
//! are in `names`, `attributes` and `data`, what may be in files in `contents`.

mod attributes;
mod contents;
mod data;
mod images;
mod judge;
mod model;
mod names;
mod schedule;
mod shapes;
mod tools;
mod work;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, anyhow};
use block_device::RamDevice;

use self::images::{Image, Moments};
use self::judge::{Fault, Judge, panic_text};
use self::shapes::SHAPES;
use self::tools::Bench;
use self::work::{Plan, Run};
use crate::e2e::skip;

/// Images of one run at most, so that there are many runs; a short one may have four times as many.
const IMAGES_OF_RUN_MAX: u64 = 200;
/// And at least.
const IMAGES_OF_RUN_MIN: u64 = 10;
/// Runs that there are to be at least: all shapes with all kinds.
const RUNS_MIN: u64 = 40;
/// Faults after which no more images are judged; of each the image is kept.
const FAULTS_MAX: u64 = 20;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Images to judge.
    pub images: u64,
    /// Seed of the first run.
    pub seed: u64,
    /// Of the first run only this image.
    pub image: Option<usize>,
    /// Workers.
    pub jobs: usize,
    /// Where failing images are kept.
    pub keep: PathBuf,
}

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Images judged.
    pub images: u64,
    /// Those in which e2fsck found something.
    pub unclean: u64,
    /// Those in which something acknowledged was missing.
    pub lost: u64,
    /// Those with a tree that may not be there, or that could not be recovered; and runs that went wrong by themselves.
    pub wrong: u64,
    /// Runs recorded.
    pub runs: u64,
    /// Images that the kernel mounted.
    pub mounted: u64,
    /// Images whose recovery was cut, too.
    pub cut: u64,
    /// Times that a log went round its end.
    pub wraps: u64,
}

impl Totals {
    /// The last line of the command.
    pub fn line(&self) -> String {
        let Self { images, unclean, lost, wrong, .. } = self;
        format!("crash-fs: images={images} unclean={unclean} lost={lost} wrong={wrong}")
    }

    /// Nothing was found.
    pub fn is_fine(&self) -> bool {
        self.faults() == 0
    }

    fn faults(&self) -> u64 {
        self.unclean + self.lost + self.wrong
    }

    fn count(&mut self, fault: &Fault) {
        *match fault {
            Fault::Unclean(_) => &mut self.unclean,
            Fault::Lost(_) => &mut self.lost,
            Fault::Wrong(_) => &mut self.wrong,
        } += 1;
    }
}

/// Judges images; `progress` is told the totals after each run. Errors: a tool is missing, or a file cannot be written.
pub fn run(options: &Options, progress: &(dyn Fn(&Totals) + Sync)) -> Result<Totals> {
    std::fs::create_dir_all(&options.keep).with_context(|| format!("creating {}", options.keep.display()))?;
    let unsupported = tools::mounting_unsupported(&SHAPES[0].make()?);
    if let Some(why) = &unsupported {
        skip::skip("crash-fs, images through the kernel", why);
    }
    let campaign = Campaign {
        options,
        kernel: unsupported.is_none(),
        next_seed: AtomicU64::new(options.seed),
        taken: AtomicU64::new(0),
        totals: Mutex::default(),
        progress,
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..options.jobs.max(1)).map(|_| scope.spawn(|| campaign.worker())).collect();
        let ended = workers.into_iter().map(|worker| {
            worker.join().unwrap_or_else(|panic| Err(anyhow!("a worker panicked: {}", panic_text(&*panic))))
        });
        ended.collect::<Vec<_>>().into_iter().collect::<Result<()>>()
    })?;
    Ok(campaign.totals())
}

struct Campaign<'a> {
    options: &'a Options,
    kernel: bool,
    next_seed: AtomicU64,
    /// Images that somebody judges or has judged.
    taken: AtomicU64,
    totals: Mutex<Totals>,
    progress: &'a (dyn Fn(&Totals) + Sync),
}

impl Campaign<'_> {
    fn worker(&self) -> Result<()> {
        let bench = Bench::new()?;
        let fresh = SHAPES.iter().map(|shape| shape.make()).collect::<Result<Vec<_>>>()?;
        while self.taken.load(Ordering::Relaxed) < self.options.images && self.totals().faults() < FAULTS_MAX {
            let plan = Plan::of(self.next_seed.fetch_add(1, Ordering::Relaxed));
            let recorded = catch_unwind(AssertUnwindSafe(|| Run::of(plan, &fresh[plan.shape])));
            let recorded = recorded.unwrap_or_else(|panic| Err(anyhow!("panic: {}", panic_text(&*panic))));
            match recorded {
                Ok(run) => self.judge_run(plan, &run, &bench)?,
                Err(error) => {
                    self.add(|totals| totals.wrong += 1);
                    println!("wrong: seed {} ({}, {:?}): {error:#}", plan.seed, SHAPES[plan.shape].name, plan.kind);
                    println!("again with: cargo xtask crash-fs --seed {} --images 1 --jobs 1", plan.seed);
                    // So that a run that always fails ends.
                    self.taken.fetch_add(1, Ordering::Relaxed);
                }
            }
            self.add(|totals| totals.runs += 1);
            (self.progress)(&self.totals());
            if self.options.image.is_some() {
                break;
            }
        }
        Ok(())
    }

    fn judge_run(&self, plan: Plan, run: &Run, bench: &Bench) -> Result<()> {
        self.add(|totals| totals.wraps += u64::from(run.wraps));
        let events = run.recording.position();
        let moments = Moments { events, acknowledged: run.model.moments() };
        let max = (self.options.images / RUNS_MIN).clamp(IMAGES_OF_RUN_MIN, IMAGES_OF_RUN_MAX);
        let images = match self.options.image {
            Some(number) => vec![Image::new(plan.seed, plan.kind, &moments, number)],
            None => Image::of_run(plan.seed, plan.kind, &moments, max as usize),
        };
        let mut cursor = run.recording.cursor();
        for image in images {
            let enough = self.totals().faults() >= FAULTS_MAX;
            if enough || self.taken.fetch_add(1, Ordering::Relaxed) >= self.options.images {
                return Ok(());
            }
            cursor.advance_to(image.position);
            let crashed = cursor.crash_image(image.keep());
            let verdict = Judge { run, image, bench, kernel: self.kernel }.judge(&crashed);
            let what = || {
                let (shape, kind) = (SHAPES[plan.shape].name, plan.kind);
                format!("seed {} ({shape}, {kind:?}), {image:?}, of {events} events", plan.seed)
            };
            let verdict = verdict.with_context(what)?;
            self.add(|totals| {
                totals.images += 1;
                totals.cut += u64::from(image.recovery_is_cut);
                totals.mounted += u64::from(image.kernel && self.kernel);
                if let Err(fault) = &verdict {
                    totals.count(fault);
                }
            });
            if let Err(fault) = verdict {
                self.report(&fault, &what(), plan, image, &crashed)?;
            }
        }
        Ok(())
    }

    /// Says what is wrong with an image, keeps it, and says how to judge it again.
    fn report(&self, fault: &Fault, what: &str, plan: Plan, image: Image, crashed: &RamDevice) -> Result<()> {
        println!("{what}: {}", fault.describe());
        let path = self.options.keep.join(format!("seed-{}-image-{}", plan.seed, image.number));
        tools::write_sparse(crashed, &path)?;
        println!("kept: {}", path.display());
        println!("again with: cargo xtask crash-fs --seed {} --image {}", plan.seed, image.number);
        Ok(())
    }

    fn add(&self, change: impl FnOnce(&mut Totals)) {
        change(&mut self.totals.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn totals(&self) -> Totals {
        *self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
