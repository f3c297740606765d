//! Waiting for a fact, with a limit: the only way a test here lets time pass.

use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(20);

/// Polls until `fact` is true.
///
/// # Panics
/// When the limit is over.
#[track_caller]
pub fn eventually(limit: Duration, what: &str, mut fact: impl FnMut() -> bool) {
    eventually_some(limit, what, || fact().then_some(()));
}

/// Polls until `fact` gives a value.
///
/// # Panics
/// When the limit is over.
#[track_caller]
pub fn eventually_some<T>(limit: Duration, what: &str, mut fact: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = fact() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} in vain: {what}");
        std::thread::sleep(POLL);
    }
}
