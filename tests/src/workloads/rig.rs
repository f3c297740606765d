//! A pair with a service behind a floating address, and the guests that mount it.

use std::path::Path;
use std::time::Duration;

use super::{Scale, Version, Workload, exceptions, scripts, tools};
use crate::e2e::cluster::{ALPHA, Cluster, ClusterOptions, scratch_directory};
use crate::e2e::kernel_client::{GuestOptions, Kernel, KernelClient, LOCK_SERVICES, ScriptNumber};
use crate::e2e::{eventually, eventually_some};

/// The volume.
pub const VOLUME: &str = "vol";
/// Where guests mount it.
const MOUNT: &str = "/mnt/nfs";
const MEMORY_MIB: u32 = 384;
/// For what a guest does beside the workloads.
pub const CHORE_LIMIT: Duration = Duration::from_secs(300);
/// How long the service may take to stop, until nobody uses the filesystem.
const CLOSE_LIMIT: Duration = Duration::from_secs(60);

/// Cluster and guests.
pub struct Rig {
    /// Two boxes and a witness. Guests end before it.
    pub guests: Vec<KernelClient>,
    /// The boxes.
    pub cluster: Cluster,
    version: Version,
    mounts: u32,
}

/// A workload that is under way on some guests.
pub struct Running {
    workload: &'static Workload,
    on: Vec<(usize, ScriptNumber)>,
}

impl Rig {
    /// Starts everything: a volume of this size, served, and as many guests as asked for, up and without a mount.
    pub fn start(size: &str, guests: u8, version: Version) -> Self {
        let options =
            ClusterOptions { namespaces: true, directory: Some(scratch_directory()), ..ClusterOptions::default() };
        let mut cluster = Cluster::start(&options);
        // Judged at the end of a round, with its seed.
        cluster.allow_panics();
        let create = ["volume", "create", VOLUME, "--size", size, "--node", "alpha", "--node", "beta", "--fs", "ext4"];
        cluster.must(ALPHA, &create);
        cluster.wait_healthy(VOLUME);
        let kernel = Kernel::choose().unwrap_or_else(|why| panic!("{why}"));
        let mut booted = Vec::new();
        for number in 0..guests {
            let here = cluster.home().join(format!("guest{number}"));
            let guest = GuestOptions { number, memory_mib: MEMORY_MIB };
            let client = KernelClient::boot_as(kernel, cluster.network.namespaces(), &here, guest);
            booted.push(client.unwrap_or_else(|error| panic!("a kernel: {error}")));
        }
        let mut rig = Self { guests: booted, cluster, version, mounts: 0 };
        rig.serve();
        for guest in &mut rig.guests {
            let services = if version == Version::V3 { LOCK_SERVICES } else { "" };
            guest.must(&format!("{services}\nmkdir -p {MOUNT}"), CHORE_LIMIT);
        }
        rig
    }

    /// Serves the volume behind the floating address, to everyone on the network.
    pub fn serve(&self) {
        self.cluster.serve_files(VOLUME);
    }

    /// Mounts it on every guest.
    pub fn mount(&mut self) {
        let (server, version) = (self.cluster.network.floating_ip(), self.version);
        let options = if version == Version::V3 { ",proto=tcp,mountproto=tcp" } else { "" };
        self.mounts += 1;
        for guest in &mut self.guests {
            let mount = format!("mount.nfs {server}:/{VOLUME} {MOUNT} -o vers={version},hard{options}");
            guest.must(&format!("{mount}\ngrep ' {MOUNT} nfs' /proc/mounts"), CHORE_LIMIT);
        }
    }

    /// Unmounts it from every guest: then nothing of it is in their memory.
    pub fn unmount(&mut self) {
        for guest in &mut self.guests {
            guest.must(&format!("cd /; umount {MOUNT}"), CHORE_LIMIT);
        }
    }

    /// Starts a workload in its directory, on one guest, or on all if it is shared.
    pub fn begin(&mut self, workload: &'static Workload, guest: usize, scale: Scale, seed: u64) -> Running {
        let directory = self.directory(workload, guest);
        let on = self.guests_of(workload, guest);
        self.guests[guest].must(&format!("mkdir {directory}"), CHORE_LIMIT);
        let on = on.into_iter().map(|at| (at, self.hand_over(workload, guest, at, scale, seed, "work"))).collect();
        Running { workload, on }
    }

