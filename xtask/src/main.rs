//! The project's own commands: `cargo xtask check | test | sim | model | mutants | torture | crash-fs | interop-fs | fuzz-fs |
//! fuzz-nfs | posix | kernel-client | bench`.
//!
//! Nothing here is linked into the product. The commands shell out to cargo, fio, qemu and the built binaries, so that what
//! they measure and test is what a user runs.

mod bench;
mod check;
mod crash_fs;
mod fuzz_fs;
mod fuzz_nfs;
mod fuzzing;
mod initramfs;
mod interop_fs;
mod kernel_client;
mod model;
mod mutants;
mod nfs_torture;
mod posix;
mod shell;
mod sim;
mod suite;
mod tools;
mod torture;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Checks, tests and measurements of the Tandem workspace")]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Verify imports between crates, purity of the cores, places of unsafe code and file sizes.
    Check,
    /// Install what the tests need, build, and run every test, a short simulation, some crash images, the demo and a few mutants.
    Test(suite::TestOptions),
    /// Run the simulator over many seeds.
    Sim(sim::SimOptions),
    /// Check every execution of two boxes and a witness that a budget of faults permits.
    Model(model::ModelOptions),
    /// Delete guards from the core one by one and show that the simulator notices each.
    Mutants(mutants::MutantsOptions),
    /// Cut power, kill and break real processes at random moments, on disks that lose what was not flushed.
    Torture(torture::TortureOptions),
    /// Run pjdfstest and fsx on the filesystem engine, through a FUSE mount.
    Posix(posix::PosixOptions),
    /// Lose power under the filesystem engine, and have e2fsck, the kernel and a model judge what is left.
    CrashFs(crash_fs::CrashFsOptions),
    /// Give the filesystem engine hostile images.
    FuzzFs(fuzz_fs::FuzzFsOptions),
    /// Give the NFS gateway hostile messages and records.
    FuzzNfs(fuzz_nfs::FuzzNfsOptions),
    /// Let the kernel and the filesystem engine work on the same images, and replay each other's logs.
    InteropFs(interop_fs::InteropFsOptions),
    /// Fetch, and with `--uml` build, the Linux kernels that run as clients in the end-to-end tests.
    KernelClient(kernel_client::KernelClientOptions),
    /// Measure, side by side with the peers.
    Bench(bench::BenchOptions),
}

fn main() -> ExitCode {
    match execute(&Options::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(command: &Command) -> Result<()> {
    match command {
        Command::Check => check::run(),
        Command::Test(options) => suite::run(options),
        Command::Sim(options) => sim::run(options),
        Command::Model(options) => model::run(options),
        Command::Mutants(options) => mutants::run(options),
        Command::Torture(options) => torture::run(options),
        Command::Posix(options) => posix::run(options),
        Command::CrashFs(options) => crash_fs::run(options),
        Command::FuzzFs(options) => fuzz_fs::run(options),
        Command::FuzzNfs(options) => fuzz_nfs::run(options),
        Command::InteropFs(options) => interop_fs::run(options),
        Command::KernelClient(options) => kernel_client::run(options),
        Command::Bench(options) => bench::run(options),
    }
}
