//! Programs work on a volume that a Linux kernel has mounted over NFS, first undisturbed and then through switchovers, dead
//! workers and dead boxes: the short form of `cargo xtask torture --nfs N`.

use std::time::Duration;

use tandem_tests::e2e::kernel_client::Kernel;
use tandem_tests::e2e::skip::skip;
use tandem_tests::e2e::{Need, eventually, eventually_some, require};
use tandem_tests::workloads::faults::Faults;
use tandem_tests::workloads::locks::HeldLocks;
use tandem_tests::workloads::rig::Rig;
use tandem_tests::workloads::round::{RoundFigures, RoundOptions, available, round};
use tandem_tests::workloads::{Scale, Version, Workload};

const NEEDS: &[Need] = &[Need::Namespaces, Need::UserModeLinux, Need::Program("mke2fs"), Need::Program("e2fsck")];
const GUESTS: u8 = 2;
const SIZE: &str = "2G";
const SEED: u64 = 1;
/// How long a judge may take to notice.
const NOTICE_LIMIT: Duration = Duration::from_secs(60);
/// Between faults: a round is to have several in half a minute.
const INTERVAL: Duration = Duration::from_secs(5);

/// The cluster's directory goes when nothing was found.
fn end(rig: Rig) {
    let home = rig.home().to_owned();
    drop(rig);
    std::fs::remove_dir_all(home).expect("the cluster's directory");
}

/// Those of these that the machine can run; the others are reported as left out.
fn chosen(test: &str, version: Version, names: &[&str]) -> Vec<&'static Workload> {
    let (can, cannot) = available(version);
    for (name, why) in cannot.iter().filter(|(name, _)| names.contains(name)) {
        skip(&format!("{test}/{name}"), why);
    }
    can.into_iter().filter(|workload| names.contains(&workload.name)).collect()
}

fn one_round(test: &str, version: Version, faults: Faults, names: &[&str], operations: u64) -> Option<RoundFigures> {
    if !require(test, NEEDS) {
        return None;
    }
    assert_eq!(Kernel::choose(), Ok(Kernel::UserMode));
    let options = RoundOptions {
        seed: SEED,
        scale: Scale::Short,
        version,
        faults,
        interval: INTERVAL,
        only: chosen(test, version, names),
        replayed_operations: operations,
    };
    let mut rig = Rig::start(SIZE, GUESTS, version);
    let home = rig.home().to_owned();
    let figures = round(&mut rig, &options, 0).unwrap_or_else(|why| panic!("{why}\nkept: {}", home.display()));
    end(rig);
    println!("{figures}");
    Some(figures)
}

#[test]
fn programs_work_on_a_mounted_volume() {
    let names = [
        "locks",
        "sqlite",
        "compile",
        "git",
        "fio",
        "dbench",
        "pjdfstest",
        "fsx",
        "many_files",
        "sparse",
        "punch",
        "xattrs",
    ];
    one_round("programs_work_on_a_mounted_volume", Version::V42, Faults::None, &names, 0);
}

#[test]
fn programs_work_on_a_volume_mounted_with_4_1() {
    let names = ["locks", "sqlite", "fsx", "sparse"];
    one_round("programs_work_on_a_volume_mounted_with_4_1", Version::V41, Faults::None, &names, 0);
}

#[test]
fn programs_notice_no_takeover() {
    let names = ["locks", "sqlite", "fsx", "compile"];
    let figures = one_round("programs_notice_no_takeover", Version::V42, Faults::All, &names, 0);
    if let Some(figures) = figures {
        assert!(figures.faults.iter().sum::<u64>() > 0, "{figures}");
        assert!(figures.looks > 0, "{figures}");
    }
}

#[test]
fn names_change_exactly_once_through_takeovers() {
    let figures =
        one_round("names_change_exactly_once_through_takeovers", Version::V42, Faults::All, &["exactly_once"], 3000);
    if let Some(figures) = figures {
        assert!(figures.faults.iter().sum::<u64>() > 0, "{figures}");
        assert!(figures.replayed.operations >= 3000 && figures.replayed.replays > 0, "{figures}");
        assert!(figures.replayed.replays_after_takeover > 0, "{figures}");
    }
}

#[test]
fn a_lock_let_go_and_a_name_lost_are_noticed() {
    let test = "a_lock_let_go_and_a_name_lost_are_noticed";
    let Some(workload) = Workload::of_name("exactly_once").filter(|_| require(test, NEEDS)) else { return };
    let mut rig = Rig::start(SIZE, 1, Version::V42);
    rig.mount();
    let held = HeldLocks::start(&mut rig);
    std::fs::write(rig.guests[0].share().join("release"), "").expect("the shared directory");
    eventually(NOTICE_LIMIT, "the other client notices", || held.has_failed());
    let said = held.finish(&mut rig).expect_err("the locks are free");
    assert!(said.contains("was lost"), "{said}");

    let work = rig.begin(workload, 0, Scale::Short, SEED);
    eventually_some(workload.limit, "the work ends", || rig.ended(&work)).expect("nothing is wrong");
    for spoilt in [false, true] {
        if spoilt {
            rig.guests[0].must("cd /mnt/nfs/exactly_once-0/w1; rm -r \"$(ls | head -n 1)\"", NOTICE_LIMIT);
        }
        let verification = rig.begin_verification(workload, 0, Scale::Short, SEED);
        let verdict = eventually_some(workload.limit, "the verification ends", || rig.ended(&verification));
        assert_eq!(verdict.is_err(), spoilt, "{verdict:?}");
    }
    rig.unmount();
    end(rig);
}
