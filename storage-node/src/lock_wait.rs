//! How long a lock that another process holds is waited for.
//!
//! A process that was killed holds its locks until its last I/O has ended, which may be after its parent saw it die. So
//! its successor does not refuse at once: it looks again for a while.

use std::time::{Duration, Instant};

/// The longest that a former run of this node may take to let go; a lock held longer is another process's.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// Between two looks.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// To be asked each time the lock is found held: pauses and gives true while it is worth another look.
pub(crate) fn patience() -> impl FnMut() -> bool {
    patience_of(LOCK_WAIT)
}

fn patience_of(wait: Duration) -> impl FnMut() -> bool {
    let deadline = Instant::now() + wait;
    move || {
        let goes_on = Instant::now() < deadline;
        if goes_on {
            std::thread::sleep(LOCK_PAUSE);
        }
        goes_on
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_lasts_as_long_as_told_and_stays_ended() {
        let (started, wait) = (Instant::now(), Duration::from_millis(50));
        let mut patience = patience_of(wait);
        assert!(patience(), "at least one more look");
        while patience() {}
        assert!(started.elapsed() >= wait);
        assert!(!patience());
    }
}
