//! The demo's steps: a cluster, a volume, load, a switchover, a crash, a resync, and the proof.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use proto::admin as pb;
use proto::{BLOCK_BYTES, BlockRange};

use super::boxes::{Machines, free_nfs_port, kill_process};
use super::control::{Control, Locator};
use super::files::{self, FileLoad, Place, Promised};
use super::ledger::{BLOCK, Ledger};
use super::load::{CLIENTS, Load, Session};
use super::timeline::Timeline;
use crate::files::mke2fs;
use crate::net::transport::Transport;

/// Name of the volume whose blocks are used.
const VOLUME: &str = "demo";
/// Its size.
const VOLUME_BYTES: u64 = 256 << 20;
/// Name of the volume whose files are used.
const FILES_VOLUME: &str = "files";
/// Its size.
const FILES_VOLUME_BYTES: u64 = 256 << 20;
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
    /// Of files over NFS; none where no filesystem could be made.
    pub(super) files: Option<FileFindings>,
}

/// What the demo found of files; those that are lost count with the blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FileFindings {
    /// Files that clients were promised, at the end.
    pub(super) acknowledged: u64,
    /// Of these, files that were read back intact from both copies.
    pub(super) verified: u64,
    /// The longest that an operation waited around the planned switchover.
    pub(super) switchover_ms: u128,
    /// And around the crash.
    pub(super) failover_ms: u128,
}

impl Findings {
    /// The demo's last line.
    pub(super) fn line(&self) -> String {
        let Self { acknowledged, verified, lost, switchover_ms, failover_ms, resync_blocks, .. } = self;
        let mut line = format!(
            "demo: acknowledged={acknowledged} verified={verified} lost={lost} switchover_ms={switchover_ms} \
             failover_ms={failover_ms} resync_blocks={resync_blocks}"
        );
        if let Some(FileFindings { acknowledged, verified, switchover_ms, failover_ms }) = &self.files {
            line += &format!(
                " files={acknowledged} files_verified={verified} nfs_switchover_ms={switchover_ms} nfs_failover_ms={failover_ms}"
            );
        }
        line
    }

    /// Nothing was lost, and everything was looked at.
    pub(super) fn good(&self) -> bool {
        let files_are_good =
            self.files.as_ref().is_none_or(|files| files.verified == files.acknowledged && files.acknowledged > 0);
        self.lost == 0 && self.verified == self.acknowledged && self.acknowledged > 0 && files_are_good
    }
}

/// All clients.
struct Loads {
    blocks: Load,
    files: Option<FileLoad>,
}

impl Loads {
    /// Lets time pass. Ends early, with the reason, when a client gives up.
    async fn run_for(&mut self, time: Duration) -> anyhow::Result<()> {
        self.blocks.run_for(time).await?;
        self.files.as_mut().map_or(Ok(()), FileLoad::first_failure)
    }

    /// The longest waits since this was asked last, in milliseconds.
    fn take_longest_waits(&self, ledger: &Ledger) -> (u128, Option<u128>) {
        let files = self.files.as_ref().map(|files| files.take_longest_wait().as_millis());
        (ledger.take_longest_wait().as_millis(), files)
    }
}

/// Everything that the steps share.
struct Stage<'a> {
    machines: &'a Machines,
    control: Control,
    /// Of the volume with files; none where no filesystem can be made.
    files: Option<Control>,
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
    timeline.step(&format!(
        "three machines start as processes of their own: box-a, box-b, witness ({})",
        directory.display()
    ));
    control.await_nodes(START_PATIENCE).await?;
    control.build_cluster().await?;
    timeline.step("they form a cluster; the witness only votes, so that two of three can always decide");
    let _watchers = timeline.watch(&control);
    control.create_volume(VOLUME_BYTES, START_PATIENCE).await?;
    let boxes = machines.boxes().iter().map(|machine| (machine.admin.clone(), machine.nbd.clone())).collect();
    let volume_id = control.show().await?.summary.unwrap_or_default().id;
    let mut stage = Stage {
        machines,
        files: None,
        locator: Arc::new(Locator::new(control.clone(), volume_id, boxes)),
        control,
        ledger: Arc::new(Ledger::new(VOLUME_BYTES / BLOCK_BYTES)),
        timeline: timeline.clone(),
    };
    let size = stage.session().size_bytes().await?;
    if size != VOLUME_BYTES {
        bail!("the export is {size} bytes long instead of {VOLUME_BYTES}");
    }
    stage.timeline.step("volume \"demo\" (256 MiB) is there, one copy on each box; every write goes to both");
    let place = stage.serve_files().await?;
    stage.under_load(Duration::from_secs(seconds), place).await
}

