//! The demo's steps: a cluster, a volume, load, a switchover, a crash, a resync, and the proof.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use proto::admin as pb;
use proto::{BLOCK_BYTES, BlockRange};

use super::boxes::{Machines, kill_process};
use super::control::{Control, Locator};
use super::files::{self, FileLoad, Place, Promised};
use super::findings::{FileFindings, Findings, KernelFindings, Waits};
use super::ground::Ground;
use super::guest;
use super::kernel::{Guest, KernelJudge, KernelLoad};
use super::ledger::{BLOCK, Ledger};
use super::load::{CLIENTS, Load, Session};
use super::timeline::Timeline;
use crate::files::mke2fs;

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

/// All clients.
struct Loads {
    blocks: Load,
    files: Option<FileLoad>,
    kernel: Option<KernelLoad>,
}

/// What clients of files were promised, when they have ended.
#[derive(Default)]
struct Ended {
    files: Option<Promised>,
    kernel: Option<(KernelJudge, Promised)>,
}

impl Loads {
    /// Lets time pass. Ends early, with the reason, when a client gives up.
    async fn run_for(&mut self, time: Duration) -> anyhow::Result<()> {
        self.blocks.run_for(time).await?;
        self.files.as_mut().map_or(Ok(()), FileLoad::first_failure)?;
        self.kernel.as_mut().map_or(Ok(()), KernelLoad::first_failure)
    }

    /// The longest waits since this was asked last.
    fn take_longest_waits(&mut self, ledger: &Ledger) -> anyhow::Result<Waits> {
        Ok(Waits {
            blocks: ledger.take_longest_wait(),
            files: self.files.as_ref().map(FileLoad::take_longest_wait),
            kernel: self.kernel.as_mut().map(KernelLoad::take_longest_wait).transpose()?,
        })
    }
}

/// Everything that the steps share.
struct Stage<'a> {
    ground: &'a Ground,
    machines: &'a Machines,
    control: Control,
    /// Of the volume with files; none where no filesystem can be made.
    files: Option<Control>,
    locator: Arc<Locator>,
    ledger: Arc<Ledger>,
    timeline: Timeline,
}

