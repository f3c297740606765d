//! The steps of a takeover and of a release, in their order and with their times. The lists are pure; [`take_over`] and
//! [`FollowUp`] are the shell that keeps to them.

use std::future::Future;
use std::time::Duration;

use thiserror::Error;
use tracing::{debug, info, warn};

use super::tickle::CLIENTS_TICKLED_MAX;
use super::{AddressError, Announcer, ClientConnection, FloatingAddress, Tickler, interface};

/// When the address is announced, counted from its coming. The first may be lost in a switch that is just learning the
/// way, so there are some soon; the last is for neighbours whose own link was away.
const ANNOUNCED_AT: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(600),
    Duration::from_millis(2000),
    Duration::from_millis(5000),
];
/// When the clients are nudged. Linux answers such an acknowledgement at most twice a second for each connection
/// (ip-sysctl, `tcp_invalid_ratelimit`), so more would be wasted.
const TICKLED_AT: [Duration; 3] = [Duration::from_millis(1), Duration::from_millis(601), Duration::from_millis(2001)];

/// What a new primary does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TakeoverStep {
    /// Listen on the address, which is not there yet.
    Listen,
    /// Put it on the interface.
    AddAddress,
    /// Tell the neighbours.
    Announce,
    /// Nudge the former primary's clients.
    Tickle,
}

/// What a primary does that is no longer one, or what is done for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReleaseStep {
    /// Take the address off the interface: from here on nothing reaches its clients.
    RemoveAddress,
    /// Tell the peers that they may take over.
    Goodbye,
    /// Close the connections, which nobody notices any more.
    CloseConnections,
}

/// The order of a release.
pub const RELEASE_STEPS: [ReleaseStep; 3] =
    [ReleaseStep::RemoveAddress, ReleaseStep::Goodbye, ReleaseStep::CloseConnections];

/// The steps of a takeover with the time of each, counted from the coming of the address.
pub fn takeover_steps() -> Vec<(Duration, TakeoverStep)> {
    let mut steps = vec![(Duration::ZERO, TakeoverStep::Listen), (Duration::ZERO, TakeoverStep::AddAddress)];
    steps.extend(ANNOUNCED_AT.map(|at| (at, TakeoverStep::Announce)));
    steps.extend(TICKLED_AT.map(|at| (at, TakeoverStep::Tickle)));
    // Stable: what is due at the same time stays in the order above.
    steps.sort_by_key(|(at, _)| *at);
    steps
}

/// Why a takeover did not come about. The address is not on the interface then, unless it was before.
#[derive(Debug, Error)]
pub enum TakeoverError<E> {
    /// The listener.
    #[error("cannot listen: {0}")]
    Listen(E),
    /// The address.
    #[error(transparent)]
    Address(#[from] AddressError),
}

/// Blocking, for a moment: listens by `listen` and then puts the address on its interface. Gives the listener, and what
/// remains to be done for some seconds. `clients` are the former primary's; those over [`CLIENTS_TICKLED_MAX`] notice by
/// their own retransmission. Errors: as [`TakeoverError`].
pub fn take_over<L, E>(
    floating: &FloatingAddress,
    clients: Vec<ClientConnection>,
    listen: impl FnOnce() -> Result<L, E>,
) -> Result<(L, FollowUp), TakeoverError<E>> {
    // Before anything is changed, what would fail later: without NET_RAW a takeover would go unheard.
    let announcer = Announcer::open(floating)?;
    let tickler = Tickler::open()?;
    let listener = listen().map_err(TakeoverError::Listen)?;
    let change = interface::add(floating)?;
    info!("{floating}: taken over ({change:?}), {} clients to be nudged", clients.len());
    Ok((listener, FollowUp { floating: floating.clone(), announcer, tickler, clients }))
}

/// The announcements and nudges after a takeover. They must end before the address is removed: drop the future of
/// [`Self::run`] first.
#[derive(Debug)]
pub struct FollowUp {
    floating: FloatingAddress,
    announcer: Option<Announcer>,
    tickler: Tickler,
    clients: Vec<ClientConnection>,
}

impl FollowUp {
    /// Sends them at their times, over some seconds. Failures are logged: the next round makes up for them.
    pub fn run(self) -> impl Future<Output = ()> + Send {
        let started = tokio::time::Instant::now();
        async move {
            for (at, step) in takeover_steps() {
                tokio::time::sleep_until(started + at).await;
                self.step(step);
            }
        }
    }

    /// Does one step. The first two are done already.
    pub(super) fn step(&self, step: TakeoverStep) {
        match step {
            TakeoverStep::Listen | TakeoverStep::AddAddress => {}
            TakeoverStep::Announce => {
                if let Some(Err(why)) = self.announcer.as_ref().map(Announcer::announce) {
                    warn!("{}: not announced: {why}", self.floating);
                }
            }
            TakeoverStep::Tickle => {
                for connection in self.clients.iter().take(CLIENTS_TICKLED_MAX) {
                    if let Err(why) = self.tickler.tickle(connection) {
                        debug!("{}: {} not nudged: {why}", self.floating, connection.client);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order() -> Vec<TakeoverStep> {
        takeover_steps().into_iter().map(|(_, step)| step).collect()
    }

    #[test]
    fn a_takeover_listens_before_the_address_comes_and_nudges_after_it_is_announced() {
        use TakeoverStep::*;
        assert_eq!(order()[..4], [Listen, AddAddress, Announce, Tickle]);
        assert_eq!(order().iter().filter(|step| **step == Announce).count(), ANNOUNCED_AT.len());
        assert_eq!(order().iter().filter(|step| **step == Tickle).count(), TICKLED_AT.len());
        assert!(takeover_steps().is_sorted_by_key(|(at, _)| *at));
    }

    #[test]
    fn clients_are_nudged_no_faster_than_they_answer() {
        for pair in TICKLED_AT.windows(2) {
            assert!(pair[1] - pair[0] > Duration::from_millis(500));
        }
    }

    #[test]
    fn a_release_removes_the_address_first_and_closes_last() {
        use ReleaseStep::*;
        assert_eq!(RELEASE_STEPS, [RemoveAddress, Goodbye, CloseConnections]);
    }
}
