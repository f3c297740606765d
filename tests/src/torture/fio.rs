//! fio as a second judge, one that is not ours: it fills a part of the volume before the faults and verifies it after them.

use std::process::Command;
use std::time::{Duration, Instant};

use super::rig::{POLL, VOLUME};
use crate::e2e::Cluster;
use crate::e2e::cluster::{ALPHA, BETA};

/// Bytes at the end of the volume that belong to fio: two extents.
pub const FIO_BYTES: u64 = 8 << 20;
/// The longest that a healthy volume may refuse it: on a busy machine leases end and another box takes over.
const LIMIT: Duration = Duration::from_secs(60);
/// What fio's messages hold, as an error number, when it has read something else than it wrote (`EILSEQ`).
const WRONG_DATA: &str = "err=84/";

/// fio's part of the volume.
#[derive(Debug)]
pub struct FioPart {
    offset: u64,
    /// Which filling it holds; part of every word of it, so that an older one is noticed.
    filling: u32,
}

impl FioPart {
    /// True when fio and its NBD engine are installed.
    pub fn is_installed() -> bool {
        Command::new("fio").arg("--enghelp=nbd").output().is_ok_and(|output| output.status.success())
    }

    /// The end of a volume of so many bytes; nothing is written yet.
    pub fn at_the_end(size_bytes: u64) -> Self {
        Self { offset: size_bytes - FIO_BYTES, filling: 0 }
    }

    /// Fills it anew and flushes.
    pub fn fill(&mut self, cluster: &Cluster) -> Result<(), String> {
        self.filling += 1;
        self.run(cluster, &["--do_verify=0", "--end_fsync=1"])
    }

    /// Reads it all and compares. Before the first filling there is nothing to compare.
    pub fn verify(&self, cluster: &Cluster) -> Result<(), String> {
        if self.filling == 0 { Ok(()) } else { self.run(cluster, &["--verify_only"]) }
    }

    fn run(&self, cluster: &Cluster, how: &[&str]) -> Result<(), String> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let mut last = String::new();
            for index in [ALPHA, BETA] {
                let output =
                    self.command(&cluster.uri(index, VOLUME), how).output().map_err(|e| format!("fio: {e}"))?;
                if output.status.success() {
                    return Ok(());
                }
                last = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
                if last.contains(WRONG_DATA) {
                    return Err(format!("fio, filling {}, on {}: {last}", self.filling, cluster.nodes[index].name));
                }
            }
            if Instant::now() >= deadline {
                return Err(format!("fio is not served within {LIMIT:?}: {last}"));
            }
            std::thread::sleep(POLL);
        }
    }

    fn command(&self, uri: &str, how: &[&str]) -> Command {
        let mut command = Command::new("fio");
        command.args(["--name=part", "--ioengine=nbd", "--rw=write", "--bs=4k", "--iodepth=8", "--verify=pattern"]);
        command.args(["--verify_fatal=1", "--randrepeat=1"]).args(how);
        command.arg(format!("--uri={uri}")).arg(format!("--offset={}", self.offset)).arg(format!("--size={FIO_BYTES}"));
        // The filling, then the block's place.
        command.arg(format!("--verify_pattern=0x{:08x}%o", self.filling));
        // fio leaves files named after the job behind in its working directory.
        command.current_dir(std::env::temp_dir());
        command
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::process::Stdio;

    use super::*;
    use crate::e2e::wait::eventually;

    /// A judge that cannot fail is none: wrong blocks, and those of an earlier filling, are noticed.
    #[test]
    fn wrong_and_outdated_blocks_are_noticed() {
        let have = |name: &str| Command::new(name).arg("--version").output().is_ok();
        if !FioPart::is_installed() || !have("qemu-nbd") {
            println!("skipped: fio with its NBD engine, or qemu-nbd, is not installed");
            return;
        }
        let directory = tempfile::tempdir().expect("a directory");
        let image = directory.path().join("image");
        let file = std::fs::File::create(&image).expect("an image");
        file.set_len(2 * FIO_BYTES).expect("sparse");
        let socket = directory.path().join("socket");
        let mut server = Command::new("qemu-nbd")
            .args(["--format=raw", "--persistent", "--export-name=vol", "--socket"])
            .args([&socket, &image])
            .stderr(Stdio::null())
            .spawn()
            .expect("qemu-nbd starts");
        eventually(LIMIT, "qemu-nbd listens", || socket.exists());
        let uri = format!("nbd+unix:///vol?socket={}", socket.display());
        let run = |part: &FioPart, how: &[&str]| {
            let output = part.command(&uri, how).output().expect("fio runs");
            let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
            (output.status.success(), text.contains(WRONG_DATA))
        };
        let mut part = FioPart { filling: 1, ..FioPart::at_the_end(2 * FIO_BYTES) };
        assert_eq!(run(&part, &["--do_verify=0", "--end_fsync=1"]), (true, false));
        assert_eq!(run(&part, &["--verify_only"]), (true, false));
        let mut old = vec![0; 4096];
        file_at(&image).read_exact_at(&mut old, FIO_BYTES + 4096).expect("read");
        part.filling = 2;
        assert_eq!(run(&part, &["--do_verify=0", "--end_fsync=1"]), (true, false));
        assert_eq!(run(&part, &["--verify_only"]), (true, false));
        file_at(&image).write_all_at(&old, FIO_BYTES + 4096).expect("written");
        assert_eq!(run(&part, &["--verify_only"]), (false, true), "a block of the filling before");
        assert_eq!(run(&part, &["--do_verify=0", "--end_fsync=1"]), (true, false));
        file_at(&image).write_all_at(&[0; 4096], 2 * FIO_BYTES - 4096).expect("written");
        assert_eq!(run(&part, &["--verify_only"]), (false, true), "a block of zeros");
        server.kill().expect("killed");
        server.wait().expect("ended");
    }

    fn file_at(path: &std::path::Path) -> std::fs::File {
        std::fs::File::options().read(true).write(true).open(path).expect("the image")
    }
}
