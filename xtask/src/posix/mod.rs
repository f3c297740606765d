//! `cargo xtask posix`: the filesystem engine under POSIX's suites, pjdfstest and fsx, through a FUSE mount of an image file.
//!
//! Judges: the suites; e2fsck on the image that they leave; and the kernel, which mounts that image afterwards and must find
//! the same tree.

mod interop;
mod mount;
mod suites;

use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Result, bail, ensure};
use clap::Args;

use self::mount::Mounted;
use self::suites::{FsxRun, PjdfstestTally};
use crate::shell;

/// Seeds when no number of operations is given: half of them with files mapped, half past the page cache.
const SEEDS: u64 = 8;
/// Operations of all seeds together.
const OPERATIONS_DEFAULT: u64 = 1_000_000;
/// The same in the short form.
const OPERATIONS_SHORT: u64 = 20_000;
const SEEDS_SHORT: u64 = 2;
const IMAGE_BYTES: u64 = 1 << 30;
const IMAGE_BYTES_SHORT: u64 = 512 << 20;

#[derive(Args)]
pub(crate) struct PosixOptions {
    /// Operations of fsx, over all seeds.
    #[arg(long, default_value_t = OPERATIONS_DEFAULT)]
    fsx_operations: u64,
    /// Seeds of fsx, one file each, from `--seed` on.
    #[arg(long, default_value_t = SEEDS)]
    fsx_seeds: u64,
    /// The first seed of fsx.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only cases of pjdfstest whose names contain this; `none` leaves all of them out.
    #[arg(long)]
    pjdfstest: Option<String>,
    /// Use the binary that is there.
    #[arg(long)]
    no_build: bool,
}

/// The whole of it.
pub(crate) fn run(options: &PosixOptions) -> Result<()> {
    if let Some(why) = unsupported() {
        bail!("{why}");
    }
    if !options.no_build {
        shell::build_release(&["fuse-ext4"])?;
    }
    run_built(options, IMAGE_BYTES)
}

/// What `cargo xtask test` runs of it; the binary is built already.
pub(crate) fn run_short() -> Result<()> {
    let options = PosixOptions {
        fsx_operations: OPERATIONS_SHORT,
        fsx_seeds: SEEDS_SHORT,
        seed: 1,
        pjdfstest: None,
        no_build: true,
    };
    run_built(&options, IMAGE_BYTES_SHORT)
}

/// Why this machine cannot run it, or nothing; installs the suites.
pub(crate) fn missing() -> Option<String> {
    unsupported().or_else(|| suites::install().err().map(|error| format!("posix: {error:#}")))
}

/// Why this machine cannot run it, or nothing.
fn unsupported() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("posix: pjdfstest has to be root".to_owned());
    }
    if !Path::new("/dev/fuse").exists() {
        return Some("posix: there is no /dev/fuse".to_owned());
    }
    let missing: Vec<&str> =
        ["mke2fs", "e2fsck"].into_iter().filter(|program| !shell::program_exists(program)).collect();
    if missing.is_empty() { None } else { Some(format!("posix: {} not installed", missing.join(", "))) }
}

fn run_built(options: &PosixOptions, image_bytes: u64) -> Result<()> {
    let tools = suites::install()?;
    let home = tempfile::Builder::new().prefix("tandem-posix-").tempdir_in(place())?;
    let image = home.path().join("ext4.image");
    mount::make_image(&image, image_bytes)?;

    let mounted = Mounted::mount(&image, &home.path().join("mapped"), false)?;
    let tally = match options.pjdfstest.as_deref() {
        Some("none") => PjdfstestTally::default(),
        pattern => suites::pjdfstest(&tools, mounted.path(), home.path(), pattern)?,
    };
    let (mapped, direct) = seeds(options);
    fsx(&tools, &mounted, home.path(), mapped, options)?;
    mounted.unmount()?;
    let mut complaints = mount::complaints(&image)?;

    let mounted = Mounted::mount(&image, &home.path().join("direct"), true)?;
    fsx(&tools, &mounted, home.path(), direct, options)?;
    interop::grow_tree(mounted.path())?;
    let seen = interop::Seen::of(mounted.path(), &home.path().join("engine.tar"))?;
    mounted.unmount()?;
    complaints.extend(mount::complaints(&image)?);
    match interop::differences(&image, &home.path().join("kernel"), &seen)? {
        None => println!("the kernel cannot mount the image here: not compared"),
        Some(differences) => {
            println!("the kernel reads {} names of the same tree: {} differ", seen.names(), differences.len());
            complaints.extend(differences);
        }
    }
    complaints.iter().for_each(|complaint| println!("{complaint}"));
    println!(
        "posix: pjdfstest={}/{} fsx_operations={} seeds={} e2fsck={}",
        tally.passed,
        tally.total,
        options.fsx_operations,
        options.fsx_seeds,
        if complaints.is_empty() { "clean" } else { "UNCLEAN" },
    );
    ensure!(tally.is_fine(), "pjdfstest: {} cases neither passed nor are listed", tally.unexpected);
    ensure!(complaints.is_empty(), "the image is not as it should be");
    Ok(())
}

/// Where images lie: in memory if that can be, since a flush costs nothing there, and these suites cut no power.
fn place() -> PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() }
}

/// The seeds of both halves.
fn seeds(options: &PosixOptions) -> (Vec<u64>, Vec<u64>) {
    (options.seed..options.seed + options.fsx_seeds).partition(|seed| (seed - options.seed).is_multiple_of(2))
}

/// All seeds of a half at the same time, each on a file of its own.
fn fsx(tools: &Path, mounted: &Mounted, home: &Path, seeds: Vec<u64>, options: &PosixOptions) -> Result<()> {
    let operations = options.fsx_operations.div_ceil(options.fsx_seeds.max(1));
    let runs: Vec<FsxRun<'_>> =
        seeds.iter().map(|seed| FsxRun { tools, mounted, home, seed: *seed, operations }).collect();
    let outcomes = thread::scope(|scope| {
        let threads: Vec<_> = runs.iter().map(|run| scope.spawn(|| run.execute())).collect();
        threads.into_iter().map(|thread| thread.join().expect("it does not panic")).collect::<Vec<_>>()
    });
    let failed: Vec<String> =
        outcomes.into_iter().filter_map(|outcome| Some(format!("{:#}", outcome.err()?))).collect();
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_are_shared_by_both_mounts() {
        let options = PosixOptions { fsx_operations: 10, fsx_seeds: 5, seed: 7, pjdfstest: None, no_build: true };
        assert_eq!(seeds(&options), (vec![7, 9, 11], vec![8, 10]));
    }
}
