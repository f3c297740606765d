//! The simulator itself: the same seed gives the same run, and a few seeds break no rule.

use tandem_tests::sim::{run_seed, run_seeds};

#[test]
fn same_seed_gives_the_same_run() {
    for seed in 1..6 {
        let (plain, recorded) = (run_seed(seed, false, false), run_seed(seed, true, true));
        assert_eq!(plain.hash, recorded.hash, "seed {seed}: recording must not change the run");
        assert_eq!(plain.stats, recorded.stats);
        assert!(plain.stats.acknowledged > 0 && plain.stats.faults > 0);
    }
    assert_ne!(run_seed(1, false, false).hash, run_seed(2, false, false).hash);
}

#[test]
fn a_few_seeds_break_no_rule() {
    let totals = run_seeds(1, 60, true);
    assert_eq!(totals.violations, 0, "{:?}", totals.rules);
}
