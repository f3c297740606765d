//! Power losses in the middle of operations on names. For every image that a loss may leave: our recovery brings back a
//! state that was there after some operation, no older than what was acknowledged; then `e2fsck -fn` finds nothing. Of some
//! images `e2fsck -p` does the recovery instead, and `e2fsck -fn` finds nothing either.

#[path = "crash/judge.rs"]
mod judge;
#[path = "crash/model.rs"]
mod model;
#[path = "crash/work.rs"]
mod work;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use work::Run;

/// Shapes of the filesystem: arguments of mke2fs.
const SHAPES: [&[&str]; 3] = [
    &["-b", "4096", "-J", "size=4", "-O", "metadata_csum_seed", "-N", "2048"],
    &["-b", "1024", "-J", "size=1", "-N", "2048"],
    &["-b", "1024", "-J", "size=1", "-O", "^metadata_csum,uninit_bg,^flex_bg,^64bit,^extent", "-I", "128", "-N", "512"],
];

/// Images of one run, beside those at its end.
const IMAGES: usize = 40;

fn crash(shape: &[&str], seed: u64, operations: usize) {
    let run = Run::record(shape, seed, operations);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for number in 0..IMAGES {
        let position = rng.random_range(run.begin..=run.recording.position());
        let part = rng.random_range(0..=4_u32);
        let image = run.recording.crash_image(position, |_, _| rng.random_range(0..4) < part);
        let what = format!("seed {seed}, image {number}, after event {position} with {part}/4 of what may be lost");
        judge::recovered(&run, &image, position, &what);
        if number % 4 == 0 {
            judge::by_e2fsck(&image, &what);
        }
    }
    let end = run.recording.position();
    judge::recovered(&run, &run.recording.crash_image(end, |_, _| true), end, "the end");
}

#[test]
fn what_was_acknowledged_survives_a_power_loss_with_our_usual_profile() {
    (0..3).for_each(|seed| crash(SHAPES[0], seed, 400));
}

#[test]
fn what_was_acknowledged_survives_a_power_loss_with_small_blocks_and_a_small_log() {
    (100..103).for_each(|seed| crash(SHAPES[1], seed, 400));
}

#[test]
fn what_was_acknowledged_survives_a_power_loss_without_checksums_and_extents() {
    (200..203).for_each(|seed| crash(SHAPES[2], seed, 300));
}
