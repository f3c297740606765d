//! `cargo xtask fuzz-nfs`: hostile messages and records for the NFS gateway, in the way of `fuzz_fs`.
//!
//! What the targets do is in `fuzz/harness/src/nfs`. The fuzzer begins with sound messages, which the program writes for it.

use anyhow::Result;
use clap::Args;

use crate::fuzzing::Campaign;

/// Decoders, and then the whole service.
const TARGETS: &[&str] = &[
    "nfs-rpc",
    "nfs-compound",
    "nfs-v3",
    "nfs-mount",
    "nfs-nlm",
    "nfs-nsm",
    "nfs-port-mapper",
    "nfs-callback",
    "nfs-record",
    "nfs-restore",
    "nfs-client",
    SERVICE,
];
const SERVICE: &str = "nfs-service";
/// One input of it is a service that starts, some messages and a takeover: so many inputs of a decoder take as long.
const INPUTS_PER_CONVERSATION: u64 = 1000;
/// Of each decoder, in `cargo xtask test`.
const INPUTS_SHORT: u64 = 500_000;

const CAMPAIGN: Campaign = Campaign {
    command: "fuzz-nfs",
    targets: TARGETS,
    program: "hostile-messages",
    input_bytes_max: 16 << 10,
    writes_seeds: true,
};

#[derive(Args)]
pub(crate) struct FuzzNfsOptions {
    /// How many inputs for each decoder; for the whole service a thousandth of it.
    #[arg(long, default_value_t = 1_000_000)]
    inputs: u64,
    /// One target, as nfs-compound, and all inputs for it. All, if none is named.
    #[arg(long)]
    target: Option<String>,
    /// What inputs that are made without the fuzzer begin with.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Without the fuzzer, even if it is installed.
    #[arg(long)]
    stable: bool,
}

/// Runs the targets; the last line of each says what was found. Fails if anything was.
pub(crate) fn run(options: &FuzzNfsOptions) -> Result<()> {
    let inputs = |target: &str| match options.target {
        None => inputs_of(target, options.inputs),
        Some(_) => options.inputs,
    };
    CAMPAIGN.run(options.target.as_deref(), inputs, options.seed, options.stable)
}

/// The step of `cargo xtask test`, for which the program was built.
pub(crate) fn run_short() -> Result<()> {
    CAMPAIGN.run_short(|target| inputs_of(target, INPUTS_SHORT))
}

fn inputs_of(target: &str, inputs: u64) -> u64 {
    if target == SERVICE { inputs.div_ceil(INPUTS_PER_CONVERSATION) } else { inputs }
}
