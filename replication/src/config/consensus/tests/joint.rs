//! Changes of the voters by joint consensus, through crashes, partitions and changes of the leader.

use raft::eraftpb::ConfChangeTransition;

use super::*;

impl Cluster {
    /// A node that joins: an empty log.
    fn newcomer(&mut self, id: u64) {
        self.disks.insert(id, Restored::default());
        self.restart(id);
    }

    /// The node is gone; its disk stays.
    fn kill(&mut self, id: u64) {
        self.nodes.remove(&id);
    }

    /// Asks `at` for a vote for `node`.
    fn add(&mut self, at: u64, node: u64) -> Option<Standing> {
        let standing = self.nodes.get_mut(&at).and_then(|consensus| consensus.add_voter(NodeId(node)).ok());
        self.turn(at);
        standing
    }

    fn remove(&mut self, at: u64, node: u64) -> Option<bool> {
        let gone = self.nodes.get_mut(&at).and_then(|consensus| consensus.remove_voter(NodeId(node)).ok());
        self.turn(at);
        gone
    }

    /// Asks as the driver does: again after each turn, before anything is heard. Gives the turns until asking causes no
    /// more of them.
    fn ask_until_quiet(&mut self, at: u64, ask: impl Fn(&mut Consensus)) -> usize {
        for turns in 0..100 {
            ask(self.nodes.get_mut(&at).unwrap());
            let before = self.network.len();
            self.turn(at);
            if self.network.len() == before {
                return turns;
            }
        }
        panic!("asking never ends (seed {})", self.seed);
    }

    /// A crash inside a turn: the write is done or not, and nobody hears of it.
    fn crash_within_a_turn(&mut self, id: u64) {
        if let Some(turn) = self.nodes.get_mut(&id).and_then(Consensus::ready) {
            self.network.extend(turn.messages);
            if self.roll(2) == 0 {
                write(self.disks.get_mut(&id).unwrap(), &turn.persist);
            }
        }
        self.restart(id);
    }

    fn voters(&self, id: u64) -> Vec<u64> {
        self.nodes[&id].members().into_iter().filter(|(_, voter)| *voter).map(|(id, _)| id.0).collect()
    }

    fn is_settled(&self, voters: &[u64]) -> bool {
        voters.iter().all(|id| self.nodes.get(id).is_some_and(|node| !node.is_joint()) && self.voters(*id) == voters)
    }

    /// No two leaders in a term, ever.
    fn note_leaders(&self, leaders: &mut BTreeMap<u64, u64>) {
        for (id, node) in self.nodes.iter().filter(|(_, node)| node.is_leader()) {
            let first = leaders.entry(node.term()).or_insert(*id);
            assert_eq!(first, id, "two leaders in term {} (seed {})", node.term(), self.seed);
        }
    }

    /// Every node applied the same at each index, and the newest state has it all.
    fn assert_one_history(&self) {
        let mut by_index: BTreeMap<u64, &str> = BTreeMap::new();
        for line in &self.trace {
            let words: Vec<&str> = line.splitn(4, ' ').collect();
            let known = by_index.entry(words[2].parse().unwrap()).or_insert(words[3]);
            assert_eq!(*known, words[3], "index {} (seed {})", words[2], self.seed);
        }
        let applied = self.nodes.values().map(Consensus::applied).max().unwrap();
        assert!(by_index.keys().all(|index| *index <= applied), "a committed entry is lost (seed {})", self.seed);
    }
}

