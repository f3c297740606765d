//! Data on its way to the device before anybody syncs it, and writers who wait for memory.

use std::rc::Rc;

use bytes::Bytes;
use filesystem::engine::Failure;

use crate::{Mounted, NOW, SHAPES, block_on, close, create, expect_clean, image, open};

const USUAL: &[&str] = SHAPES[0];
const BLOCK_BYTES: usize = 4096;
/// Memory for data; an eighth of it is much of one file.
const DATA_BYTES_MAX: usize = 8 << 20;
/// Turns that the background gets; it needs some dozens.
const TURNS: usize = 20_000;

fn filled(length: usize, byte: u8) -> Bytes {
    Bytes::from(vec![byte; length])
}

/// Blocks on the device that are full of this byte.
fn blocks_of(mounted: &Mounted, byte: u8) -> usize {
    let device = mounted.device().snapshot().to_vec();
    device.chunks_exact(BLOCK_BYTES).filter(|block| block.iter().all(|found| *found == byte)).count()
}

#[test]
fn much_of_one_file_goes_to_the_device_although_nobody_syncs_it_and_a_little_waits() {
    block_on(async {
        let opened = open(image(USUAL, 24 << 20), 31, DATA_BYTES_MAX).await;
        let mounted = &opened.0;
        let much = DATA_BYTES_MAX / 8;
        for (name, length, byte) in [("much", much, 7), ("a little", much - BLOCK_BYTES, 8)] {
            let file = create(mounted, name).await;
            mounted.write(file, 0, filled(length, byte), NOW).await.expect("room");
        }
        for _ in 0..TURNS {
            tokio::task::yield_now().await;
        }
        assert_eq!((blocks_of(mounted, 7), blocks_of(mounted, 8)), (much / BLOCK_BYTES, 0));
        expect_clean(&close(opened).await, "after a write behind");
    });
}

#[test]
fn writers_of_more_than_memory_holds_end_although_nobody_syncs() {
    let (writers, each, piece) = (4, 3 << 20, 64 << 10);
    block_on(async {
        let opened = open(image(USUAL, 24 << 20), 32, 1 << 20).await;
        let mut tasks = Vec::new();
        for number in 1..=writers {
            let mounted = Rc::clone(&opened.0);
            let file = create(&mounted, &format!("file{number}")).await;
            tasks.push(tokio::task::spawn_local(async move {
                for at in (0..each).step_by(piece) {
                    mounted.write(file, at as u64, filled(piece, number), NOW).await.expect("room on the device");
                }
                (file, number)
            }));
        }
        for task in tasks {
            let (file, number) = task.await.expect("a writer ends well");
            let read = opened.0.read(file, 0, each).await.expect("readable").value;
            assert!(read.len() == each && read.iter().all(|byte| *byte == number), "file {number}");
        }
        expect_clean(&close(opened).await, "after writers");
    });
}

#[test]
fn a_writer_who_waits_for_memory_hears_that_the_device_has_failed() {
    block_on(async {
        let (mounted, driver) = open(image(USUAL, 24 << 20), 33, 1 << 20).await;
        let file = create(&mounted, "a").await;
        mounted.fsync(file).await.expect("durable");
        mounted.device().fail();
        let mut at = 0;
        let failure = loop {
            match mounted.write(file, at, filled(256 << 10, 1), NOW).await {
                Ok(_) => at += 256 << 10,
                Err(failure) => break failure,
            }
            assert!(at <= 8 << 20, "more than memory holds, and nothing went to the device");
        };
        assert!(matches!(failure, Failure::ReadOnly(_) | Failure::Device(_)), "{failure}");
        driver.await.expect("it ends by itself");
    });
}
