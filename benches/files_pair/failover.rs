//! How long files are away when the primary of a real pair is killed under load: from the kill to the role, from the role to
//! the first answers, and what of it is the engine's recovery, which the node's log tells.
//!
//! It owns a cluster of real processes. All nodes and the load share one machine and its clock, so that times of logs and of
//! this program can be compared.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use proto::admin as pb;
use serde_json::{Value, json};
use tandem_tests::e2e::cluster::{ALPHA, BETA};
use tandem_tests::e2e::{Cluster, ClusterOptions};
use tokio::runtime::Runtime;

use super::load::{self, Acknowledged};
use super::{Files, client};

const VOLUME: &str = "vol";
/// As large as volumes are made for; it is sparse.
const SIZE: &str = "100G";
/// Between two attempts of a client that is refused.
const PAUSE: Duration = Duration::from_millis(2);
/// The longest that files may be away.
const LIMIT: Duration = Duration::from_secs(30);
const MS_OF_DAY: f64 = 86_400_000.0;

/// What one failover took, in milliseconds.
struct Failover {
    /// From the kill until the other box is primary, by its log.
    kill_to_role: f64,
    /// From then until a client has the answer to a stat; the engine is opened for it.
    role_to_answer: f64,
    /// Until a directory that it made is durable.
    role_to_change: f64,
    /// From the kill to the first answer.
    kill_to_answer: f64,
    recovery: Recovery,
    /// What the load had acknowledged before.
    operations: u64,
}

/// What the line of the log says that tells of an open filesystem.
struct Recovery {
    /// Transactions and blocks that were replayed.
    transactions: u64,
    blocks: u64,
    /// Replay of the log and search for the state ring, and files without names, in milliseconds.
    log: f64,
    orphans: f64,
}

/// Kills the primary `count` times, each time after `time` of load, and writes the figures to `output`.
pub(crate) fn run(count: usize, time: Duration, directory: &Path, output: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let options = ClusterOptions { directory: Some(directory.to_owned()), ..ClusterOptions::default() };
    let mut cluster = Cluster::start(&options);
    let create = ["volume", "create", VOLUME, "--size", SIZE, "--node", "alpha", "--node", "beta", "--fs", "ext4"];
    cluster.must(ALPHA, &create);
    cluster.wait_healthy(VOLUME);
    println!("load {}", fs::read_to_string("/proc/loadavg")?.trim());
    let mut all = Vec::new();
    for round in 0..count {
        let failover = fail_over(&mut cluster, &runtime, &format!("round-{round}"), time)?;
        let Failover { kill_to_role, role_to_answer, role_to_change, operations, recovery, .. } = &failover;
        println!(
            "{round}: {operations} operations; role after {kill_to_role:.0} ms, then an answer after {role_to_answer:.1} ms, \
             a change after {role_to_change:.1} ms; {} blocks in {} transactions, log {:.1} ms, orphans {:.1} ms",
            recovery.blocks, recovery.transactions, recovery.log, recovery.orphans
        );
        all.push(failover);
    }
    println!("load {}", fs::read_to_string("/proc/loadavg")?.trim());
    let checked = cluster.must(primary(&cluster)?, &["fs", "check", VOLUME]);
    if checked["clean"] != true {
        bail!("e2fsck finds the filesystem damaged: {checked}");
    }
    report(&all, output)
}

/// The index of the primary on record.
fn primary(cluster: &Cluster) -> Result<usize> {
    let name = cluster.volume(VOLUME).context("no node answers")?.primary;
    cluster.nodes.iter().position(|node| node.name == name).with_context(|| format!("{name} is no node"))
}

/// One round, which ends with both boxes in sync again.
fn fail_over(cluster: &mut Cluster, runtime: &Runtime, round: &str, time: Duration) -> Result<Failover> {
    let old = primary(cluster)?;
    let new = if old == ALPHA { BETA } else { ALPHA };
    let address = |at: usize| cluster.nodes[at].addresses.admin.to_string();
    let files = |at| {
        let client = runtime.block_on(client(&address(at)))?;
        anyhow::Ok(Files { client, volume: VOLUME.to_owned() })
    };
    let (before, after) = (files(old)?, files(new)?);
    let log_before = cluster.nodes[new].log().len();
    let loading = runtime.spawn({
        let (files, round) = (before, round.to_owned());
        async move { load::run(&files, &round, time + LIMIT).await }
    });
    std::thread::sleep(time);
    let (killed, killed_at) = (Instant::now(), ms_of_day(SystemTime::now()));
    let victim = &mut cluster.nodes[old];
    let (answered, changed) = std::thread::scope(|scope| {
        scope.spawn(|| victim.kill());
        runtime.block_on(first_answers(&after, killed))
    })?;
    let known: Acknowledged = runtime.block_on(loading)??;
    runtime.block_on(load::check(&after, round, &known))?;
    let log = cluster.nodes[new].log();
    let log = log.get(log_before..).context("the log has become shorter")?;
    let role = log.lines().rfind(|line| line.contains("-> primary") && !line.contains("-> primary,"));
    let role_at = role.and_then(line_ms_of_day).context("no line of the log tells of the role")?;
    let kill_to_role = (role_at - killed_at).rem_euclid(MS_OF_DAY);
    let opened = log.lines().rfind(|line| line.contains("filesystem open")).context("the filesystem was not opened")?;
    let recovery = Recovery::from_line(opened).with_context(|| format!("cannot read {opened:?}"))?;
    cluster.nodes[old].start();
    cluster.wait_healthy(VOLUME);
    let [kill_to_answer, kill_to_change] = [answered, changed].map(|took: Duration| took.as_secs_f64() * 1e3);
    Ok(Failover {
        kill_to_role,
        role_to_answer: kill_to_answer - kill_to_role,
        role_to_change: kill_to_change - kill_to_role,
        kill_to_answer,
        recovery,
        operations: known.operations,
    })
}

