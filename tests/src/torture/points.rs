//! Fault points: a process is killed at each of its durable steps, and everything acknowledged is still there.
//!
//! A first run lists the points that a short script passes (`storage-node/src/fault.rs`). Then, for each, a box is started
//! that kills itself there while the script runs; half of the times its power goes at that moment, too. Points that only a
//! new node passes are tried while a cluster is formed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::campaign::{Campaign, Plan, Rounds, Tally, options, round_rng, tell};
use super::disk::VolatileDisk;
use super::rig::{Rig, VOLUME, wait_for};
use crate::e2e::Cluster;
use crate::e2e::cluster::{ALPHA, BETA, WITNESS};

/// A volume that the script creates and deletes.
const EXTRA: &str = "extra";
/// How long one step of the script may take before the next begins.
const STEP_LIMIT: Duration = Duration::from_secs(8);
/// How long the load runs in a step of its own.
const LOAD_LIMIT: Duration = Duration::from_millis(300);
/// How long a command is repeated.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
const COMMAND_PAUSE: Duration = Duration::from_millis(50);
/// In the file of passed points, before the one where the process has killed itself.
const KILLED: &str = "killed ";
/// The randomness that chooses a sample belongs to no round.
const SAMPLE_STREAM: u64 = u64::MAX;

/// Points by name, with how often they were passed at least.
type Passed = BTreeMap<String, u64>;

/// Lists the points, and does `times` rounds for each; of them only those of the plan, unless it is for all.
pub fn run(plan: &Plan, times: u64) -> Result<Tally, String> {
    let (at_formation, later) = list(plan)?;
    let only_at_formation: Vec<&String> = at_formation.keys().filter(|name| !later.contains_key(*name)).collect();
    println!("points of a running node: {later:?}\npoints of a new node: {only_at_formation:?}");
    let sample = sample(plan, (later.len() + only_at_formation.len()) as u64 * times);
    let mut campaign = Campaign::new(plan);
    let wanted = |number: &u64| sample.contains(number);
    for time in 0..times {
        let first = time * (later.len() + only_at_formation.len()) as u64;
        for (number, (name, passed)) in (first..).zip(&later).filter(|(number, _)| wanted(number)) {
            campaign.round(&mut OnePoint { name: name.clone(), passed: *passed }, number);
        }
        campaign.end_cluster();
        let first = first + later.len() as u64;
        for (number, name) in (first..).zip(&only_at_formation).filter(|(number, _)| wanted(number)) {
            let started = Instant::now();
            let (told, outcome) = form_with_kill(plan, name, number);
            campaign.count(number, &told, started.elapsed(), outcome);
        }
    }
    Ok(campaign.end())
}

/// The numbers of the rounds to do.
fn sample(plan: &Plan, all: u64) -> BTreeSet<u64> {
    let mut numbers: Vec<u64> =
        (0..all).filter(|number| plan.rounds.is_empty() || plan.rounds.contains(number)).collect();
    if let Some(count) = plan.sample {
        numbers.shuffle(&mut round_rng(plan.seed, SAMPLE_STREAM));
        numbers.truncate(count as usize);
    }
    numbers.into_iter().collect()
}

/// A kill at one point of a running node.
#[derive(Debug)]
struct OnePoint {
    name: String,
    passed: u64,
}

impl Rounds for OnePoint {
    const FAULTS: &'static str = "kills";

    fn round(&mut self, rig: &mut Rig, rng: &mut ChaCha8Rng, told: &mut String) -> Result<u64, String> {
        // Early passes are each special, later ones alike.
        let count = rng.random_range(1..=self.passed.min(6));
        let victim = if rng.random() { ALPHA } else { BETA };
        let name = rig.cluster.nodes[victim].name.clone();
        tell(told, format_args!("{name} at {} pass {count}", self.name));
        let path = rig.cluster.home().join(format!("points-{}-{name}", self.name));
        let _ = std::fs::remove_file(&path);
        rig.kill(&[victim]);
        let armed = [list_variable(&path), ("TANDEM_FAULT_POINT".to_owned(), format!("{}:{count}", self.name))];
        rig.power_on_with(victim, false, &armed);
        let killed = || std::fs::read_to_string(&path).is_ok_and(|text| text.contains(KILLED));
        exercise(rig, victim, &killed);
        let reached = killed();
        match reached {
            true if rng.random() => cut(rig, victim, rng, told)?,
            true => tell(told, format_args!("power stays")),
            false => tell(told, format_args!("not reached")),
        }
        rig.wait_healthy()?;
        remove_extra(rig)?;
        rig.check()?;
        Ok(u64::from(reached))
    }
}

