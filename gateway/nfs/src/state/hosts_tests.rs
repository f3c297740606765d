//! Hosts: who is watched, who is told, and what of it comes back from records.

use super::*;
use crate::state::bounds::WAITERS_MAX;
use crate::state::holder::HOST_BYTES_MAX;
use crate::state::record::PAYLOAD_BYTES_MAX;

fn local() -> IpAddr {
    "192.0.2.250".parse().unwrap()
}

fn host(name: &str) -> Host {
    Host::new(name.as_bytes(), "192.0.2.1".parse().unwrap()).unwrap()
}

fn watch(hosts: &mut Hosts, name: &str, state: u32) -> bool {
    hosts.watch(&host(name), Monitor { local: local(), state, epoch: 1 }, |_| true)
}

fn range(first: u64, last: u64) -> ByteRange {
    ByteRange::between(first, last).unwrap()
}

fn wanted(name: &str, first: u64, last: u64) -> Wanted {
    let file = FileId { inode: filesystem::InodeNumber(12), generation: 1 };
    let holder = Holder::nlm(&host(name), 1, b"1").unwrap();
    Wanted { file, holder, range: range(first, last), kind: LockKind::Exclusive }
}

fn grant(name: &str, first: u64, last: u64) -> Grant {
    Grant { wanted: wanted(name, first, last), before: Vec::new() }
}

fn records(hosts: &Hosts) -> Vec<(RecordId, Option<Vec<u8>>)> {
    let mut records = Vec::new();
    hosts.records(|id, payload| records.push((id, payload)));
    records
}

#[test]
fn a_host_is_watched_once_and_what_it_says_later_is_kept() {
    let mut hosts = Hosts::default();
    assert!(watch(&mut hosts, "a", 0));
    hosts.commit();
    assert!(watch(&mut hosts, "a", 0));
    assert!(!hosts.is_changed(), "nothing new");
    assert!(watch(&mut hosts, "a", 3));
    assert!(hosts.is_changed());
    hosts.commit();
    assert!(watch(&mut hosts, "a", 0));
    assert!(!hosts.is_changed(), "it does not say so again");
    assert_eq!(hosts.monitor(&host("a")).map(|monitor| monitor.state), Some(3));
}

#[test]
fn a_restart_counts_once_and_only_that_of_a_host_that_is_watched() {
    let mut hosts = Hosts::default();
    watch(&mut hosts, "a", 3);
    assert!(!hosts.restarted(&host("a"), 3), "it had taken its locks in this state");
    assert!(hosts.restarted(&host("a"), 5));
    assert!(!hosts.restarted(&host("a"), 5), "said again");
    assert!(!hosts.restarted(&host("b"), 5));
    let elsewhere = Host::new(b"a", "192.0.2.66".parse().unwrap()).unwrap();
    assert!(!hosts.restarted(&elsewhere, 7), "its name alone is not it");
}

#[test]
fn a_full_list_forgets_who_has_nothing_and_refuses_when_all_have_something() {
    let mut hosts = Hosts::default();
    for number in 0..MONITORS_MAX {
        assert!(watch(&mut hosts, &number.to_string(), 0));
    }
    assert!(!watch(&mut hosts, "one more", 0));
    let monitor = Monitor { local: local(), state: 0, epoch: 1 };
    assert!(hosts.watch(&host("one more"), monitor, |other| *other != host("77")));
    assert!(hosts.monitor(&host("77")).is_none());
    assert_eq!(hosts.len(), MONITORS_MAX);
}

