//! The filesystem engine beside the kernel's ext4: `benches/files` does the measuring, and prints the table.

use std::fs;
use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::shell;

#[derive(Args)]
pub(crate) struct FilesOptions {
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Names in the large directory.
    #[arg(long, default_value_t = 1_000_000)]
    entries: usize,
    /// The engine's budget of memory, in MiB.
    #[arg(long, default_value_t = 256)]
    budget_mib: usize,
}

/// Builds the program and runs it on the disk that has the target directory.
pub(crate) fn run(options: &FilesOptions) -> Result<()> {
    shell::build_release(&["bench-files"])?;
    let home = shell::target_dir().join("bench");
    fs::create_dir_all(&home)?;
    let mut command = Command::new(shell::release_binary("bench-files"));
    command.arg("--directory").arg(home).args(["--seconds", &options.seconds.to_string()]);
    command.args(["--entries", &options.entries.to_string(), "--budget-mib", &options.budget_mib.to_string()]);
    shell::run_visibly(&mut command)
}
