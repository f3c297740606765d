//! The model check in its short form: every execution of the pair within small budgets.

use std::time::Duration;

use tandem_tests::model::run::{Search, Verdict, check, threads};
use tandem_tests::model::state::Budget;

fn run(budget: Budget) -> Verdict {
    let search =
        Search { threads: threads(), breadth_first: false, timeout: Some(Duration::from_secs(600)), states_max: None };
    let verdict = check(budget, search);
    if let Some((rule, steps)) = &verdict.broken {
        steps.iter().for_each(|step| eprintln!("{step}"));
        panic!("{rule}");
    }
    assert!(verdict.complete, "the check ends in time: {} states so far", verdict.unique);
    verdict
}

fn assert_seen(verdict: &Verdict, sights: &[&str]) {
    for sight in sights {
        let count = verdict.seen.iter().find(|(name, _)| name == sight).map(|(_, count)| *count);
        assert!(count.is_some_and(|count| count > 0), "never seen: {sight}");
    }
}

#[test]
fn every_crash_of_a_worker_keeps_the_rules() {
    let verdict = run(Budget { crashes: 1, power: false, partitions: 0, ticks: 4, ..Budget::SHORT });
    let sights = [
        "a take-over commits",
        "a primary resumes",
        "a shrink commits",
        "a resync ends in an admission",
        "a sole member acknowledges a write",
        "a resumed primary answers",
        "a new primary answers a read after a take-over",
    ];
    assert_seen(&verdict, &sights);
}

#[test]
fn every_partition_keeps_the_rules() {
    let verdict = run(Budget { crashes: 0, partitions: 1, ticks: 5, ..Budget::SHORT });
    assert_seen(&verdict, &["a take-over commits", "a shrink commits", "a resync ends in an admission"]);
}
