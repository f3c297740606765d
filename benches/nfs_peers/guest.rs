//! The real kernel client: one guest that mounts both servers, and what is measured in it. The same program works on both mounts;
//! the guest's caches are dropped before whatever reads.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tandem_tests::e2e::kernel_client::{Kernel, KernelClient};
use tandem_tests::e2e::namespace::NamespaceNetwork;

use crate::sizes::Sizes;

/// The longest that one measurement may take.
const LIMIT: Duration = Duration::from_secs(1800);
/// nfs-ganesha's READ_PLUS is older than RFC 7862, so that a client of 4.2 reads nothing from it: both are mounted with 4.1.
const VERSION: &str = "4.1";
/// Small programs, without a process for each file: starting one costs a user-mode kernel more than any call to a server.
const PROGRAM: &str = include_str!("guest.py");
const DROP_CACHES: &str = "sync; echo 3 >/proc/sys/vm/drop_caches";

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// One MiB after the other, with an fsync at the end: bytes a second.
    Write,
    /// The same file, from the server: bytes a second.
    Read,
    /// 4 KiB at random past the page cache, of `randread` or `randwrite`, so many in flight: operations a second.
    Direct(&'static str, u32),
    /// Files made one after the other: files a second.
    Creates,
    /// The same with data and an fsync of each.
    CreatesWithFsync,
    /// Small files that are there, opened, read and closed one after the other.
    OpenReadClose,
    /// A walk over the same tree with a stat of each file.
    TreeWalk,
}

/// The guest, with both servers mounted.
pub(crate) struct Guest {
    client: KernelClient,
    runs: u32,
}

impl Guest {
    /// Boots it and mounts each server (a name and `HOST:PATH`).
    pub(crate) fn boot(network: &NamespaceNetwork, home: &Path, servers: &[(&str, String)]) -> io::Result<Self> {
        let mut client = KernelClient::boot(Kernel::UserMode, network, home)?;
        for (name, server) in servers {
            let mount = format!("mkdir -p /mnt/{name} && mount.nfs {server} /mnt/{name} -o vers={VERSION}");
            client.must(&mount, LIMIT);
        }
        Ok(Self { client, runs: 0 })
    }

    /// Does some work on one of the servers; gives a rate. Errors: the figures cannot be read.
    ///
    /// # Panics
    /// If the work fails, with what it printed.
    pub(crate) fn measure(&mut self, server: &str, work: Work, sizes: &Sizes) -> Result<f64> {
        self.runs += 1;
        let (at, run) = (format!("/mnt/{server}"), self.runs);
        let fio = |options: &str| {
            let file = format!("--filename={at}/fio --size={}m", sizes.file_mib);
            format!("{DROP_CACHES}\nfio --name=job {file} {options} --output-format=json")
        };
        let timed = format!("--time_based=1 --runtime={} --ramp_time=1", sizes.seconds);
        let program = |arguments: String| {
            format!("cat >/run/guest.py <<'END'\n{PROGRAM}\nEND\n{DROP_CACHES}\npython3 /run/guest.py {arguments}")
        };
        let script = match work {
            Work::Write => fio("--rw=write --bs=1m --end_fsync=1 --ioengine=psync --fallocate=none"),
            Work::Read => fio("--rw=read --bs=1m --ioengine=psync"),
            Work::Direct(kind, depth) => fio(&format!(
                "--rw={kind} --bs=4k --direct=1 --ioengine=libaio --iodepth={depth} --norandommap {timed}"
            )),
            Work::Creates => program(format!("create {at}/creates-{run} {} plain", sizes.serial_creates)),
            Work::CreatesWithFsync => program(format!("create {at}/creates-{run} {} fsync", sizes.serial_creates)),
            Work::OpenReadClose => program(format!("read {at}/load/small {}", sizes.files)),
            Work::TreeWalk => program(format!("walk {at}/load/small {}", sizes.files)),
        };
        let printed = self.client.must(&script, LIMIT);
        let json: Value = {
            let start = printed.find('{').with_context(|| format!("no figures in {printed:?}"))?;
            serde_json::from_str(&printed[start..]).with_context(|| format!("figures in {printed:?}"))?
        };
        let rate = match work {
            Work::Write => fio_figure(&json, "write", "bw_bytes"),
            Work::Read => fio_figure(&json, "read", "bw_bytes"),
            Work::Direct("randread", _) => fio_figure(&json, "read", "iops"),
            Work::Direct(..) => fio_figure(&json, "write", "iops"),
            _ => json["rate"].as_f64(),
        };
        match rate {
            Some(rate) if rate > 0.0 => Ok(rate),
            _ => bail!("{work:?} on {server} has no rate: {printed}"),
        }
    }

    /// What the kernel has sent to a server since it was mounted, from `mountstats`: calls of each operation, and the bytes of
    /// their replies.
    pub(crate) fn calls(&mut self, server: &str) -> Calls {
        let printed = self.client.must("cat /proc/self/mountstats", LIMIT);
        let place = format!(" mounted on /mnt/{server} ");
        let mine = printed.lines().skip_while(|line| !line.contains(&place)).skip(1);
        let mine = mine.take_while(|line| !line.starts_with("device "));
        let operation = |line: &str| {
            let (name, counts) = line.trim().split_once(": ")?;
            let counts: Vec<u64> = counts.split_whitespace().map_while(|count| count.parse().ok()).collect();
            // Operations, transmissions, timeouts, bytes sent, bytes received.
            let [calls, _, _, _, bytes, ..] = *counts else { return None };
            name.chars()
                .all(|letter| letter.is_ascii_uppercase() || letter == '_')
                .then(|| (name.to_owned(), (calls, bytes)))
        };
        Calls(mine.filter_map(operation).collect())
    }

    /// Lists a large directory as `ls -l` does, from the server.
    pub(crate) fn list(&mut self, server: &str) {
        let script = format!("{DROP_CACHES}\nls -l /mnt/{server}/load/many | tail -1");
        self.client.must(&script, LIMIT);
    }
}

/// Calls and bytes of each operation.
pub(crate) struct Calls(BTreeMap<String, (u64, u64)>);

impl Calls {
    /// Those that came after the earlier ones.
    pub(crate) fn since(&self, before: &Self) -> Value {
        let since = self.0.iter().filter_map(|(name, (calls, bytes))| {
            let (calls_before, bytes_before) = before.0.get(name).copied().unwrap_or_default();
            let (calls, bytes) = (calls.checked_sub(calls_before)?, bytes.checked_sub(bytes_before)?);
            (calls > 0).then(|| (name.clone(), json!({ "calls": calls, "bytes_received": bytes })))
        });
        Value::Object(since.collect())
    }
}

fn fio_figure(json: &Value, side: &str, figure: &str) -> Option<f64> {
    json["jobs"][0][side][figure].as_f64()
}
