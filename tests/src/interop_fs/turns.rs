//! Kernel and engine change one image in turns; after each turn both read all of it, and e2fsck judges.

use std::path::Path;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::engine::with_engine;
use super::image::{self, Shape};
use super::kernel::Mount;
use super::mix::Mix;
use super::model::Model;
use super::operation::{Operation, Outcome};
use super::tree::{Tree, expect_same};
use super::{Finding, Tally};

/// Bytes of an image.
pub const IMAGE_BYTES: u64 = 64 << 20;

/// What is done in one round.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Decides about all operations.
    pub seed: u64,
    /// Of each side.
    pub turns: usize,
    /// Draws of a turn; each is one operation or several.
    pub draws: usize,
}

/// Lets both sides take turns on a new image. Errors: the first finding.
pub fn round(shape: &Shape, plan: Plan, home: &Path) -> Result<Tally, Finding> {
    let path = home.join("image");
    image::make(&path, shape, IMAGE_BYTES)?;
    let mut model = Model::new(shape.extents, shape.wide_inodes);
    let mut rng = ChaCha8Rng::seed_from_u64(plan.seed);
    let mut tally = Tally::default();
    for turn in 0..plan.turns {
        let what = format!("turn {turn} of the kernel");
        let mount = Mount::new(&path, shape.mount)?;
        for _ in 0..plan.draws {
            for operation in (Mix { shape, rng: &mut rng }).draw(&model) {
                tally.operations += settle(&mut model, &operation, mount.apply(&operation), &what)?;
            }
        }
        mount.unmount()?;
        tally.files += judge(&path, &model, &what)?;

        let what = format!("turn {turn} of our engine");
        let (model, rng) = (&mut model, &mut rng);
        tally.operations += with_engine(&path, false, async |engine| {
            let mut operations = 0;
            for _ in 0..plan.draws {
                for operation in (Mix { shape, rng }).draw(model) {
                    let outcome = engine.apply(&operation).await?;
                    operations += settle(model, &operation, outcome, &what)?;
                }
            }
            Ok(operations)
        })?;
        tally.files += judge(&path, model, &what)?;
    }
    Ok(tally)
}

/// Brings an operation to the model, which has to agree with how it ended. Gives 1 if it was done.
pub fn settle(model: &mut Model, operation: &Operation, outcome: Outcome, what: &str) -> Result<u64, Finding> {
    if outcome == Outcome::NoSpace {
        // A file's attributes have little room; nothing else runs out of it in these images.
        return match operation {
            Operation::SetAttribute { .. } => Ok(0),
            _ => Err(Finding::Different(format!("{what}: no space for {}", short(operation)))),
        };
    }
    let possible = model.apply(operation);
    match (possible, outcome) {
        (true, Outcome::Done) => Ok(1),
        (false, Outcome::Refused(_)) => Ok(0),
        (_, outcome) => Err(Finding::Different(format!(
            "{what}: {} ended with {outcome:?}, possible: {possible}",
            short(operation)
        ))),
    }
}

fn short(operation: &Operation) -> String {
    let mut text = format!("{operation:?}");
    text.truncate(300);
    text
}

/// The image as the kernel and our engine see it, if both see the same, and e2fsck finds nothing.
pub fn both_read(path: &Path, what: &str) -> Result<Tree, Finding> {
    image::expect_clean(path, what)?;
    let ours = with_engine(path, true, async |engine| engine.tree().await)?;
    let mount = Mount::new(path, "ro")?;
    let kernels = mount.tree()?;
    mount.unmount()?;
    expect_same(&kernels, &ours, &format!("{what}: the kernel's reading and ours"))?;
    Ok(ours)
}

fn judge(path: &Path, model: &Model, what: &str) -> Result<u64, Finding> {
    let tree = both_read(path, what)?;
    model.expect(&tree, what)?;
    Ok(tree.len() as u64)
}
