//! Progress bars for the making of stores and for resync, until a volume is where it should be.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use proto::BLOCK_BYTES;
use proto::admin as pb;

use super::exit::Failure;
use super::session::{Session, emit};
use super::volume::{details_text, resync_of};
use super::{json, text};

/// Between two looks at the volume.
pub(super) const INTERVAL: Duration = Duration::from_millis(300);
/// A node may be silent this long before following gives up; a failover is over by then.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Waits until the volume serves. A store that cannot be made ends the wait.
pub(super) async fn until_serving(session: &Session, volume: &str) -> Result<(), Failure> {
    watch(session, volume, |reply| {
        if let Some(failed) = reply.replicas.iter().find(|replica| replica.store() == pb::StoreState::Failed) {
            let why = format!("the store on {} cannot be made: {}", failed.node_name, failed.store_error);
            return Some(Err(Failure::Failed(why)));
        }
        let active = reply.summary.as_ref().is_some_and(|summary| summary.phase() == pb::Phase::Active);
        (active && reply.replicas.iter().any(|replica| replica.serving)).then_some(Ok(()))
    })
    .await
    .map(|_| ())
}

/// Waits until the volume serves and all its copies are in sync. A store that cannot be made ends the wait.
pub(super) async fn until_all_in_sync(session: &Session, volume: &str) -> Result<(), Failure> {
    until_serving(session, volume).await?;
    let in_sync = |reply: &pb::ShowVolumeReply| reply.replicas.iter().all(|replica| replica.in_sync).then_some(Ok(()));
    watch(session, volume, in_sync).await.map(drop)
}

/// Waits until the copy on `node` is in sync. A store that cannot be made ends the wait, and so does a copy that is
/// gone.
pub(super) async fn until_in_sync(session: &Session, volume: &str, node: u64) -> Result<(), Failure> {
    watch(session, volume, |reply| match reply.replicas.iter().find(|replica| replica.node == node) {
        None => Some(Err(Failure::NotFound(format!("node {node} holds no copy of {volume} any more")))),
        Some(copy) if copy.in_sync => Some(Ok(())),
        Some(copy) if copy.store() == pb::StoreState::Failed => {
            let why = format!("the store on {} cannot be used: {}", copy.node_name, copy.store_error);
            Some(Err(Failure::Failed(why)))
        }
        Some(_) => None,
    })
    .await
    .map(drop)
}

/// `volume show --follow`: bars until the volume is healthy, then the whole text.
pub(super) async fn follow(session: &Session, volume: &str) -> Result<(), Failure> {
    let reply = watch(session, volume, |reply| {
        let level = reply.summary.as_ref().and_then(|summary| summary.health.as_ref()).map(|health| health.level());
        (level == Some(pb::HealthLevel::Healthy)).then_some(Ok(()))
    })
    .await?;
    session.print(&json::details(&reply), &details_text(&reply))
}