/// Cuts the power of a box. Its peer has everything only if it is an in-sync member.
fn cut(rig: &mut Rig, victim: usize, rng: &mut impl Rng, told: &mut String) -> Result<(), String> {
    rig.load.ledger().power_cut();
    rig.kill(&[victim]);
    let fates = rig.cut(victim, rng.random())?;
    tell(told, format_args!("power cut ({fates})"));
    if !rig.is_surely_in_sync(ALPHA + BETA - victim) {
        rig.load.ledger().power_lost();
        tell(told, format_args!("unflushed writes excused"));
    }
    rig.load.ledger().power_back();
    rig.power_on(victim, true);
    Ok(())
}

/// The script: everything that makes a node write durably, until `done`.
fn exercise(rig: &mut Rig, victim: usize, done: &dyn Fn() -> bool) {
    let other = ALPHA + BETA - victim;
    let [victim_name, other_name] = [victim, other].map(|index| rig.cluster.nodes[index].name.clone());
    let switchover = |to: &str| ["volume", "switchover", VOLUME, "--timeout", "5", "--to", to].join(" ");
    let steps = [
        format!("volume create {EXTRA} --size 4M --node {other_name} --node {victim_name}"),
        switchover(&victim_name),
        switchover(&other_name),
        format!("volume delete {EXTRA} --yes"),
    ];
    wait_for(STEP_LIMIT, || done() || rig.is_healthy());
    for step in steps {
        if wait_for(LOAD_LIMIT, done) {
            return;
        }
        // Commands may fail: the node that shall obey may be dead.
        let _ = rig.cluster.cli(other, &step.split(' ').collect::<Vec<_>>());
        wait_for(STEP_LIMIT, || done() || rig.is_healthy());
    }
    if wait_for(LOAD_LIMIT, done) {
        return;
    }
    // A takeover: only that raises the fence.
    rig.kill(&[other]);
    wait_for(STEP_LIMIT, || {
        done() || rig.cluster.volume_at(victim, VOLUME).is_some_and(|state| state.primary == victim_name)
    });
    rig.power_on(other, false);
    wait_for(STEP_LIMIT, || done() || rig.is_healthy());
}

/// Deletes the extra volume, if it is there.
fn remove_extra(rig: &Rig) -> Result<(), String> {
    let deadline = Instant::now() + COMMAND_LIMIT;
    loop {
        let list = rig.cluster.cli(ALPHA, &["volume", "list"]);
        if list.code == 0 && !list.stdout.contains(&format!("\"{EXTRA}\"")) {
            return Ok(());
        }
        let outcome = rig.cluster.cli(ALPHA, &["volume", "delete", EXTRA, "--yes"]);
        if Instant::now() >= deadline {
            return Err(format!("a volume whose making was interrupted cannot be deleted: {}", outcome.stderr));
        }
        std::thread::sleep(COMMAND_PAUSE);
    }
}

/// What alpha passes while a cluster is formed, and what it passes in the script.
fn list(plan: &Plan) -> Result<(Passed, Passed), String> {
    let mut formation = None;
    let started = Rig::start_with(&options(plan, 0), |cluster, _| {
        let path = cluster.home().join("points-formation");
        cluster.nodes[ALPHA].environment.push(list_variable(&path));
        cluster.form();
        cluster.create_volume(VOLUME, &plan.size_bytes.to_string());
        formation = Some(path);
    });
    let mut rig = started.map_err(|error| error.to_string())?;
    let at_formation = formation.map(|path| read_list(&path)).unwrap_or_default();
    let path = rig.cluster.home().join("points-script");
    rig.kill(&[ALPHA]);
    rig.power_on_with(ALPHA, false, &[list_variable(&path)]);
    exercise(&mut rig, ALPHA, &|| false);
    rig.wait_healthy()?;
    rig.check()?;
    let later = read_list(&path);
    match later.is_empty() {
        true => Err("no fault point is passed: the program under test was built without them".to_owned()),
        false => Ok((at_formation, later)),
    }
}

