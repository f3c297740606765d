//! Says goodbye for a worker that was reaped, to every peer at the same time.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use tracing::{debug, info};

use super::Announcement;
use crate::peer;

/// How long all goodbyes may take together; a peer that does not answer waits for the lease to run out.
const GOODBYES_MAX: Duration = Duration::from_secs(1);

/// Says it. Threads that are still at it after the time given end by themselves.
pub(super) fn say(announcement: &Announcement) {
    let identity = announcement.identity();
    let (done, finished) = mpsc::channel();
    for address in announcement.peers.clone() {
        let done = done.clone();
        std::thread::spawn(move || {
            let said = peer::say_goodbye(&address, identity);
            match &said {
                Ok(()) => info!("said goodbye to {address} for run {}", identity.incarnation),
                Err(why) => debug!("no goodbye to {address}: {why}"),
            }
            let _ = done.send(());
        });
    }
    drop(done);
    let deadline = Instant::now() + GOODBYES_MAX;
    while finished.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok() {}
}
