//! Inputs for the NFS gateway that found something once, and some that came far, replayed: `fuzz/regressions/TARGET/NAME`.

use std::fs;
use std::path::Path;

use fuzz_harness::nfs::{MessageMaker, NfsTarget};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

#[test]
fn messages_that_are_kept_find_nothing_any_more() {
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("../regressions");
    for target in NfsTarget::ALL {
        let files = fs::read_dir(home.join(target.name())).expect("every target has a directory");
        let mut reached = 0;
        for file in files {
            let path = file.expect("it is listed").path();
            println!("{}", path.display());
            reached += u32::from(target.run(&fs::read(&path).expect("it is read")).opened);
        }
        assert!(reached > 0, "{}: nothing that is kept is understood any more", target.name());
    }
}

#[test]
fn sound_messages_are_understood() {
    for target in NfsTarget::ALL {
        let seeds = target.seeds();
        let understood = seeds.iter().filter(|seed| target.run(seed).opened).count();
        // Some are not meant to be: refusals, and records without one that the others need.
        assert!(understood > 0, "{}: none of {}", target.name(), seeds.len());
        target.run(&[]);
    }
}

#[test]
fn the_same_number_makes_the_same_inputs() {
    let make = || {
        let mut maker = MessageMaker::new(ChaCha8Rng::seed_from_u64(3), NfsTarget::V3.seeds());
        (0..100).map(|_| maker.make()).collect::<Vec<_>>()
    };
    assert_eq!(make(), make());
}