/// The driver asks again whenever a turn ends, and passing a wish on to the leader is a turn: it must not take for ever,
/// or the follower never hears the leader again.
#[test]
fn a_follower_that_asks_after_every_turn_comes_to_rest_and_gets_what_it_asks_for() {
    for seed in 0..20 {
        let mut cluster = Cluster::new(&[1, 2, 3], 500 + seed);
        let leader = cluster.elect();
        cluster.ticks(5);
        let mut followers = (1..=3).filter(|id| *id != leader);
        let [first, second] = [(); 2].map(|()| followers.next().unwrap());
        cluster.newcomer(4);
        // Two wishes at once: neither starves the other.
        let both = |node: &mut Consensus| {
            let _ = (node.add_voter(NodeId(4)), node.remove_voter(NodeId(second)));
        };
        cluster.cut.extend([(first, leader), (leader, first)]);
        for _ in 0..ELECTION_TICKS / 2 {
            assert!(cluster.ask_until_quiet(first, both) <= 2, "seed {}", cluster.seed);
            cluster.tick();
        }
        cluster.cut.clear();
        for round in 0.. {
            assert!(round < 30 * ELECTION_TICKS, "the change does not come about (seed {})", cluster.seed);
            let mut voters = vec![1, 3, 4, 2];
            voters.retain(|id| *id != second);
            voters.sort_unstable();
            if cluster.is_settled(&voters) {
                break;
            }
            cluster.ask_until_quiet(first, both);
            cluster.tick();
        }
        cluster.assert_one_history();
    }
}

/// The membership changes in a log: how many single changes, and whether the entry enters a joint configuration.
fn changes_in(log: &Restored) -> Vec<(usize, bool)> {
    let changes = log.entries.iter().filter(|entry| entry.get_entry_type() == EntryType::EntryConfChangeV2);
    changes
        .map(|entry| {
            let mut change = ConfChangeV2::default();
            change.merge_from_bytes(&entry.data).unwrap();
            (change.changes.len(), change.get_transition() == ConfChangeTransition::Explicit)
        })
        .collect()
}

#[test]
fn a_learner_waits_while_a_voter_is_gone_and_replaces_it_when_that_is_removed() {
    let mut cluster = Cluster::new(&[1, 2, 3], 21);
    cluster.elect();
    cluster.ticks(5);
    cluster.kill(2);
    cluster.ticks(15 * ELECTION_TICKS);
    let leader = cluster.elect();
    cluster.newcomer(4);
    assert_eq!(cluster.add(leader, 4), Some(Standing::Pending));
    cluster.ticks(5 * ELECTION_TICKS);
    let leader = cluster.elect();
    assert_eq!(cluster.add(leader, 4), Some(Standing::Waiting));
    assert_eq!(cluster.voters(leader), [1, 2, 3]);
    assert_eq!(cluster.remove(leader, 2), Some(false));
    let survivors: Vec<u64> = [1, 3, 4].into();
    cluster.until("the dead one is replaced", |cluster| cluster.is_settled(&survivors));
    let changes = changes_in(&cluster.nodes[&leader].image());
    assert_eq!(changes, [(1, false), (2, true), (0, false)], "learner; joint with both changes; the explicit leave");
    assert_eq!(cluster.remove(leader, 2), Some(true));
    assert_eq!(cluster.add(leader, 4), Some(Standing::Voter));
}

#[test]
fn a_learner_gets_its_vote_when_the_silent_voter_returns() {
    let mut cluster = Cluster::new(&[1, 2, 3], 22);
    cluster.elect();
    cluster.ticks(5);
    cluster.kill(2);
    cluster.ticks(15 * ELECTION_TICKS);
    let leader = cluster.elect();
    cluster.newcomer(4);
    cluster.add(leader, 4);
    cluster.ticks(5 * ELECTION_TICKS);
    cluster.restart(2);
    cluster.until("four voters", |cluster| cluster.is_settled(&[1, 2, 3, 4]));
}

