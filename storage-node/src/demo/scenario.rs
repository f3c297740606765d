//! The demo's steps: a cluster, a volume, load, a switchover, a crash, a resync, and the proof.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use proto::admin as pb;
use proto::{BLOCK_BYTES, BlockRange};

use super::boxes::{Machines, kill_process};
use super::control::{Control, Locator};
use super::ledger::{BLOCK, Ledger};
use super::load::{CLIENTS, Load, Session};
use super::timeline::Timeline;
use crate::net::transport::Transport;

/// Name of the demo's volume.
const VOLUME: &str = "demo";
/// Its size.
const VOLUME_BYTES: u64 = 256 << 20;
/// Processes come up, and a store is made, within this.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// The dead node is back and in sync within this.
const RESYNC_PATIENCE: Duration = Duration::from_secs(90);
/// Load after a switchover or crash, at least, to see its longest wait.
const SETTLE: Duration = Duration::from_secs(2);
/// Between looks at a resync.
const RESYNC_LOOK: Duration = Duration::from_millis(200);
/// Blocks read at once while verifying (1 MiB).
const VERIFY_BLOCKS: u64 = 256;

/// What the demo found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Findings {
    /// Blocks that hold an acknowledged write.
    pub(super) acknowledged: u64,
    /// Of these, blocks that were read back intact from both copies.
    pub(super) verified: u64,
    /// Blocks found wrong, under load or on a copy.
    pub(super) lost: u64,
    /// The longest that a write waited around the planned switchover.
    pub(super) switchover_ms: u128,
    /// The longest that a write waited around the crash.
    pub(super) failover_ms: u128,
    /// Blocks sent to bring the crashed node up to date.
    pub(super) resync_blocks: u64,
    /// The first losses, in words.
    pub(super) losses: Vec<String>,
}

impl Findings {
    /// The demo's last line.
    pub(super) fn line(&self) -> String {
        format!(
            "demo: acknowledged={} verified={} lost={} switchover_ms={} failover_ms={} resync_blocks={}",
            self.acknowledged, self.verified, self.lost, self.switchover_ms, self.failover_ms, self.resync_blocks
        )
    }

    /// Nothing was lost, and everything was looked at.
    pub(super) fn good(&self) -> bool {
        self.lost == 0 && self.verified == self.acknowledged && self.acknowledged > 0
    }
}

/// Everything that the steps share.
struct Stage<'a> {
    machines: &'a Machines,
    control: Control,
    locator: Arc<Locator>,
    ledger: Arc<Ledger>,
    timeline: Timeline,
}

/// Plays the demo with machines that were started in `directory`.
pub(super) async fn play(
    machines: &Machines,
    directory: &Path,
    seconds: u64,
    timeline: &Timeline,
) -> anyhow::Result<Findings> {
    let control = Control {
        transport: Transport::default(),
        addresses: machines.all.iter().map(|machine| machine.admin.clone()).collect(),
        volume: VOLUME.to_owned(),
    };
    let boxes = machines.boxes().iter().map(|machine| (machine.admin.clone(), machine.nbd.clone())).collect();
    let stage = Stage {
        machines,
        locator: Arc::new(Locator::new(control.clone(), boxes)),
        control,
        ledger: Arc::new(Ledger::new(VOLUME_BYTES / BLOCK_BYTES)),
        timeline: timeline.clone(),
    };
    stage.timeline.step(&format!(
        "three machines start as processes of their own: box-a, box-b, witness ({})",
        directory.display()
    ));
    stage.control.await_nodes(START_PATIENCE).await?;
    stage.control.build_cluster().await?;
    stage.timeline.step("they form a cluster; the witness only votes, so that two of three can always decide");
    let _watchers = stage.timeline.watch(&stage.control);
    stage.control.create_volume(VOLUME_BYTES, START_PATIENCE).await?;
    let size = stage.session().size_bytes().await?;
    if size != VOLUME_BYTES {
        bail!("the export is {size} bytes long instead of {VOLUME_BYTES}");
    }
    stage.timeline.step("volume \"demo\" (256 MiB) is there, one copy on each box; every write goes to both");
    stage.under_load(Duration::from_secs(seconds)).await
}

