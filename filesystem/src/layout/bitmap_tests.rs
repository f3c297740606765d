//! Bitmaps against a vector of truth values.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::geometry::tests::ours;
use super::*;

const LAST: GroupNumber = GroupNumber(1);

/// A geometry whose last group has this many blocks.
fn ending_with(blocks: u64) -> Geometry {
    ours(32768 + blocks)
}

/// What [`Bitmap::free_run`] should find, by trying everything.
fn model_run(model: &[bool], goal: usize, min: usize, max: usize) -> Option<BitRun> {
    let mut best = None::<BitRun>;
    for (from, to) in [(goal.min(model.len()), model.len()), (0, goal.min(model.len()))] {
        for start in from..to {
            if model[start] || start > from && !model[start - 1] {
                continue;
            }
            let count = (start..to).take_while(|at| !model[*at]).count().min(max);
            if count >= min && best.is_none_or(|best| count as u32 > best.count) {
                best = Some(BitRun { start: start as u32, count: count as u32 });
            }
        }
    }
    best
}

#[test]
fn searches_and_edits_agree_with_a_vector() {
    for seed in 0..40 {
        println!("seed {seed}");
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let bits = random.random_range(1..700u32);
        let geometry = ending_with(u64::from(bits));
        let mut model = vec![false; bits as usize];
        let mut bitmap = Bitmap::new(&geometry, BitmapKind::Blocks, LAST, vec![0; 4096]).unwrap();
        bitmap.pad();
        for _ in 0..200 {
            let start = random.random_range(0..bits);
            let count = random.random_range(1..20);
            let within = model.get(start as usize..(start + count) as usize);
            let used = random.random_bool(0.6);
            let expected = within.is_some_and(|run| run.iter().all(|bit| *bit != used));
            let run = BitRun { start, count };
            let done = if used { bitmap.take(run) } else { bitmap.give(run) };
            assert_eq!(done.is_ok(), expected);
            if expected {
                model[start as usize..(start + count) as usize].fill(used);
            }
            let goal = random.random_range(0..bits + 10);
            let free = |from: usize| (from..model.len()).find(|bit| !model[*bit]).map(|bit| bit as u32);
            let used = |from: usize| (from..model.len()).find(|bit| model[*bit]).map(|bit| bit as u32);
            assert_eq!(bitmap.next_free(goal), free(goal as usize));
            assert_eq!(bitmap.next_used(goal), used(goal as usize));
            let (min, max) = (random.random_range(1..8), random.random_range(8..40));
            let expected = model_run(&model, goal as usize, min, max);
            assert_eq!(bitmap.free_run(goal, min as u32, max as u32), expected);
        }
        assert_eq!(bitmap.count_free() as usize, model.iter().filter(|bit| !**bit).count());
        assert!(bitmap.is_padded());
        assert!((0..bits).all(|bit| bitmap.is_used(bit) == model[bit as usize]));
    }
}

#[test]
fn a_second_taking_and_a_second_freeing_are_found_and_change_nothing() {
    let geometry = ending_with(100);
    let mut bitmap = Bitmap::new(&geometry, BitmapKind::Blocks, LAST, vec![0; 4096]).unwrap();
    bitmap.take(BitRun { start: 10, count: 5 }).unwrap();
    let again = bitmap.take(BitRun { start: 5, count: 6 }).unwrap_err();
    assert_eq!((again.structure, again.at), (Structure::BlockBitmap, 1));
    assert_eq!(bitmap.count_free(), 95);
    assert!(bitmap.give(BitRun { start: 14, count: 2 }).is_err());
    assert_eq!(bitmap.count_free(), 95);
    bitmap.give(BitRun { start: 10, count: 5 }).unwrap();
    assert_eq!(bitmap.count_free(), 100);
    assert!(bitmap.take(BitRun { start: 99, count: 2 }).is_err());
    assert!(bitmap.take(BitRun { start: u32::MAX, count: 2 }).is_err());
}

#[test]
fn padding_is_ones_and_never_free() {
    let geometry = ending_with(13);
    let mut bitmap = Bitmap::new(&geometry, BitmapKind::Blocks, LAST, vec![0; 4096]).unwrap();
    assert!(!bitmap.is_padded());
    assert_eq!(bitmap.free_run(0, 1, 99), Some(BitRun { start: 0, count: 13 }));
    assert_eq!(bitmap.next_free(13), None);
    assert!(bitmap.is_used(13));
    bitmap.pad();
    assert!(bitmap.is_padded());
    assert_eq!(bitmap.bytes[..3], [0, 0xe0, 0xff]);
    bitmap.bytes[4095] = 0x7f;
    assert!(!bitmap.is_padded());
}

#[test]
fn a_block_too_short_and_a_group_too_far_are_errors() {
    let geometry = ending_with(13);
    assert!(Bitmap::new(&geometry, BitmapKind::Inodes, LAST, vec![0; 4095]).is_err());
    assert!(Bitmap::new(&geometry, BitmapKind::Blocks, GroupNumber(2), vec![0; 4096]).is_err());
}