/// Plays the demo, about so many seconds, with machines that were started in `directory`, and a Linux kernel that is up.
pub(super) async fn play(
    ground: &Ground,
    machines: &Machines,
    guest: Option<Guest>,
    (directory, seconds): (&Path, u64),
    timeline: &Timeline,
) -> anyhow::Result<Findings> {
    let control = Control {
        transport: ground.transport(),
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
        ground,
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
    stage.under_load(Duration::from_secs(seconds), place, guest).await
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
        let boxes: Vec<IpAddr> = self.machines.boxes().iter().map(|machine| machine.nfs).collect();
        let service = self.ground.service(&boxes)?;
        control.serve_nfs(&service).await?;
        let at = service.floating.map(|floating| format!(" at {}, an address that floats", floating.address));
        self.timeline.step(&format!(
            "volume \"files\" (256 MiB) is there, with an ext4 filesystem, and served over NFS{}",
            at.unwrap_or_default()
        ));
        self.files = Some(control);
        Ok(Some(Place { addresses: service.found_at, volume: FILES_VOLUME.to_owned() }))
    }

    async fn under_load(&self, time: Duration, place: Option<Place>, guest: Option<Guest>) -> anyhow::Result<Findings> {
        let begun = Instant::now();
        let mut findings = Findings::default();
        let mut load = self.begin_load(place.clone(), guest).await?;
        load.run_for(time / 4).await?;
        let planned = self.switchover(&mut load, time / 4).await?;
        let unplanned = self.crash(&mut load, time / 4).await?;
        (findings.switchover_ms, findings.failover_ms) = (planned.blocks.as_millis(), unplanned.blocks.as_millis());
        if let (Some(planned), Some(unplanned)) = (planned.files, unplanned.files) {
            let (switchover_ms, failover_ms) = (planned.as_millis(), unplanned.as_millis());
            findings.files = Some(FileFindings { switchover_ms, failover_ms, ..FileFindings::default() });
        }
        self.await_resync(&mut load).await?;
        findings.resync_blocks = self.timeline.resync_blocks();
        load.run_for(time.saturating_sub(begun.elapsed()).max(Duration::from_secs(1))).await?;
        let ended = self.end_load(load, place).await?;
        self.verify_all(&mut findings, ended).await?;
        Ok(findings)
    }

    async fn begin_load(&self, place: Option<Place>, guest: Option<Guest>) -> anyhow::Result<Loads> {
        let blocks = Load::start(&self.control.transport, &self.locator, VOLUME, &self.ledger);
        self.timeline.step(&format!("{CLIENTS} NBD clients write and check random blocks, 4 to 64 KiB at a time"));
        let mut loads = Loads { blocks, files: None, kernel: None };
        let Some(place) = place else { return Ok(loads) };
        let server = place.addresses.first().map(|address| format!("{}:/{}", address.ip(), place.volume));
        loads.files = Some(FileLoad::start(place).await?);
        let clients = files::CLIENTS;
        self.timeline.step(&format!("{clients} NFS clients make, rename, link and remove files, and one holds a lock"));
        if let (Some(guest), Some(server)) = (guest, server) {
            let kernel = KernelLoad::start(guest, &server).await?;
            let version = kernel.version();
            self.timeline.step(&format!(
                "the Linux kernel has mounted {server} with NFS {version}; its program makes, syncs, renames, links and \
                 removes files, and holds a lock (flock)"
            ));
            loads.kernel = Some(kernel);
        }
        Ok(loads)
    }

    async fn end_load(&self, load: Loads, place: Option<Place>) -> anyhow::Result<Ended> {
        let Loads { blocks, files, kernel } = load;
        let mut ended = Ended::default();
        blocks.stop().await?;
        self.timeline.step(&format!("load ends: {} writes were acknowledged", self.ledger.writes()));
        if let Some(files) = files {
            let operations = files.operations();
            ended.files = Some(files.stop().await?);
            self.timeline.step(&format!(
                "{operations} operations on files were answered, none with an error, and the lock was held all the time"
            ));
        }
        if let (Some(kernel), Some(place)) = (kernel, place) {
            if !place.is_locked(guest::LOCKED).await? {
                bail!("the lock that the Linux kernel's program held was lost");
            }
            let judge = kernel.stop().await?;
            let promised = Promised::in_directory(place, guest::DIRECTORY, &judge.files);
            self.timeline.step(&format!(
                "no error reached the program on the kernel's mount, it waited {} ms at most, and its lock was held all the time",
                judge.longest_wait.as_millis()
            ));
            ended.kernel = Some((judge, promised));
        }
        Ok(ended)
    }

    async fn switchover(&self, load: &mut Loads, then: Duration) -> anyhow::Result<Waits> {
        let before = self.primary().await?;
        self.timeline.step(&format!("planned switchover, as for maintenance of {}:", before.node_name));
        load.take_longest_waits(&self.ledger)?;
        let name = self.switch_volumes().await?;
        load.run_for(then.max(SETTLE)).await?;
        let waited = load.take_longest_waits(&self.ledger)?;
        self.timeline.step(&format!("{name} is primary now; {waited}"));
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
    async fn crash(&self, load: &mut Loads, then: Duration) -> anyhow::Result<Waits> {
        let primary = self.primary().await?;
        let machine = self
            .machines
            .boxes()
            .iter()
            .find(|machine| machine.name == primary.node_name)
            .context("the primary is none of the boxes")?;
        let pid = self.control.node_status(&machine.admin).await?.worker_pid;
        self.timeline.expect_resync();
        load.take_longest_waits(&self.ledger)?;
        kill_process(pid)?;
        self.timeline.step(&format!("kill -9 of {}, the primary, under load (process {pid}):", machine.name));
        load.run_for(then.max(SETTLE)).await?;
        let waited = load.take_longest_waits(&self.ledger)?;
        let now = self.primary().await?;
        self.timeline.step(&format!("{} serves; {waited}", now.node_name));
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
    async fn verify_all(&self, findings: &mut Findings, mut ended: Ended) -> anyhow::Result<()> {
        let first = self.primary().await?.node_name;
        let on_first = self.verify(&first).await?;
        let files_on_first = self.verify_files(findings, &mut ended, &first).await?;
        let second = self.switch_volumes().await?;
        if second == first {
            bail!("the switchover went nowhere");
        }
        let serving = |volume: &pb::ShowVolumeReply| {
            volume.replicas.iter().any(|replica| replica.serving && replica.node_name == second)
        };
        self.control.await_volume("the other box serves", START_PATIENCE, serving).await?;
        let on_second = self.verify(&second).await?;
        let files_on_second = self.verify_files(findings, &mut ended, &second).await?;
        findings.verified = on_first.intersection(&on_second).count() as u64;
        findings.acknowledged = self.ledger.acknowledged_blocks();
        if let (Some(found), Some(promised)) = (&mut findings.files, &ended.files) {
            found.acknowledged = promised.files();
            found.verified = files_on_first.0.min(files_on_second.0);
        }
        if let Some((judge, promised)) = ended.kernel {
            findings.kernel = Some(KernelFindings {
                version: judge.version.clone(),
                acknowledged: promised.files(),
                verified: files_on_first.1.min(files_on_second.1),
                stall_ms: judge.longest_wait.as_millis(),
            });
            judge.end().await?;
        }
        let (lost, losses) = self.ledger.losses();
        findings.lost += lost;
        findings.losses.extend(losses);
        Ok(())
    }

    /// Reads every file. Gives how many are as they were promised: of our clients, and of the Linux kernel's program.
    async fn verify_files(
        &self,
        findings: &mut Findings,
        ended: &mut Ended,
        place: &str,
    ) -> anyhow::Result<(u64, u64)> {
        let mut intact = (0, 0);
        if let Some(promised) = &ended.files {
            let verified = promised.verify(place).await?;
            self.timeline.step(&format!("{place}: {} of {} files are intact", verified.intact, promised.files()));
            findings.lose(&verified);
            intact.0 = verified.intact;
        }
        if let Some((judge, promised)) = &mut ended.kernel {
            let (ours, its_own) = (promised.verify(place).await?, judge.verify().await?);
            self.timeline.step(&format!(
                "{place}: {} of the kernel's {} files are intact, and it reads {} of them so",
                ours.intact,
                promised.files(),
                its_own.intact
            ));
            findings.lose(&ours);
            findings.lose(&its_own);
            intact.1 = ours.intact.min(its_own.intact);
        }
        Ok(intact)
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
