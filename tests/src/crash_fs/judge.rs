//! What a loss of power left is judged: by our recovery and the model, by e2fsck, and by the kernel.

use std::any::Any;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use block_device::{RamDevice, RecordingDevice};
use filesystem::engine::Filesystem;

use super::contents::Illegal;
use super::images::Image;
use super::model::{Standing, Tree};
use super::schedule::run_alone;
use super::tools::{Bench, ImageFile, Mount, Mounting, repaired, unclean};
use super::work::{Run, options};

/// What is wrong with an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// e2fsck has something to say.
    Unclean(String),
    /// Something that was acknowledged is missing.
    Lost(String),
    /// The tree is none that may be there; or something cannot be recovered or read.
    Wrong(String),
}

impl Fault {
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Unclean(why) => format!("unclean: {why}"),
            Self::Lost(why) => format!("lost: {why}"),
            Self::Wrong(why) => format!("wrong: {why}"),
        }
    }
}

/// What a judge came to: a fault of the image, or that it could not judge at all.
type Judgement = Result<Result<(), Fault>>;

/// Has all judges look at an image.
pub(super) struct Judge<'a> {
    pub(super) run: &'a Run,
    pub(super) image: Image,
    pub(super) bench: &'a Bench,
    /// The kernel can mount here.
    pub(super) kernel: bool,
}

/// What a recovery of ours came to.
struct Recovered {
    tree: Tree,
    /// Its writes, from the crash image to the closed filesystem.
    recording: Rc<RecordingDevice>,
}