/// How long after the kill a node answers a stat, and then makes a directory durably.
async fn first_answers(files: &Files, killed: Instant) -> Result<(Duration, Duration)> {
    let (volume, client) = (&files.volume, &files.client);
    loop {
        let request = pb::StatRequest { volume: volume.clone(), path: b"/".to_vec(), follow: false };
        if client.clone().stat(request).await.is_ok() {
            break;
        }
        pause(killed).await?;
    }
    let answered = killed.elapsed();
    for number in 0.. {
        let path = format!("/after-{:.0}-{number}", ms_of_day(SystemTime::now())).into_bytes();
        let request = pb::MakeDirectoryRequest { volume: volume.clone(), path, parents: false };
        if client.clone().make_directory(request).await.is_ok() {
            break;
        }
        pause(killed).await?;
    }
    Ok((answered, killed.elapsed()))
}

async fn pause(killed: Instant) -> Result<()> {
    if killed.elapsed() > LIMIT {
        bail!("no answer within {LIMIT:?}");
    }
    tokio::time::sleep(PAUSE).await;
    Ok(())
}

impl Recovery {
    fn from_line(line: &str) -> Option<Self> {
        let field = |name: &str| line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        Some(Self {
            transactions: field("transactions")?.parse().ok()?,
            blocks: field("blocks")?.parse().ok()?,
            log: field("log_ms")?.parse().ok()?,
            orphans: field("orphans_ms")?.parse().ok()?,
        })
    }

    fn total(&self) -> f64 {
        self.log + self.orphans
    }
}

fn ms_of_day(time: SystemTime) -> f64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs_f64() * 1e3 % MS_OF_DAY
}

/// The time of day of a line of a log, which begins with date and time in UTC.
fn line_ms_of_day(line: &str) -> Option<f64> {
    let (_, time) = line.split_whitespace().next()?.trim_end_matches('Z').split_once('T')?;
    let mut parts = time.splitn(3, ':').map(str::parse::<f64>);
    let mut part = || parts.next()?.ok();
    Some(((part()? * 60.0 + part()?) * 60.0 + part()?) * 1e3)
}

type Figure = fn(&Failover) -> f64;

/// Prints the table and writes the figures.
fn report(all: &[Failover], output: &Path) -> Result<()> {
    let phases: [(&str, &str, Figure); 6] = [
        ("kill_to_role_ms", "from the kill to the role", |one| one.kill_to_role),
        ("role_to_answer_ms", "from the role to the first answer (stat)", |one| one.role_to_answer),
        ("role_to_change_ms", "from the role to the first durable change (mkdir)", |one| one.role_to_change),
        ("kill_to_answer_ms", "from the kill to the first answer", |one| one.kill_to_answer),
        ("recovery_ms", "the engine's recovery: log, ring, orphans", |one| one.recovery.total()),
        ("replayed_blocks", "blocks replayed", |one| one.recovery.blocks as f64),
    ];
    let mut summary = serde_json::Map::new();
    println!("\n| {} failovers, ms | p50 | p99 | max |\n|---|---|---|---|", all.len());
    for (key, what, figure) in phases {
        let mut values: Vec<f64> = all.iter().map(figure).collect();
        values.sort_by(f64::total_cmp);
        let at = |part: f64| values.get(((values.len() as f64 * part).ceil() as usize).saturating_sub(1)).copied();
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|part| at(part).unwrap_or_default());
        println!("| {what} | {p50:.1} | {p99:.1} | {max:.1} |");
        summary.insert(key.to_owned(), json!({ "p50": p50, "p99": p99, "max": max, "runs": values }));
    }
    let operations: u64 = all.iter().map(|one| one.operations).sum();
    println!("\n{operations} acknowledged operations are there; e2fsck: clean");
    summary.insert("operations".to_owned(), json!(operations));
    summary.insert("volume_size".to_owned(), json!(SIZE));
    fs::write(output, serde_json::to_string_pretty(&Value::Object(summary))? + "\n")?;
    println!("wrote {}", output.display());
    Ok(())
}