    /// Has another guest, if there is one, look at what the workload left.
    pub fn begin_verification(
        &mut self,
        workload: &'static Workload,
        guest: usize,
        scale: Scale,
        seed: u64,
    ) -> Running {
        let judge = (guest + 1) % self.guests.len();
        Running { workload, on: vec![(judge, self.hand_over(workload, guest, judge, scale, seed, "verify"))] }
    }

    /// Removes what it left.
    pub fn clear(&mut self, workload: &'static Workload, guest: usize) {
        let directory = self.directory(workload, guest);
        self.guests[guest].must(&format!("rm -rf {directory}; test ! -e {directory}"), CHORE_LIMIT);
    }

    fn directory(&self, workload: &Workload, guest: usize) -> String {
        let guest = if workload.is_shared { "all".to_owned() } else { guest.to_string() };
        format!("{MOUNT}/{}-{guest}", workload.name)
    }

    fn guests_of(&self, workload: &Workload, guest: usize) -> Vec<usize> {
        if workload.is_shared { (0..self.guests.len()).collect() } else { vec![guest] }
    }

    fn hand_over(
        &mut self,
        workload: &Workload,
        guest: usize,
        at: usize,
        scale: Scale,
        seed: u64,
        phase: &str,
    ) -> ScriptNumber {
        let scale = if scale == Scale::Full { "full" } else { "short" };
        let (here, tools, exceptions) = (scripts(), tools(), exceptions());
        let guests = self.guests_of(workload, guest).len();
        let script = format!(
            "export PHASE={phase} DIR={} SCALE={scale} SEED={seed} VERS={} GUEST={at} GUESTS={guests}\n\
             export HERE={} TOOLS={} EXCEPTIONS={}\nexec sh -e \"$HERE/{}.sh\"\n",
            self.directory(workload, guest),
            self.version,
            here.display(),
            tools.display(),
            exceptions.display(),
            workload.name
        );
        self.guests[at].start(&script)
    }

    /// How it ended, once it has on all its guests: what it printed, or why it failed.
    pub fn ended(&mut self, running: &Running) -> Option<Result<String, String>> {
        let mut said = String::new();
        for (at, script) in &running.on {
            let outcome = match self.guests[*at].try_finish(*script) {
                Some(outcome) => outcome,
                None if self.guests[*at].is_running() => return None,
                None => return Some(Err(format!("guest {at} has ended:\n{}", self.guests[*at].console()))),
            };
            said.push_str(&outcome.output);
            if outcome.status != 0 {
                let name = running.workload.name;
                return Some(Err(format!("{name} on guest {at} ended with {}:\n{said}", outcome.status)));
            }
        }
        Some(Ok(said))
    }

    /// What it has printed so far.
    pub fn output(&self, running: &Running) -> String {
        running.on.iter().map(|(at, script)| self.guests[*at].output(*script)).collect()
    }

    /// Stops serving; has e2fsck look at the volume and both copies compared; and serves again.
    pub fn judge_volume(&self) -> Result<(), String> {
        self.cluster.wait_healthy(VOLUME);
        self.cluster.must(ALPHA, &["nfs", "stop", VOLUME]);
        let checked = eventually_some(CLOSE_LIMIT, "the filesystem can be checked", || {
            let outcome = self.cluster.cli(ALPHA, &["fs", "check", VOLUME]);
            // 4: somebody uses it still.
            (outcome.code != 4).then_some(outcome)
        });
        if checked.json().is_none_or(|json| json["clean"] != true) {
            return Err(format!("fs check: {}{}", checked.stdout, checked.stderr));
        }
        let verified = self.cluster.cli(ALPHA, &["volume", "verify", VOLUME]);
        if verified.json().is_none_or(|json| json["differing"] != 0) {
            return Err(format!("volume verify: {}{}", verified.stdout, verified.stderr));
        }
        self.serve();
        Ok(())
    }

    /// Waits until somebody serves behind the floating address.
    pub fn wait_address(&self) {
        eventually(CLOSE_LIMIT, "the address serves", || {
            let at = std::net::SocketAddr::new(self.cluster.network.floating_ip(), super::locks::PORT);
            self.cluster.network.connect(at).is_ok()
        });
    }

    /// A panic in a node's log, if there is one.
    pub fn panic(&self) -> Option<String> {
        let panicked = self.cluster.nodes.iter().find(|node| node.log().contains("panicked at"))?;
        Some(format!("a panic in the log of {}", panicked.name))
    }

    /// The directory with all logs.
    pub fn home(&self) -> &Path {
        self.cluster.home()
    }
}
