//! `nfs_torture`: Linux kernels work on a volume over NFS while its boxes and processes fail. `cargo xtask torture --nfs N`
//! builds what it needs and starts it.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tandem_tests::e2e::{Need, require};
use tandem_tests::workloads::faults::Faults;
use tandem_tests::workloads::round::{Campaign, RoundOptions, available};
use tandem_tests::workloads::{Scale, Version, Workload};

const USAGE: &str = "nfs_torture [--rounds N] [--seed S] [--round K] [--workload NAME[,NAME]] [--vers 3|4.1|4.2] \
                     [--faults none|switchover|kill|box|all] [--seconds S] [--guests 1|2] [--scale short|full] [--size SIZE] \
                     [--operations N]";

fn main() -> ExitCode {
    match execute() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute() -> Result<bool> {
    let campaign = parse(&std::env::args().skip(1).collect::<Vec<_>>())?;
    let needs = [Need::Namespaces, Need::KernelClient, Need::Program("mke2fs"), Need::Program("e2fsck")];
    if !require("nfs_torture", &needs) {
        bail!("this machine cannot run it");
    }
    let (_, missing) = available(campaign.options.version);
    for (name, why) in missing {
        println!("skipped: {name}: {why}");
        ensure!(campaign.options.only.iter().all(|workload| workload.name != name), "{name} was asked for");
    }
    let RoundOptions { seed, version, faults, .. } = campaign.options;
    println!("seed {seed}, vers {version}, faults {faults}, {} guests", campaign.guests);
    Ok(campaign.run() == 0)
}

fn parse(args: &[String]) -> Result<Campaign> {
    let mut campaign = Campaign {
        options: RoundOptions {
            seed: std::time::UNIX_EPOCH.elapsed().map_or(1, |now| now.as_secs()),
            scale: Scale::Full,
            version: Version::V42,
            faults: Faults::All,
            interval: Duration::from_secs(20),
            only: Vec::new(),
            replayed_operations: 2000,
        },
        rounds: 1,
        only_round: None,
        size: "8G".to_owned(),
        guests: 2,
    };
    let options = &mut campaign.options;
    for pair in args.chunks(2) {
        let [name, value] = pair else { bail!("{USAGE}") };
        let number = || value.parse::<u64>().with_context(|| format!("{name} {value}"));
        match name.as_str() {
            "--rounds" => campaign.rounds = number()?,
            "--seed" => options.seed = number()?,
            "--round" => campaign.only_round = Some(number()?),
            "--seconds" => options.interval = Duration::from_secs(number()?),
            "--operations" => options.replayed_operations = number()?,
            "--guests" => campaign.guests = u8::try_from(number()?)?,
            "--size" => campaign.size.clone_from(value),
            "--vers" => options.version = Version::from_name(value).context(USAGE)?,
            "--faults" => options.faults = Faults::from_name(value).context(USAGE)?,
            "--scale" => options.scale = if value == "short" { Scale::Short } else { Scale::Full },
            "--workload" => {
                for name in value.split(',') {
                    options.only.push(Workload::of_name(name).with_context(|| format!("no workload {name}"))?);
                }
            }
            _ => bail!("{USAGE}"),
        }
    }
    ensure!((1..=2).contains(&campaign.guests), "one guest or two");
    Ok(campaign)
}