/// The leader hears of a death an election timeout later at the latest; a newcomer may get its vote meanwhile. The four
/// go on without the dead one, and its removal leaves three, as if it had died after.
#[test]
fn a_newcomer_that_gets_its_vote_while_a_voter_dies_is_one_of_four_until_that_one_is_removed() {
    let mut fourth = 0;
    for lag in 0..60 {
        let mut cluster = Cluster::new(&[1, 2, 3], 700 + lag);
        let leader = cluster.elect();
        cluster.ticks(5);
        let dying = (1..=3).find(|id| *id != leader).unwrap();
        // Dies while the newcomer joins, at any step of it, or so many ticks before.
        let (joined_for, dead_for) = if lag < 20 { (lag as usize, 0) } else { (0, (lag as usize - 20) / 2) };
        if dead_for > 0 {
            cluster.kill(dying);
            cluster.ticks(dead_for);
        }
        cluster.newcomer(4);
        cluster.add(leader, 4);
        cluster.ticks(joined_for);
        cluster.kill(dying);
        let survivors: Vec<u64> = (1..=4).filter(|id| *id != dying).collect();
        cluster.ticks(15 * ELECTION_TICKS);
        let leader = cluster.elect();
        let voters = cluster.voters(leader);
        assert!(!cluster.nodes[&leader].is_joint(), "the change ends without the dead one (seed {})", cluster.seed);
        fourth += usize::from(voters == [1, 2, 3, 4]);
        assert_eq!(cluster.add(leader, 4).is_some_and(|standing| standing == Standing::Voter), voters.len() == 4);
        cluster.propose(leader, noise(9000));
        cluster.until("the survivors commit", |cluster| {
            cluster.trace.iter().any(|line| line.starts_with(&format!("{leader} ")))
        });
        for _ in 0..20 {
            cluster.ticks(ELECTION_TICKS);
            let leader = cluster.elect();
            cluster.remove(leader, dying);
        }
        cluster.until("three voters", |cluster| cluster.is_settled(&survivors));
        // Now one may be lost again.
        let leader = cluster.elect();
        cluster.kill(leader);
        cluster.until("another leads", |cluster| cluster.leader().is_some());
    }
    assert!((10..60).contains(&fourth), "{fourth} of 60 met the moment");
}

/// Every step of the change meets a crash of the leader: whoever leads next ends the joint configuration.
#[test]
fn a_leader_that_dies_in_the_joint_configuration_is_followed_by_one_that_leaves_it() {
    let mut met_joint = 0;
    for crash_at in 0..12 {
        let mut cluster = Cluster::new(&[1, 2, 3], 300 + crash_at);
        cluster.elect();
        cluster.ticks(5);
        cluster.kill(2);
        cluster.ticks(15 * ELECTION_TICKS);
        let leader = cluster.elect();
        cluster.newcomer(4);
        cluster.add(leader, 4);
        cluster.ticks(5 * ELECTION_TICKS);
        let leader = cluster.elect();
        // Of the proposal only so many messages get through before the leader dies.
        cluster.remove(leader, 2);
        for _ in 0..crash_at {
            let Some(message) = cluster.network.pop() else { break };
            let to = message.to;
            if let Some(node) = cluster.nodes.get_mut(&to) {
                let _ = node.step(message);
                cluster.turn(to);
            }
        }
        cluster.network.clear();
        met_joint += usize::from(cluster.nodes[&leader].is_joint());
        cluster.restart(leader);
        // A proposal that died with its leader is asked for again, as the node does.
        for _ in 0..20 {
            cluster.ticks(ELECTION_TICKS);
            let leader = cluster.elect();
            cluster.remove(leader, 2);
        }
        cluster.until("replaced at last", |cluster| cluster.is_settled(&[1, 3, 4]));
        cluster.assert_one_history();
    }
    assert!(met_joint > 0, "no crash met the joint configuration");
}