/// Forms a cluster whose alpha kills itself at a point on the way.
fn form_with_kill(plan: &Plan, name: &str, number: u64) -> (String, Result<u64, String>) {
    let mut rng = round_rng(plan.seed, number);
    let mut told = String::new();
    tell(&mut told, format_args!("alpha at {name} while the cluster is formed"));
    let mut formed = Ok(());
    let mut killed = false;
    let power = rng.random();
    let started = Rig::start_with(&options(plan, number), |cluster, disks| {
        let path = cluster.home().join("points-formation");
        let plain = cluster.nodes[ALPHA].environment.clone();
        let point = ("TANDEM_FAULT_POINT".to_owned(), format!("{name}:1"));
        cluster.nodes[ALPHA].environment.extend([list_variable(&path), point]);
        let died = || std::fs::read_to_string(&path).is_ok_and(|text| text.contains(KILLED));
        formed = form_patiently(cluster, &plan.size_bytes.to_string(), |cluster| {
            if !killed && died() {
                killed = true;
                if power {
                    cluster.nodes[ALPHA].kill();
                    cut_one(&mut disks[ALPHA], rng.random());
                    cluster.nodes[ALPHA].environment = vec![(plain[0].0.clone(), format!("{}f", &plain[0].1[..35]))];
                    cluster.nodes[ALPHA].start_unwatched();
                }
            }
        });
    });
    tell(&mut told, format_args!("killed: {killed}, power cut: {power}"));
    let outcome = started.map_err(|error| error.to_string()).and_then(|mut rig| {
        let checked = formed.and_then(|()| {
            rig.wait_healthy()?;
            rig.check()?;
            rig.panic().map_or(Ok(u64::from(killed)), Err)
        });
        checked.map_err(|why| format!("{why}\n{}kept: {}", rig.logs(40), rig.keep()))
    });
    (told, outcome)
}

fn cut_one(disk: &mut VolatileDisk, seed: u64) {
    if let Err(error) = disk.cut(seed) {
        eprintln!("the power of a disk cannot be cut: {error}");
    }
}

/// Repeats what forms a cluster until all of it is done; `between` runs before each try.
fn form_patiently(cluster: &mut Cluster, size: &str, mut between: impl FnMut(&mut Cluster)) -> Result<(), String> {
    for node in &mut cluster.nodes {
        node.start_unwatched();
    }
    let member = cluster.nodes[ALPHA].addresses.admin.to_string();
    let create = ["volume", "create", VOLUME, "--size", size, "--node", "alpha", "--node", "beta"];
    let deadline = Instant::now() + COMMAND_LIMIT;
    let mut last = String::new();
    while Instant::now() < deadline {
        between(cluster);
        let mut obey = |at: usize, args: &[&str]| {
            let outcome = cluster.cli(at, args);
            if outcome.code != 0 {
                last = format!("{args:?}: {}", outcome.stderr.trim());
            }
            outcome
        };
        let nodes = obey(ALPHA, &["node", "list"]).stdout;
        if !nodes.contains("\"alpha\"") {
            obey(ALPHA, &["cluster", "init"]);
        } else if !nodes.contains("\"beta\"") {
            obey(BETA, &["cluster", "join", &member]);
        } else if !nodes.contains("\"witness\"") {
            obey(WITNESS, &["cluster", "join", &member]);
        } else if obey(ALPHA, &["volume", "show", VOLUME]).code != 0 {
            obey(ALPHA, &create);
        } else if cluster.volume(VOLUME).is_some_and(|state| state.level == "healthy" && state.in_sync.len() == 2) {
            return Ok(());
        }
        std::thread::sleep(COMMAND_PAUSE);
    }
    Err(format!("the cluster cannot be formed: {last}"))
}

fn list_variable(path: &Path) -> (String, String) {
    ("TANDEM_FAULT_LIST".to_owned(), path.display().to_string())
}

/// Reads lines `name count`; the highest count of each name is what was passed at least.
fn read_list(path: &Path) -> Passed {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let mut passed = Passed::new();
    for (name, count) in text.lines().filter_map(|line| line.split_once(' ')) {
        if let Ok(count) = count.parse::<u64>() {
            let most = passed.entry(name.to_owned()).or_default();
            *most = count.max(*most);
        }
    }
    passed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_points_takes_the_highest_count_of_each() {
        let home = tempfile::tempdir().expect("temporary directory");
        let path = home.path().join("list");
        std::fs::write(&path, "a.before 1\na.after 1\na.before 2\na.before 4\na.before 1\nkilled a.before 4\n")
            .expect("written");
        assert_eq!(read_list(&path), Passed::from([("a.before".to_owned(), 4), ("a.after".to_owned(), 1)]));
        assert_eq!(read_list(&home.path().join("none")), Passed::new());
    }
}
