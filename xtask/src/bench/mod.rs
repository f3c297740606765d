//! `cargo xtask bench`: measurements. Never part of the tests, since a busy machine must not fail a build.

mod block;
mod budget;
mod busy;
mod cluster;
mod drbd;
mod files;
mod fio;
mod floor;
mod gluster;
mod idle;
mod nfs;
mod plot;
mod proc;
mod report;
mod resync;
mod targets;

use anyhow::Result;
use clap::{Args, Subcommand};

#[derive(Args)]
pub(crate) struct BenchOptions {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// fio on the raw file, qemu-storage-daemon with one copy, its quorum of two, nbdkit, GlusterFS, and Tandem's pair.
    Block(block::BlockOptions),
    /// Where the time of one 4 KiB write goes, phase by phase, from a trace of the kernel's.
    Budget(budget::BudgetOptions),
    /// Memory of a pair with ten busy volumes, over an hour.
    Busy(busy::BusyOptions),
    /// DRBD, protocol C, and Tandem on the same disks of the same two emulated guests.
    Drbd(drbd::DrbdOptions),
    /// What an NFS client sees of planned switchovers, killed processes and dead boxes.
    Failover(nfs::FailoverOptions),
    /// The filesystem engine, and the kernel's ext4 on the same disk.
    Files(files::FilesOptions),
    /// Memory and processor time of a node with ten idle 100 GB volumes.
    Idle(idle::IdleOptions),
    /// NFS: the pair and nfs-ganesha, under a real kernel client and under the load generator.
    Nfs(nfs::NfsOptions),
    /// Speed of a full resync, what clients feel of it, and whether holes stay holes.
    Resync(resync::ResyncOptions),
}

/// Runs one measurement.
pub(crate) fn run(options: &BenchOptions) -> Result<()> {
    match &options.what {
        What::Block(options) => block::run(options),
        What::Budget(options) => budget::run(options),
        What::Busy(options) => busy::run(options),
        What::Drbd(options) => drbd::run(options),
        What::Failover(options) => nfs::run_failovers(options),
        What::Files(options) => files::run(options),
        What::Idle(options) => idle::run(options),
        What::Nfs(options) => nfs::run(options),
        What::Resync(options) => resync::run(options),
    }
}
