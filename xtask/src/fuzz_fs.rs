//! `cargo xtask fuzz-fs`: hostile images for the filesystem engine.

use anyhow::Result;
use clap::Args;

use crate::fuzzing::Campaign;

/// Of each target, in `cargo xtask test`.
const INPUTS_SHORT: u64 = 30_000;

const CAMPAIGN: Campaign = Campaign {
    command: "fuzz-fs",
    // In the order in which an image is used.
    targets: &["mount", "recovery", "lookup", "readdir", "read", "attributes", "change"],
    program: "hostile",
    input_bytes_max: 512,
    writes_seeds: false,
};

#[derive(Args)]
pub(crate) struct FuzzFsOptions {
    /// How many inputs for each target.
    #[arg(long, default_value_t = 100_000)]
    inputs: u64,
    /// One target: mount, recovery, lookup, readdir, read, attributes or change. All, if none is named.
    #[arg(long)]
    target: Option<String>,
    /// What inputs that are made at random begin with.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Without the fuzzer, even if it is installed.
    #[arg(long)]
    stable: bool,
}

/// Runs the targets; the last line of each says what was found. Fails if anything was.
pub(crate) fn run(options: &FuzzFsOptions) -> Result<()> {
    CAMPAIGN.run(options.target.as_deref(), |_| options.inputs, options.seed, options.stable)
}

/// The step of `cargo xtask test`, for which the program was built.
pub(crate) fn run_short() -> Result<()> {
    CAMPAIGN.run_short(|_| INPUTS_SHORT)
}