impl Stage<'_> {
    fn session(&self) -> Session {
        Session::new(self.control.transport.clone(), self.locator.clone(), VOLUME.to_owned())
    }

    async fn under_load(&self, time: Duration) -> anyhow::Result<Findings> {
        let begun = Instant::now();
        let mut findings = Findings::default();
        let mut load = Load::start(&self.control.transport, &self.locator, VOLUME, &self.ledger);
        self.timeline.step(&format!("{CLIENTS} NBD clients write and check random blocks, 4 to 64 KiB at a time"));
        load.run_for(time / 4).await?;
        findings.switchover_ms = self.switchover(&mut load, time / 4).await?;
        findings.failover_ms = self.crash(&mut load, time / 4).await?;
        self.await_resync(&mut load).await?;
        findings.resync_blocks = self.timeline.resync_blocks();
        load.run_for(time.saturating_sub(begun.elapsed()).max(Duration::from_secs(1))).await?;
        load.stop().await?;
        self.timeline.step(&format!("load ends: {} writes were acknowledged", self.ledger.writes()));
        findings.verified = self.verify_both().await?;
        findings.acknowledged = self.ledger.acknowledged_blocks();
        (findings.lost, findings.losses) = self.ledger.losses();
        Ok(findings)
    }

    async fn switchover(&self, load: &mut Load, then: Duration) -> anyhow::Result<u128> {
        let before = self.primary().await?;
        self.timeline.step(&format!("planned switchover, as for maintenance of {}:", before.node_name));
        self.ledger.take_longest_wait();
        let reply = self.control.switchover().await?;
        load.run_for(then.max(SETTLE)).await?;
        let waited = self.ledger.take_longest_wait().as_millis();
        self.timeline.step(&format!("{} is primary now; no client waited longer than {waited} ms", reply.primary_name));
        Ok(waited)
    }

    /// Kills the primary's worker without warning.
    async fn crash(&self, load: &mut Load, then: Duration) -> anyhow::Result<u128> {
        let primary = self.primary().await?;
        let machine = self
            .machines
            .boxes()
            .iter()
            .find(|machine| machine.name == primary.node_name)
            .context("the primary is none of the boxes")?;
        let pid = self.control.node_status(&machine.admin).await?.worker_pid;
        self.timeline.expect_resync();
        self.ledger.take_longest_wait();
        kill_process(pid)?;
        self.timeline.step(&format!("kill -9 of {}, the primary, under load (process {pid}):", machine.name));
        load.run_for(then.max(SETTLE)).await?;
        let waited = self.ledger.take_longest_wait().as_millis();
        let now = self.primary().await?;
        self.timeline.step(&format!("{} serves; no client waited longer than {waited} ms", now.node_name));
        Ok(waited)
    }

    /// Waits, under load, until both copies are in sync again.
    async fn await_resync(&self, load: &mut Load) -> anyhow::Result<()> {
        let deadline = Instant::now() + RESYNC_PATIENCE;
        loop {
            if let Ok(volume) = self.control.show().await {
                let peers = volume.replicas.iter().filter(|replica| replica.serving).flat_map(|replica| &replica.peers);
                peers.for_each(|peer| self.timeline.note_resync(peer.resync_done_blocks));
                if volume.replicas.iter().all(|replica| replica.in_sync && replica.reachable) {
                    self.timeline.step("the node that died is back by itself, and both copies are in sync again");
                    return Ok(());
                }
                if Instant::now() > deadline {
                    let health = volume.summary.and_then(|summary| summary.health).unwrap_or_default();
                    bail!("no resync within {RESYNC_PATIENCE:?}; the cluster says: {}", health.text);
                }
            } else if Instant::now() > deadline {
                bail!("no node tells about the volume");
            }
            load.run_for(RESYNC_LOOK).await?;
        }
    }

    /// Reads everything from one box, switches over, reads everything from the other.
    async fn verify_both(&self) -> anyhow::Result<u64> {
        let first = self.primary().await?;
        let on_first = self.verify(&first.node_name).await?;
        let reply = self.control.switchover().await?;
        if reply.primary_name == first.node_name {
            bail!("the switchover went nowhere");
        }
        let serving = |volume: &pb::ShowVolumeReply| {
            volume.replicas.iter().any(|replica| replica.serving && replica.node_name == reply.primary_name)
        };
        self.control.await_volume("the other box serves", START_PATIENCE, serving).await?;
        let on_second = self.verify(&reply.primary_name).await?;
        Ok(on_first.intersection(&on_second).count() as u64)
    }

    /// Reads the whole volume; the blocks that hold an acknowledged write, intact.
    async fn verify(&self, place: &str) -> anyhow::Result<BTreeSet<u64>> {
        let mut session = self.session();
        let mut intact = BTreeSet::new();
        let mut data = vec![0; VERIFY_BLOCKS as usize * BLOCK];
        let blocks = self.ledger.blocks();
        for start in (0..blocks).step_by(VERIFY_BLOCKS as usize) {
            let count = VERIFY_BLOCKS.min(blocks - start);
            let data = &mut data[..count as usize * BLOCK];
            session.read(start * BLOCK_BYTES, data).await?;
            for (block, bytes) in (start..start + count).zip(data.chunks_exact(BLOCK)) {
                if self.ledger.check(BlockRange::new(block, 1), bytes, &format!("on {place}")) == 1 {
                    intact.insert(block);
                }
            }
        }
        session.close().await;
        self.timeline.step(&format!("{place}: {} blocks with acknowledged writes are intact", intact.len()));
        Ok(intact)
    }

    /// The copy that serves.
    async fn primary(&self) -> anyhow::Result<pb::ReplicaView> {
        let serving = |volume: &pb::ShowVolumeReply| volume.replicas.iter().any(|replica| replica.serving);
        let volume = self.control.await_volume("a box serves", START_PATIENCE, serving).await?;
        volume.replicas.into_iter().find(|replica| replica.serving).context("nobody serves")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_exact() {
        let findings = Findings {
            acknowledged: 10,
            verified: 10,
            lost: 0,
            switchover_ms: 31,
            failover_ms: 250,
            resync_blocks: 99,
            losses: Vec::new(),
        };
        assert_eq!(
            findings.line(),
            "demo: acknowledged=10 verified=10 lost=0 switchover_ms=31 failover_ms=250 resync_blocks=99"
        );
        assert!(findings.good());
    }

    #[test]
    fn a_loss_or_an_unread_block_or_nothing_at_all_is_not_good() {
        let good = Findings { acknowledged: 10, verified: 10, ..Findings::default() };
        assert!(good.good());
        assert!(!Findings { lost: 1, ..good.clone() }.good());
        assert!(!Findings { verified: 9, ..good }.good());
        assert!(!Findings::default().good());
    }
}
