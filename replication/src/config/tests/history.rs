//! What a replica and a member remember: when they came, and until when they were in sync.

use super::*;

/// `registered_at`, `member_until` and, of a member, `since`.
fn history(world: &World, node: NodeId) -> (u64, u64, Option<u64>) {
    let replica = world.config().replicas[&node];
    let since = world.config().in_sync.get(&node).map(|member| member.since.0);
    (replica.registered_at.0, replica.member_until.0, since)
}

fn version(world: &World) -> u64 {
    world.config().version.0
}

/// Applies the command, which must leave every history as it is.
fn ok_without_trace(world: &mut World, command: VolumeCommand) {
    let all = |world: &World| world.config().replicas.keys().map(|node| history(world, *node)).collect::<Vec<_>>();
    let before = all(world);
    world.ok(command.clone());
    assert_eq!(all(world), before, "{command:?}");
}

#[test]
fn the_copies_of_a_new_volume_are_members_since_it_became_active() {
    let world = World::new();
    assert_eq!(version(&world), 3);
    for node in [A, B] {
        assert_eq!(history(&world, node), (1, 0, Some(3)));
    }
}

#[test]
fn a_dropped_member_was_one_until_the_version_before_and_admission_begins_anew() {
    let mut world = World::new();
    world.shrink(&[B]);
    assert_eq!(history(&world, A), (1, 0, Some(3)));
    assert_eq!(history(&world, B), (1, 3, None));
    ok_without_trace(&mut world, VolumeCommand::Renew { by: (A, RUN), epoch: Epoch(1) });
    world.restart(B, 200, Boot(6), &[]);
    world.restart(B, 100, BOOT, &[]);
    assert_eq!(history(&world, B), (1, 3, None), "later changes and new runs do not move it");
    world.ok(admit(B));
    assert_eq!(history(&world, B), (1, 0, Some(version(&world))));
    world.ok(VolumeCommand::Resign { by: (B, RUN) });
    assert_eq!(history(&world, B), (1, version(&world) - 1, None));
    assert_eq!(history(&world, A), (1, 0, Some(3)), "without a break");
}

#[test]
fn whoever_serves_alone_has_been_a_member_without_a_break_and_the_others_until_then() {
    let mut world = World::new();
    world.ok(VolumeCommand::TakeOver { by: (B, RUN), cold_ok: false, failed: false });
    assert_eq!(history(&world, B), (1, 0, Some(3)));
    assert_eq!(history(&world, A), (1, 3, None));

    let mut world = World::new();
    world.ok(VolumeCommand::Resume { by: (A, RUN), disk_id: disk(A), cold_ok: false, failed: false });
    assert_eq!(history(&world, A), (1, 0, Some(3)));
    assert_eq!(history(&world, B), (1, 3, None));
    ok_without_trace(
        &mut world,
        VolumeCommand::Resume { by: (A, RUN), disk_id: disk(A), cold_ok: false, failed: false },
    );
}

#[test]
fn a_handoff_and_a_prepared_force_leave_the_histories_as_they_are() {
    let mut world = World::new();
    ok_without_trace(&mut world, VolumeCommand::PrepareForce { target: B, attested: (A, RUN), token: 1 });
    ok_without_trace(&mut world, VolumeCommand::Handoff { by: (A, RUN), epoch: Epoch(1), to: B });
    ok_without_trace(&mut world, VolumeCommand::SetFeatureLevel { level: 2 });
}

#[test]
fn a_forced_primary_and_the_copies_left_behind_have_nothing_in_common() {
    let mut world = World::new();
    world.ok(VolumeCommand::AddReplica { node: C, disk_id: disk(C) });
    world.ok(admit(C));
    world.shrink(&[C]);
    let until = version(&world) - 1;
    assert_eq!(history(&world, C).1, until);
    world.ok(VolumeCommand::PrepareForce { target: B, attested: (A, RUN), token: 1 });
    world.ok(VolumeCommand::ForcePrimary { token: 1 });
    assert_eq!(history(&world, B), (1, 0, Some(version(&world))), "a member from now on only, though it was one");
    assert_eq!(history(&world, A), (1, 0, None), "the primary that was deposed");
    assert_eq!(history(&world, C), (4, 0, None), "a copy that was dropped before");
}

#[test]
fn a_copy_added_again_is_another_registration_without_a_past() {
    let mut world = World::new();
    world.shrink(&[B]);
    world.ok(VolumeCommand::RemoveReplica { node: B });
    world.ok(VolumeCommand::AddReplica { node: B, disk_id: disk(B) });
    assert_eq!((version(&world), history(&world, B)), (6, (6, 0, None)));
    world.ready(B);
    assert_eq!(history(&world, B), (6, 0, None), "its store stands: the registration is the same");
    world.ok(admit(B));
    assert_eq!(history(&world, B), (6, 0, Some(8)));
}

#[test]
fn a_copy_that_leaves_after_an_old_snapshot_was_read_left_while_the_others_were_members() {
    let mut world = World::new();
    for record in world.state.nodes.values_mut() {
        record.feature_levels = (1, 1);
    }
    world.state = ClusterState::from_snapshot(&world.state.to_snapshot()).expect("a snapshot");
    assert_eq!(history(&world, A), (0, 0, Some(0)), "nothing is known");
    world.shrink(&[B]);
    // 0 is before every version: whoever stays was a member when the other one left.
    assert_eq!((history(&world, A), history(&world, B)), ((0, 0, Some(0)), (0, 3, None)));
}