#[test]
fn hosts_and_grants_come_back_from_their_records_and_fit() {
    let mut hosts = Hosts::default();
    let long = Host::new(&[b'x'; HOST_BYTES_MAX], "2001:db8::1".parse().unwrap()).unwrap();
    hosts.watch(&long, Monitor { local: local(), state: u32::MAX, epoch: 9 }, |_| true);
    watch(&mut hosts, "a", 3);
    let holder = Holder::nlm(&long, u32::MAX, &[7; 1024]).unwrap();
    let before: Vec<_> = (0..GRANT_BEFORE_MAX as u64)
        .map(|at| HeldRange { range: range(at * 2, at * 2), kind: LockKind::Shared })
        .collect();
    let number = hosts.grant(Grant { wanted: Wanted { holder, ..wanted("a", 0, u64::MAX) }, before }).unwrap();
    let written = records(&hosts);
    assert!(written.iter().all(|(_, payload)| payload.as_ref().is_some_and(|it| it.len() <= PAYLOAD_BYTES_MAX)));
    let found = || written.iter().filter_map(|(id, payload)| Some((*id, payload.as_deref()?)));
    let again = Hosts::restore(found()).unwrap();
    assert_eq!(again.monitor(&long), hosts.monitor(&long));
    assert_eq!(again.granted(number), hosts.granted(number));
    let salvaged = Hosts::salvage(found());
    assert_eq!((salvaged.len(), salvaged.grants().count()), (2, 0), "locks are lost, who had them is known");
    assert!(written.iter().all(|(id, _)| salvaged.is_kept_in(*id) == (id.kind == MONITOR)));
    for (id, payload) in found() {
        for length in 0..payload.len() {
            assert!(Hosts::restore([(id, &payload[..length])]).is_err());
            assert!(Hosts::salvage([(id, &payload[..length])]).is_empty());
        }
    }
}

#[test]
fn whoever_lost_its_locks_is_unaware_until_it_is_told() {
    let mut hosts = Hosts::default();
    watch(&mut hosts, "a", 3);
    watch(&mut hosts, "b", 3);
    assert_eq!(hosts.unaware(1).count(), 0);
    assert_eq!(hosts.unaware(2).count(), 2);
    hosts.told(&host("a"), 2);
    assert_eq!(hosts.unaware(2).map(|(host, _)| host.clone()).collect::<Vec<_>>(), [host("b")]);
    assert_ne!(state_number(1), state_number(2));
    assert!([0, 1, u32::MAX].iter().all(|epoch| state_number(*epoch) % 2 == 1));
}

#[test]
fn who_was_answered_about_a_range_is_not_told_of_it() {
    let mut hosts = Hosts::default();
    let mut granted = grant("a", 10, 19);
    granted.before = vec![HeldRange { range: range(10, 12), kind: LockKind::Shared }];
    let number = hosts.grant(granted).unwrap();
    let Wanted { file, holder, .. } = wanted("a", 0, 0);
    hosts.answered(file, &holder, range(0, 9));
    assert!(hosts.granted(number).is_some_and(|grant| !grant.before.is_empty()));
    hosts.answered(file, &holder, range(0, 10));
    assert!(hosts.granted(number).is_some_and(|grant| grant.before.is_empty()), "it gave that up");
    hosts.answered(file, &holder, range(0, 100));
    assert_eq!(hosts.granted(number), None);
    let number = hosts.grant(grant("a", 0, 9)).unwrap();
    assert_eq!(hosts.cancel(&wanted("a", 0, 8)), None);
    assert_eq!(hosts.cancel(&wanted("a", 0, 9)), Some(grant("a", 0, 9)));
    assert_eq!(hosts.granted(number), None);
    assert_ne!(hosts.grant(grant("a", 0, 9)), Some(number), "a late answer is of no other grant");
}

#[test]
fn grants_are_bounded_for_a_host_and_for_all() {
    let mut hosts = Hosts::default();
    for at in 0..GRANTS_PER_HOST_MAX as u64 {
        assert!(hosts.grant(grant("a", at, at)).is_some());
    }
    assert_eq!(hosts.grant(grant("a", 100, 100)), None);
    let mut given = GRANTS_PER_HOST_MAX;
    for other in 0..WAITERS_MAX {
        given += usize::from(hosts.grant(grant(&other.to_string(), 0, 0)).is_some());
    }
    assert_eq!(given, GRANTS_MAX);
    hosts.drop_grants(&host("a"));
    assert_eq!(hosts.grants().count(), GRANTS_MAX - GRANTS_PER_HOST_MAX);
    let too_much = vec![HeldRange { range: range(0, 0), kind: LockKind::Shared }; GRANT_BEFORE_MAX + 1];
    assert_eq!(hosts.grant(Grant { before: too_much, ..grant("a", 0, 0) }), None);
}