/// Looks again and again until `done` gives a verdict; returns the last look.
async fn watch<D>(session: &Session, volume: &str, done: D) -> Result<pb::ShowVolumeReply, Failure>
where
    D: Fn(&pb::ShowVolumeReply) -> Option<Result<(), Failure>>,
{
    let mut bars = Bars::new(!session.json && io::stderr().is_terminal());
    let mut heard = Instant::now();
    let mut told = String::new();
    loop {
        match session.show(volume).await {
            Ok(reply) => {
                heard = Instant::now();
                if let Some(verdict) = done(&reply) {
                    bars.finish();
                    return verdict.map(|()| reply);
                }
                let health = text::health(reply.summary.as_ref().and_then(|summary| summary.health.as_ref()));
                if !bars.draw(&health, &reply) && !session.json && ageless(&health) != told {
                    emit(&format!("{health}\n"))?;
                    told = ageless(&health);
                }
            }
            Err(failure @ Failure::Unreachable(_)) if heard.elapsed() > SILENCE_MAX => return Err(failure),
            Err(Failure::Unreachable(why)) => {
                bars.draw(&why, &pb::ShowVolumeReply::default());
            }
            Err(failure) => return Err(failure),
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// The text without how long ago things were: that alone is no news.
fn ageless(health: &str) -> String {
    health.split_inclusive(')').fold(String::new(), |text, part| match part.rsplit_once(" (") {
        Some((before, age)) if age.ends_with(" ago)") => text + before,
        _ => text + part,
    })
}

/// One line of health and one bar for each copy with something under way.
struct Bars {
    all: Option<MultiProgress>,
    headline: Option<ProgressBar>,
    copies: BTreeMap<u64, ProgressBar>,
}

impl Bars {
    /// Without a terminal nothing is drawn.
    fn new(terminal: bool) -> Self {
        Bars { all: terminal.then(MultiProgress::new), headline: None, copies: BTreeMap::new() }
    }

    /// False when nothing can be drawn here.
    fn draw(&mut self, health: &str, reply: &pb::ShowVolumeReply) -> bool {
        let Some(all) = &self.all else { return false };
        let headline = self.headline.get_or_insert_with(|| {
            let style = ProgressStyle::with_template("{spinner} {wide_msg}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
            all.add(ProgressBar::new_spinner().with_style(style))
        });
        headline.set_message(health.to_owned());
        headline.tick();
        for replica in &reply.replicas {
            match work(replica, &reply.replicas) {
                Some((what, done, total)) => {
                    let bar = self.copies.entry(replica.node).or_insert_with(|| all.add(bar()));
                    bar.set_length(total);
                    bar.set_position(done);
                    bar.set_message(format!("{what} {}", replica.node_name));
                }
                None => {
                    if let Some(bar) = self.copies.remove(&replica.node) {
                        bar.finish_and_clear();
                    }
                }
            }
        }
        true
    }

    fn finish(&mut self) {
        if let Some(all) = &self.all {
            // Nothing to do when the terminal has gone.
            let _ = all.clear();
        }
    }
}

/// A bar of bytes, with a message, the rate and the time left.
pub(super) fn bar() -> ProgressBar {
    let template =
        "  {msg:24} [{bar:30}] {percent:>3} % {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(1).with_style(style.progress_chars("=> "))
}

/// What is under way for a copy: a word, bytes done, bytes in all.
fn work(replica: &pb::ReplicaView, all: &[pb::ReplicaView]) -> Option<(&'static str, u64, u64)> {
    if replica.store() == pb::StoreState::Creating && replica.create_total_bytes > 0 {
        return Some(("making", replica.create_done_bytes, replica.create_total_bytes));
    }
    let (remaining, done) = resync_of(replica.node, all)?;
    let bytes = |blocks: u64| blocks.saturating_mul(BLOCK_BYTES);
    Some(("resync", bytes(done), bytes(remaining.saturating_add(done))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_being_made_has_a_bar() {
        let mut replica = pb::ReplicaView { create_done_bytes: 5, create_total_bytes: 9, ..pb::ReplicaView::default() };
        replica.set_store(pb::StoreState::Creating);
        assert_eq!(work(&replica, &[]), Some(("making", 5, 9)));
        replica.set_store(pb::StoreState::Open);
        assert_eq!(work(&replica, &[]), None);
    }

    #[test]
    fn a_state_that_only_gets_older_is_no_news() {
        let frozen = |age: &str| format!("frozen: no majority (of 3) since 18:33:15 UTC ({age} ago): bring back W");
        assert_eq!(ageless(&frozen("3 s")), ageless(&frozen("2 min")));
        assert_eq!(ageless(&frozen("3 s")), "frozen: no majority (of 3) since 18:33:15 UTC: bring back W");
        assert_ne!(ageless("resync of B 3 %"), ageless("resync of B 4 %"));
    }

    #[test]
    fn templates_are_valid() {
        let template =
            "  {msg:24} [{bar:30}] {percent:>3} % {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
        assert!(ProgressStyle::with_template(template).is_ok());
        assert!(ProgressStyle::with_template("{spinner} {wide_msg}").is_ok());
    }
}
