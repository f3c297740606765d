//! How much of each work is done.

/// Amounts of one run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Rounds, in each of which the servers take turns.
    pub(crate) rounds: usize,
    /// Seconds of each measurement that is no number of operations.
    pub(crate) seconds: u64,
    /// Size of the large file, in MiB.
    pub(crate) file_mib: u64,
    /// Files that the kernel client makes.
    pub(crate) serial_creates: u64,
    /// Small files that are there.
    pub(crate) files: u64,
    /// Names in the large directory.
    pub(crate) entries: u64,
}

impl Sizes {
    /// Those of the figures in docs/performance.md.
    pub(crate) const WHOLE: Self =
        Self { rounds: 3, seconds: 8, file_mib: 512, serial_creates: 3000, files: 10_000, entries: 50_000 };

    /// A few minutes in all.
    pub(crate) const QUICK: Self =
        Self { rounds: 1, seconds: 2, file_mib: 64, serial_creates: 300, files: 1000, entries: 10_000 };
}
