//! Blocks taken and freed by operations, on a filesystem that mke2fs made.

use std::collections::BTreeSet;

use super::super::test_image::{FEATURES, Image};
use super::*;

#[test]
fn every_free_block_is_taken_once_and_then_there_is_no_space() {
    for features in FEATURES {
        let mut image = Image::make(features);
        let free = image.free_blocks();
        assert!(free > 20_000, "{free}");
        let mut taken = BTreeSet::new();
        let mut goal = BlockNumber(20_000);
        loop {
            match image.run(|handle| handle.take_run(goal, 1000)) {
                Ok(run) => {
                    let new = (run.start.0..run.end().0).all(|block| taken.insert(block));
                    assert!(new && run.count > 0 && run.count <= 1000, "{run:?}");
                    goal = run.end();
                }
                Err(stop) => break assert_eq!(stop, Stop::NoSpace),
            }
        }
        assert_eq!(taken.len() as u64, free);
        assert_eq!(image.free_blocks(), 0);
        for block in taken {
            image.run(|handle| handle.free(BlockRun::new(BlockNumber(block), 1), false)).expect("it was taken");
        }
        assert_eq!(image.free_blocks(), free);
    }
}

#[test]
fn the_goal_is_taken_when_it_is_free() {
    let mut image = Image::make(FEATURES[0]);
    let goal = BlockNumber(30_000);
    assert_eq!(image.run(|handle| handle.allocate(goal)), Ok(goal));
    assert_eq!(image.run(|handle| handle.allocate(goal)), Ok(goal.plus(1)));
}

#[test]
fn a_freed_block_is_not_used_again_before_its_transaction_is_durable() {
    let mut image = Image::make(FEATURES[0]);
    let goal = BlockNumber(30_000);
    image.run(|handle| handle.allocate(goal)).expect("free");
    image.close();
    image.closing = None;
    let freed = BlockRun::new(goal, 1);
    let reuse = image.run(|handle| {
        handle.free(freed, true)?;
        handle.allocate(goal)
    });
    assert_eq!(reuse, Ok(goal.plus(1)), "nor by the operation that freed it");
    assert_eq!(image.run(|handle| handle.allocate(goal)), Ok(goal.plus(2)));
    image.close();
    assert_eq!(image.run(|handle| handle.allocate(goal)), Ok(goal.plus(3)), "while it is on its way into the log");
    image.closing = None;
    assert_eq!(image.run(|handle| handle.allocate(goal)), Ok(goal));
}

#[test]
fn what_is_taken_and_freed_within_a_transaction_is_free_at_once() {
    let mut image = Image::make(FEATURES[0]);
    let goal = BlockNumber(30_000);
    image.run(|handle| handle.allocate(goal)).expect("free");
    image.run(|handle| handle.free(BlockRun::new(goal, 1), true)).expect("taken");
    assert_eq!(image.run(|handle| handle.allocate(goal)), Ok(goal));
}

#[test]
fn an_operation_that_stops_has_taken_nothing() {
    let mut image = Image::make(FEATURES[0]);
    let free = image.free_blocks();
    let stopped: Result<(), Stop> = image.run(|handle| {
        handle.take_run(BlockNumber(1), 500)?;
        Err(Stop::Missing(BlockNumber(1)))
    });
    assert!(stopped.is_err());
    assert_eq!(image.free_blocks(), free);
}

#[test]
fn a_double_free_is_found() {
    let mut image = Image::make(FEATURES[0]);
    let run = BlockRun::new(BlockNumber(30_000), 2);
    let twice = image.run(|handle| handle.free(run, false));
    assert!(matches!(twice, Err(Stop::Corrupt(Corrupt { structure: Structure::BlockBitmap, .. }))), "{twice:?}");
    let outside = image.run(|handle| handle.free(BlockRun::new(BlockNumber(1 << 40), 1), false));
    assert!(matches!(outside, Err(Stop::Corrupt(_))), "{outside:?}");
}