/// One run: node 2 is gone for good, node 4 takes its place, everything else fails at random meanwhile.
fn replace_under_faults(seed: u64) -> Vec<String> {
    let mut cluster = Cluster::new(&[1, 2, 3], seed);
    let mut leaders = BTreeMap::new();
    cluster.elect();
    cluster.kill(2);
    cluster.newcomer(4);
    cluster.loss_percent = 10;
    let live = [1, 3, 4];
    for step in 0..500 {
        let at = live[cluster.roll(3) as usize];
        match cluster.roll(12) {
            0..=3 => drop(cluster.propose(at, noise(5000 + step))),
            4 | 5 => drop(cluster.add(at, 4)),
            // Removed once the newcomer is there, as an operator would; before that it may be refused.
            6 | 7 if step > 100 => drop(cluster.remove(at, 2)),
            8 if cluster.roll(4) == 0 => cluster.restart(at),
            9 if cluster.roll(4) == 0 => cluster.crash_within_a_turn(at),
            10 if cluster.roll(6) == 0 => cluster.isolate(at),
            11 => cluster.cut.clear(),
            _ => {}
        }
        cluster.tick();
        cluster.note_leaders(&mut leaders);
    }
    cluster.loss_percent = 0;
    cluster.cut.clear();
    for round in 0.. {
        assert!(round < 100, "the membership does not converge (seed {seed})");
        if cluster.is_settled(&live) {
            break;
        }
        for at in live {
            cluster.add(at, 4);
            cluster.remove(at, 2);
        }
        cluster.ticks(ELECTION_TICKS);
        cluster.note_leaders(&mut leaders);
    }
    // The one that was removed returns with its old log: nobody follows it, and nobody is disturbed.
    cluster.ticks(5 * ELECTION_TICKS);
    let leader = cluster.elect();
    let term = cluster.nodes[&leader].term();
    cluster.restart(2);
    for _ in 0..10 {
        cluster.ticks(ELECTION_TICKS);
        cluster.note_leaders(&mut leaders);
        assert!(!cluster.nodes[&2].is_leader(), "a removed node leads (seed {seed})");
    }
    assert_eq!(cluster.nodes[&leader].term(), term, "the removed node disturbs (seed {seed})");
    assert!(cluster.is_settled(&live), "seed {seed}");
    cluster.assert_one_history();
    cluster.kill(2);
    cluster.assert_agree();
    cluster.trace
}

#[test]
fn a_replacement_converges_through_crashes_partitions_and_losses() {
    for seed in 1000..1150 {
        replace_under_faults(seed);
    }
}

#[test]
fn a_replacement_under_faults_is_the_same_run_for_the_same_seed() {
    assert_eq!(replace_under_faults(42), replace_under_faults(42));
}

/// One run: a founder grows to three voters while boxes pause and then make up for the time, so that leadership moves;
/// the founder asks all the time, leader or not. True if leadership ever was elsewhere while it asked.
fn grow_under_pauses(seed: u64) -> bool {
    let mut cluster = Cluster::new(&[1], seed);
    let mut leaders = BTreeMap::new();
    let mut moved = false;
    cluster.elect();
    for newcomer in [2, 3] {
        cluster.newcomer(newcomer);
        let voters: Vec<u64> = (1..=newcomer).collect();
        for step in 0.. {
            assert!(step < 100 * ELECTION_TICKS, "node {newcomer} gets no vote (seed {seed})");
            cluster.ask_until_quiet(1, |node| {
                let _ = node.add_voter(NodeId(newcomer));
            });
            if cluster.is_settled(&voters) {
                break;
            }
            if step < 30 * ELECTION_TICKS && cluster.roll(3) == 0 {
                let paused = 1 + cluster.roll(newcomer);
                for _ in 0..cluster.roll(3 * ELECTION_TICKS as u64) {
                    cluster.nodes.get_mut(&paused).unwrap().tick();
                    cluster.turn(paused);
                }
            }
            cluster.tick();
            moved |= cluster.leader().is_some_and(|leader| leader != 1);
            cluster.note_leaders(&mut leaders);
        }
    }
    cluster.assert_one_history();
    cluster.ticks(3 * ELECTION_TICKS);
    cluster.assert_agree();
    moved
}

#[test]
fn a_cluster_grows_while_boxes_pause_and_leadership_moves() {
    let moved = (2000..2300).filter(|seed| grow_under_pauses(*seed)).count();
    assert!(moved > 20, "leadership moved in {moved} runs only");
}
