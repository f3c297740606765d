//! What the demo found, and its last line.

use std::fmt;
use std::time::Duration;

use super::files::Verified;

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
    /// Of a Linux kernel's files, where one was a client.
    pub(super) kernel: Option<KernelFindings>,
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

/// What the demo found with a Linux kernel as a client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct KernelFindings {
    /// The version of NFS that it had mounted.
    pub(super) version: String,
    /// Files that it was promised, at the end.
    pub(super) acknowledged: u64,
    /// Of these, files that were read back intact from both copies, by the kernel and by a client of ours.
    pub(super) verified: u64,
    /// The longest that a system call of its program took.
    pub(super) stall_ms: u128,
}

/// The longest that clients waited in some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Waits {
    /// Writes of blocks.
    pub(super) blocks: Duration,
    /// Operations on files.
    pub(super) files: Option<Duration>,
    /// System calls of the program in the Linux kernel.
    pub(super) kernel: Option<Duration>,
}

impl fmt::Display for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no client waited longer than {} ms", self.blocks.as_millis())?;
        if let Some(files) = self.files {
            write!(f, ", none of NFS longer than {} ms", files.as_millis())?;
        }
        if let Some(kernel) = self.kernel {
            write!(f, ", no program on the kernel's mount longer than {} ms", kernel.as_millis())?;
        }
        Ok(())
    }
}

impl Findings {
    /// Adds what is not as it was promised.
    pub(super) fn lose(&mut self, found: &Verified) {
        self.lost += found.lost;
        self.losses.extend(found.losses.iter().cloned());
    }

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
        if let Some(KernelFindings { version, acknowledged, verified, stall_ms }) = &self.kernel {
            line += &format!(
                " kernel_mount={version} kernel_files={acknowledged} kernel_files_verified={verified} \
                 kernel_stall_ms={stall_ms}"
            );
        }
        line
    }

    /// Nothing was lost, and everything was looked at.
    pub(super) fn good(&self) -> bool {
        let all = |verified: u64, acknowledged: u64| verified == acknowledged && acknowledged > 0;
        let files_are_good = self.files.as_ref().is_none_or(|files| all(files.verified, files.acknowledged));
        let kernel_is_good = self.kernel.as_ref().is_none_or(|kernel| all(kernel.verified, kernel.acknowledged));
        self.lost == 0 && all(self.verified, self.acknowledged) && files_are_good && kernel_is_good
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
        let kernel = KernelFindings { version: "4.2".to_owned(), acknowledged: 3, verified: 3, stall_ms: 270 };
        let findings = Findings { kernel: Some(kernel), ..findings };
        assert!(
            findings.line().ends_with(
                " nfs_failover_ms=260 kernel_mount=4.2 kernel_files=3 kernel_files_verified=3 kernel_stall_ms=270"
            ),
            "{}",
            findings.line()
        );
        assert!(findings.good());
    }

    #[test]
    fn waits_are_told_of_the_clients_that_there_are() {
        let waits = Waits { blocks: Duration::from_millis(5), ..Waits::default() };
        assert_eq!(waits.to_string(), "no client waited longer than 5 ms");
        let waits = Waits { kernel: Some(Duration::from_millis(7)), ..waits };
        assert!(waits.to_string().contains("mount longer than 7 ms"), "{waits}");
    }

    #[test]
    fn a_loss_or_an_unread_block_or_nothing_at_all_is_not_good() {
        let good = Findings { acknowledged: 10, verified: 10, ..Findings::default() };
        assert!(good.good());
        assert!(!Findings { lost: 1, ..good.clone() }.good());
        assert!(!Findings { verified: 9, ..good.clone() }.good());
        let files = FileFindings { acknowledged: 5, verified: 4, ..FileFindings::default() };
        assert!(!Findings { files: Some(files), ..good.clone() }.good());
        assert!(!Findings { files: Some(FileFindings::default()), ..good.clone() }.good());
        let kernel = KernelFindings { acknowledged: 5, verified: 4, ..KernelFindings::default() };
        assert!(!Findings { kernel: Some(kernel), ..good.clone() }.good());
        assert!(!Findings { kernel: Some(KernelFindings::default()), ..good }.good());
        assert!(!Findings::default().good());
    }
}