impl Judge<'_> {
    /// The first fault that is found in what a loss of power left.
    pub(super) fn judge(&self, crashed: &RamDevice) -> Judgement {
        let ours = match self.recovered(crashed, "our recovery") {
            Ok(recovered) => recovered,
            Err(fault) => return Ok(Err(fault)),
        };
        let end = ours.recording.position();
        if let Err(fault) = self.is_clean(&ours.recording.crash_image(end, |_, _| true), "after our recovery")? {
            return Ok(Err(fault));
        }
        if self.image.recovery_is_cut
            && let Err(fault) = self.cut_recovery(&ours)?
        {
            return Ok(Err(fault));
        }
        if let Err(fault) = self.by_e2fsck(crashed)? {
            return Ok(Err(fault));
        }
        if self.image.kernel && self.kernel {
            return self.by_the_kernel(crashed, &ours.tree);
        }
        Ok(Ok(()))
    }

    /// Our recovery brings back a state that may be there.
    fn recovered(&self, image: &RamDevice, what: &str) -> Result<Recovered, Fault> {
        let recording = Rc::new(RecordingDevice::over(image.clone()));
        let attempt = || run_alone(recover(Rc::clone(&recording)));
        let wrong = |why: String| Fault::Wrong(format!("{what}: {why}"));
        let tree = match catch_unwind(AssertUnwindSafe(attempt)) {
            Ok(Ok(Ok(tree))) => tree,
            Ok(Ok(Err(error)) | Err(error)) => return Err(wrong(format!("{error:#}"))),
            Err(panic) => return Err(wrong(format!("panic: {}", panic_text(&*panic)))),
        };
        self.compare(&tree, None, what)?;
        Ok(Recovered { tree, recording })
    }

    /// A tree is a state that may be there, and so is what is in its files. `generations` is a tree that knows those if this one
    /// does not.
    fn compare(&self, tree: &Tree, generations: Option<&Tree>, what: &str) -> Result<(), Fault> {
        let (model, position, known) = (&self.run.model, self.image.position, generations.is_none());
        let differences = || model.differences(tree, position, known);
        match model.standing(tree, position, known) {
            Standing::Legal => {}
            Standing::Old { state, least } => {
                let states = model.states();
                let what = format!("{what}: it is state {state} of {states}, and {least} had been acknowledged");
                return Err(Fault::Lost(format!("{what}: {}", differences())));
            }
            Standing::Foreign => return Err(Fault::Wrong(format!("{what}: {}", differences()))),
        }
        model.judge_contents(tree, generations.unwrap_or(tree), position).map_err(|illegal| match illegal {
            Illegal::Old(why) => Fault::Lost(format!("{what}: {why}")),
            Illegal::Foreign(why) => Fault::Wrong(format!("{what}: {why}")),
        })
    }

    /// The power is lost again during the recovery, or while it is closed; the next one comes to the same.
    fn cut_recovery(&self, first: &Recovered) -> Judgement {
        let cut = self.image.cut(first.recording.position());
        let what = format!("recovery after one that was cut after event {}", cut.position);
        let image = first.recording.crash_image(cut.position, cut.keep());
        let second = match self.recovered(&image, &what) {
            Ok(recovered) => recovered,
            Err(fault) => return Ok(Err(fault)),
        };
        if second.tree != first.tree {
            return Ok(Err(Fault::Wrong(format!("{what}: the tree is another than after the first"))));
        }
        let end = second.recording.position();
        self.is_clean(&second.recording.crash_image(end, |_, _| true), &what)
    }

    fn is_clean(&self, image: &RamDevice, what: &str) -> Judgement {
        let path = self.bench.put(image)?;
        Ok(match unclean(&path)? {
            Some(why) => Err(Fault::Unclean(format!("{what}: {why}"))),
            None => Ok(()),
        })
    }

    /// e2fsck's own recovery comes to a state that may be there, and leaves nothing to mend.
    fn by_e2fsck(&self, image: &RamDevice) -> Judgement {
        let path = self.bench.put(image)?;
        if let Some(why) = repaired(&path)?.or(unclean(&path)?) {
            return Ok(Err(Fault::Unclean(format!("by e2fsck alone: {why}"))));
        }
        let what = "after e2fsck's recovery";
        let attempt = || run_alone(read_only(&path));
        Ok(match catch_unwind(AssertUnwindSafe(attempt)) {
            Ok(Ok(Ok(tree))) => self.compare(&tree, None, what),
            Ok(Ok(Err(error)) | Err(error)) => Err(Fault::Wrong(format!("{what}: {error:#}"))),
            Err(panic) => Err(Fault::Wrong(format!("{what}: panic: {}", panic_text(&*panic)))),
        })
    }

    /// So does the kernel's.
    fn by_the_kernel(&self, image: &RamDevice, ours: &Tree) -> Judgement {
        let path = self.bench.put(image)?;
        let mount = match Mount::attempt(self.bench, &path)? {
            Mounting::Mounted(mount) => mount,
            Mounting::Refused(why) => return Ok(Err(Fault::Wrong(format!("the kernel does not mount it: {why}")))),
            Mounting::NoDevice(why) => bail!("no loop device: {why}"),
        };
        let tree = mount.tree();
        mount.end()?;
        let what = "after the kernel's recovery";
        let compared = match tree {
            Ok(tree) => self.compare(&tree, Some(ours), what),
            Err(error) => Err(Fault::Wrong(format!("{what}: {error:#}"))),
        };
        if compared.is_err() {
            return Ok(compared);
        }
        Ok(match unclean(&path)? {
            Some(why) => Err(Fault::Unclean(format!("{what}: {why}"))),
            None => Ok(()),
        })
    }
}

async fn recover(device: Rc<RecordingDevice>) -> Result<Tree> {
    let (mounted, _) = Filesystem::open(device, &options(false)).await.context("opening it")?;
    mounted.reclaim_orphans(&BTreeSet::new()).await.context("reclaiming orphans")?;
    let tree = Tree::read(&mounted).await?;
    mounted.stop();
    mounted.drive().await;
    mounted.close().await.context("closing it")?;
    Ok(tree)
}

async fn read_only(path: &Path) -> Result<Tree> {
    let (mounted, _) = Filesystem::open(ImageFile::open(path)?, &options(true)).await.context("opening it")?;
    Tree::read(&mounted).await
}

/// What a panic said.
pub(super) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}
