//! Admit, its loss and its late news; solo writes and a forced primary.

use replication::config::{NfsCommand, VolumeCommand};
use tandem_tests::sim::scenario::{Answer, Scenario};

use proto::NodeId;

/// Drops node 2 and lets node 1 write alone.
fn diverged() -> Scenario {
    let mut s = Scenario::new();
    s.cut(1, 2);
    s.run_until("the primary drops the secondary", 5_000, |s| s.in_sync() == [1]);
    for block in 0..8 {
        s.write_done(1, block, 50 + block as u32);
    }
    s
}

/// The Admit has committed, but the primary is cut off before it learns so: its writes need the new member already.
#[test]
fn admit_that_the_cut_off_primary_has_not_learnt() {
    let mut s = diverged();
    s.join(1, 2);
    s.run_until("the Admit has committed somewhere", 30_000, |s| s.in_sync() == [1, 2]);
    let learnt = s.in_sync_at(1).len() == 2;
    s.isolate(1);
    let write = s.write(1, 3, 99);
    s.run(500);
    assert_ne!(s.answer(write), Answer::Done, "learnt: {learnt}; the member has not got it");
    s.served_by(2, 20_000);
    s.write_done(2, 3, 100);
    s.finish();
}

/// The Admit was proposed, and its target dies with what it had: it must not come back as a member that lacks writes.
#[test]
fn admit_that_vanishes_while_its_target_dies() {
    for delay in [0, 1, 2, 4, 8] {
        let mut s = diverged();
        s.join(1, 2);
        s.run_until("node 2 is about to be admitted", 30_000, |s| {
            let status = s.world.boxes[1].clock.read(s.world.now);
            let run = s.world.boxes[1].volume(0);
            run.is_some_and(|run| run.replica.status(proto::Timestamp(status)).role == "presync")
        });
        s.isolate(3);
        s.run(delay);
        s.power_off(2);
        let write = s.write(1, 3, 99);
        s.run(500);
        s.rejoin(3);
        s.run_until("the write is done", 20_000, |s| s.answer(write) == Answer::Done);
        s.power_on(2);
        s.both_in_sync();
        s.finish();
    }
}

/// Solo writes of one side, then a forced primary on the other: the solo writes are given up, and said so.
#[test]
fn solo_writes_followed_by_force_primary_on_the_other_side() {
    let mut s = diverged();
    s.power_off(1);
    s.world.boxes[0].held_off = true;
    s.run(3_000);
    assert_eq!(s.primary(), 1, "an outdated copy does not promote itself");
    let attested = s.world.volumes[0].newest.as_ref().map(|c| c.replicas[&NodeId(1)].incarnation).unwrap_or_default();
    let command = VolumeCommand::PrepareForce { target: NodeId(2), attested: (NodeId(1), attested), token: 5 };
    s.world.operator_commands(0, command);
    s.run(500);
    s.world.operator_commands(0, VolumeCommand::ForcePrimary { token: 5 });
    s.served_by(2, 10_000);
    assert_eq!(s.losses(), 1, "a forced primary says that writes may be missing");
    s.write_done(2, 3, 99);
    s.world.boxes[0].held_off = false;
    s.join(1, 2);
    s.power_on(1);
    s.both_in_sync();
    assert_eq!(s.read_done(2, 3), [99, 99]);
    s.finish();
}

/// Changes of a volume's NFS service come in while its primary dies and returns: they reach every node, and the failover
/// takes place as if there were none.
#[test]
fn changes_of_an_nfs_service_reach_every_node_and_are_in_no_failovers_way() {
    let mut s = Scenario::new();
    s.write_done(1, 3, 50);
    let serve = |s: &mut Scenario, port| s.world.operator_serves(0, NfsCommand::Serve { addresses: Vec::new(), port });
    serve(&mut s, 2049);
    s.run_until("every node knows the service", 10_000, |s| (1..=3).all(|node| s.nfs_port_at(node) == Some(2049)));
    let version = s.world.volumes[0].newest.as_ref().map(|config| config.version);
    s.power_off(1);
    for port in 3000..3100 {
        serve(&mut s, port);
        s.run(50);
    }
    assert_eq!(s.primary(), 2, "a failover within five seconds");
    assert!(s.nfs_port_at(2).is_some_and(|port| port > 3080), "changes took effect meanwhile");
    s.write_done(2, 3, 51);
    s.power_on(1);
    s.both_in_sync();
    let port = s.nfs_port_at(2);
    s.run_until("the node that was off has caught up", 10_000, |s| s.nfs_port_at(1) == port);
    let newest = s.world.volumes[0].newest.as_ref().map(|config| config.version);
    // TakeOver, Admit, and at most one try of each that came to nothing.
    let moved = newest.zip(version).map(|(newest, version)| newest.0 - version.0);
    assert!(
        moved.is_some_and(|moved| moved <= 4),
        "{moved:?}: a hundred changes of the service are none of the volume"
    );
    s.finish();
}