impl Stage<'_> {
    fn session(&self) -> Session {
        Session::new(self.control.transport.clone(), self.locator.clone(), VOLUME.to_owned())
    }

    /// A second volume, with a filesystem, served over NFS.
    async fn serve_files(&mut self) -> anyhow::Result<Option<Place>> {
        if !mke2fs::is_installed() {
            self.timeline.step("no files over NFS: mke2fs is not installed (Debian: apt install e2fsprogs)");
            return Ok(None);
        }
        let control = Control { volume: FILES_VOLUME.to_owned(), ..self.control.clone() };
        control.create_volume(FILES_VOLUME_BYTES, START_PATIENCE).await?;
        control.make_filesystem().await?;
        let port = free_nfs_port()?;
        control.serve_nfs(port).await?;
        let addresses = self.machines.boxes().iter().map(|machine| SocketAddr::new(machine.nfs, port)).collect();
        self.timeline.step("volume \"files\" (256 MiB) is there, with an ext4 filesystem, and served over NFS");
        self.files = Some(control);
        Ok(Some(Place { addresses, volume: FILES_VOLUME.to_owned() }))
    }

    async fn under_load(&self, time: Duration, place: Option<Place>) -> anyhow::Result<Findings> {
        let begun = Instant::now();
        let mut findings = Findings::default();
        let blocks = Load::start(&self.control.transport, &self.locator, VOLUME, &self.ledger);
        self.timeline.step(&format!("{CLIENTS} NBD clients write and check random blocks, 4 to 64 KiB at a time"));
        let files = match place {
            None => None,
            Some(place) => Some(FileLoad::start(place).await?),
        };
        if files.is_some() {
            findings.files = Some(FileFindings::default());
            let clients = files::CLIENTS;
            self.timeline
                .step(&format!("{clients} NFS clients make, rename, link and remove files, and one holds a lock"));
        }
        let mut load = Loads { blocks, files };
        load.run_for(time / 4).await?;
        let (blocks, files) = self.switchover(&mut load, time / 4).await?;
        findings.switchover_ms = blocks;
        findings.files.iter_mut().for_each(|found| found.switchover_ms = files.unwrap_or_default());
        let (blocks, files) = self.crash(&mut load, time / 4).await?;
        findings.failover_ms = blocks;
        findings.files.iter_mut().for_each(|found| found.failover_ms = files.unwrap_or_default());
        self.await_resync(&mut load).await?;
        findings.resync_blocks = self.timeline.resync_blocks();
        load.run_for(time.saturating_sub(begun.elapsed()).max(Duration::from_secs(1))).await?;
        let Loads { blocks, files } = load;
        blocks.stop().await?;
        self.timeline.step(&format!("load ends: {} writes were acknowledged", self.ledger.writes()));
        let promised = match files {
            None => None,
            Some(files) => {
                let operations = files.operations();
                let promised = files.stop().await?;
                self.timeline.step(&format!(
                    "{operations} operations on files were answered, none with an error, and the lock was held all the time"
                ));
                Some(promised)
            }
        };
        self.verify_all(&mut findings, promised).await?;
        Ok(findings)
    }

    async fn switchover(&self, load: &mut Loads, then: Duration) -> anyhow::Result<(u128, Option<u128>)> {
        let before = self.primary().await?;
        self.timeline.step(&format!("planned switchover, as for maintenance of {}:", before.node_name));
        load.take_longest_waits(&self.ledger);
        let name = self.switch_volumes().await?;
        load.run_for(then.max(SETTLE)).await?;
        let waited = load.take_longest_waits(&self.ledger);
        self.timeline.step(&format!("{name} is primary now; {}", waits(waited)));
        Ok(waited)
    }

    /// Hands all volumes to the box that has not been primary. Gives its name.
    async fn switch_volumes(&self) -> anyhow::Result<String> {
        let reply = self.control.switchover().await?;
        if let Some(files) = &self.files
            && files.switchover().await?.primary_name != reply.primary_name
        {
            bail!("the volumes went to different boxes");
        }
        Ok(reply.primary_name)
    }

    /// Kills the primary's worker without warning.
    async fn crash(&self, load: &mut Loads, then: Duration) -> anyhow::Result<(u128, Option<u128>)> {
        let primary = self.primary().await?;
        let machine = self
            .machines
            .boxes()
            .iter()
            .find(|machine| machine.name == primary.node_name)
            .context("the primary is none of the boxes")?;
        let pid = self.control.node_status(&machine.admin).await?.worker_pid;
        self.timeline.expect_resync();
        load.take_longest_waits(&self.ledger);
        kill_process(pid)?;
        self.timeline.step(&format!("kill -9 of {}, the primary, under load (process {pid}):", machine.name));
        load.run_for(then.max(SETTLE)).await?;
        let waited = load.take_longest_waits(&self.ledger);
        let now = self.primary().await?;
        self.timeline.step(&format!("{} serves; {}", now.node_name, waits(waited)));
        Ok(waited)
    }

    /// Waits, under load, until both copies are in sync again.
    async fn await_resync(&self, load: &mut Loads) -> anyhow::Result<()> {
        let deadline = Instant::now() + RESYNC_PATIENCE;
        for control in std::iter::once(&self.control).chain(&self.files) {
            while !self.is_in_sync(control, deadline).await? {
                load.run_for(RESYNC_LOOK).await?;
            }
        }
        self.timeline.step("the node that died is back by itself, and both copies are in sync again");
        Ok(())
    }

    /// Errors: it is late.
    async fn is_in_sync(&self, control: &Control, deadline: Instant) -> anyhow::Result<bool> {
        let is_late = Instant::now() > deadline;
        let Ok(volume) = control.show().await else {
            return if is_late { bail!("no node tells about volume {}", control.volume) } else { Ok(false) };
        };
        let peers = volume.replicas.iter().filter(|replica| replica.serving).flat_map(|replica| &replica.peers);
        peers.for_each(|peer| self.timeline.note_resync(peer.resync_done_blocks));
        let is_in_sync = volume.replicas.iter().all(|replica| replica.in_sync && replica.reachable);
        if !is_in_sync && is_late {
            let health = volume.summary.and_then(|summary| summary.health).unwrap_or_default();
            bail!("no resync of {} within {RESYNC_PATIENCE:?}; the cluster says: {}", control.volume, health.text);
        }
        Ok(is_in_sync)
    }

    /// Reads everything from one box, switches over, reads everything from the other.
    async fn verify_all(&self, findings: &mut Findings, promised: Option<Promised>) -> anyhow::Result<()> {
        let first = self.primary().await?.node_name;
        let on_first = self.verify(&first).await?;
        let files_on_first = self.verify_files(findings, promised.as_ref(), &first).await?;
        let second = self.switch_volumes().await?;
        if second == first {
            bail!("the switchover went nowhere");
        }
        let serving = |volume: &pb::ShowVolumeReply| {
            volume.replicas.iter().any(|replica| replica.serving && replica.node_name == second)
        };
        self.control.await_volume("the other box serves", START_PATIENCE, serving).await?;
        let on_second = self.verify(&second).await?;
        let files_on_second = self.verify_files(findings, promised.as_ref(), &second).await?;
        findings.verified = on_first.intersection(&on_second).count() as u64;
        findings.acknowledged = self.ledger.acknowledged_blocks();
        if let (Some(found), Some(promised)) = (&mut findings.files, promised) {
            found.acknowledged = promised.files();
            found.verified = files_on_first.min(files_on_second);
        }
        let (lost, losses) = self.ledger.losses();
        findings.lost += lost;
        findings.losses.extend(losses);
        Ok(())
    }

    /// Reads every file. Gives how many are as they were promised.
    async fn verify_files(
        &self,
        findings: &mut Findings,
        promised: Option<&Promised>,
        place: &str,
    ) -> anyhow::Result<u64> {
        let Some(promised) = promised else { return Ok(0) };
        let verified = promised.verify(place).await?;
        self.timeline.step(&format!("{place}: {} of {} files are intact", verified.intact, promised.files()));
        findings.lost += verified.lost;
        findings.losses.extend(verified.losses);
        Ok(verified.intact)
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

/// The longest waits, in words.
fn waits((blocks, files): (u128, Option<u128>)) -> String {
    let of_files = files.map(|files| format!(", and none of NFS longer than {files} ms")).unwrap_or_default();
    format!("no client waited longer than {blocks} ms{of_files}")
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
            ..Findings::default()
        };
        assert_eq!(
            findings.line(),
            "demo: acknowledged=10 verified=10 lost=0 switchover_ms=31 failover_ms=250 resync_blocks=99"
        );
        assert!(findings.good());
        let files = FileFindings { acknowledged: 5, verified: 5, switchover_ms: 41, failover_ms: 260 };
        let findings = Findings { files: Some(files), ..findings };
        assert_eq!(
            findings.line(),
            "demo: acknowledged=10 verified=10 lost=0 switchover_ms=31 failover_ms=250 resync_blocks=99 files=5 \
             files_verified=5 nfs_switchover_ms=41 nfs_failover_ms=260"
        );
        assert!(findings.good());
    }

    #[test]
    fn a_loss_or_an_unread_block_or_nothing_at_all_is_not_good() {
        let good = Findings { acknowledged: 10, verified: 10, ..Findings::default() };
        assert!(good.good());
        assert!(!Findings { lost: 1, ..good.clone() }.good());
        assert!(!Findings { verified: 9, ..good.clone() }.good());
        let files = FileFindings { acknowledged: 5, verified: 4, ..FileFindings::default() };
        assert!(!Findings { files: Some(files), ..good.clone() }.good());
        assert!(!Findings { files: Some(FileFindings::default()), ..good }.good());
        assert!(!Findings::default().good());
    }
}
