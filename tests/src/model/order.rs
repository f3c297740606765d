//! Which of a client's requests, crashes and partitions may as well come later: a step that commutes with what is next in
//! the fixed order of fast things is not tried before it.
//!
//! Leaving one out loses no execution if, taken after what is next, it leads to the very state that it leads to when taken
//! before, and what is next is still next after it. The arguments stand at each function. They hold for executions in which
//! nothing is late; where something slow is under way, which may happen in between, the newer ones are not made use of.

use replication::config::{CommandBody, NodeCommand};

use super::state::{Cut, State, box_of};
use super::step::Underway;

/// Where in the fixed order a state stands: what the next fast thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing fast is under way.
    Nothing,
    /// Something in one box alone.
    Within(usize),
    /// A message to a box; whether anything slow is under way beside it.
    MessageTo(usize, bool),
    /// A commitment, and nothing slow is under way; whether it is a registration, of which box.
    Commit(Option<usize>),
    /// Something that concerns both, or Raft.
    Both,
}

impl Next {
    /// Where `state` stands: what is first of what is fast, and whether anything slow is under way beside it.
    pub fn of(state: &State, first: Option<Underway>, slow: bool) -> Self {
        match first {
            None => Next::Nothing,
            Some(Underway::Commit(index)) if !slow => match state.raft.pending[index].command.body {
                CommandBody::Node(NodeCommand::NodeUp { node, .. }) => Next::Commit(Some(box_of(node))),
                _ => Next::Commit(None),
            },
            Some(Underway::Io(node, _) | Underway::Apply(node)) => Next::Within(node),
            Some(Underway::Message(index, side)) => Next::MessageTo(state.net.connections[index].node(side), slow),
            Some(Underway::Commit(_) | Underway::Connect(_)) => Next::Both,
        }
    }

    /// A request to `node` may as well come later, if what is next happens elsewhere: neither sees what the other changes. If
    /// what is next answers another request, the later one is judged more strictly: it may not be answered as if it had come
    /// before that answer.
    pub fn asks(self, node: usize) -> bool {
        match self {
            Next::Nothing | Next::Commit(_) | Next::Both => true,
            Next::Within(other) | Next::MessageTo(other, _) => other == node,
        }
    }

    /// A crash of `node` may as well come later, if what is next is within the other box, or a message to it that the crash
    /// would not lose: what that box answers is lost either way, and nothing comes to stand before the message. So may a
    /// power cut, if a commitment is next that happens all the same. (After a kill the end of the connection would be next.)
    ///
    /// One order is lost by this: where the other box is about to learn of a configuration, it does so before it learns of
    /// the end of a killed box's connections, though after an earlier kill it is the other way round.
    pub fn crashes(self, state: &State, node: usize, power: bool, lose: bool) -> bool {
        match self {
            Next::Nothing | Next::Both => true,
            Next::Within(other) => other == node,
            Next::MessageTo(to, slow) => to == node || lose || slow,
            Next::Commit(registers) => !power || registers == Some(node) || !state.reaches_witness(1 - node),
        }
    }

    /// So may a partition, that of a box also if a commitment is next that happens all the same.
    pub fn cuts(self, state: &State, cut: Cut) -> bool {
        match (self, cut) {
            (Next::Within(node), _) => cut == Cut::Isolated(node),
            (Next::Commit(_), Cut::Isolated(node)) => !state.reaches_witness(1 - node),
            (Next::Commit(_), Cut::Between | Cut::None) => false,
            (Next::Nothing | Next::MessageTo(..) | Next::Both, _) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hash::{DefaultHasher, Hash, Hasher};
    use std::sync::Arc;

    use super::*;
    use crate::model::Pair;
    use crate::model::history::Register;
    use crate::model::state::Budget;
    use crate::model::step::Step;

    const BUDGET: Budget = Budget { crashes: 1, partitions: 1, writes: 1, reads: 1, ticks: 2, ..Budget::SHORT };
    const STATES: usize = 40_000;

    fn digest(state: &State) -> u64 {
        let mut hasher = DefaultHasher::new();
        state.hash(&mut hasher);
        hasher.finish()
    }

    /// Some states of a budget, step by step, breadth first.
    fn states(pair: &Pair) -> Vec<State> {
        let mut all = vec![pair.settled()];
        let mut known = HashSet::from([digest(&all[0])]);
        let mut at = 0;
        while at < all.len() && all.len() < STATES {
            let mut steps = Vec::new();
            pair.steps(&all[at], &mut steps);
            for step in steps {
                let next = pair.after(&all[at], step);
                if known.insert(digest(&next)) {
                    all.push(next);
                }
            }
            at += 1;
        }
        all
    }

    fn first_fast(state: &State) -> Option<Step> {
        state.underway().into_iter().find(|(_, slow)| !slow).map(|(what, _)| Step::Happens(what))
    }

    #[test]
    fn what_is_left_out_leads_to_the_same_state_when_it_comes_later() {
        let pair = Pair::new(BUDGET);
        let mut left_out = 0;
        for state in states(&pair) {
            let (mut tried, mut possible) = (Vec::new(), Vec::new());
            pair.steps(&state, &mut tried);
            pair.steps_before(&state, Next::Both, &mut possible);
            let Some(next) = first_fast(&state) else { continue };
            for step in possible.into_iter().filter(|step| !tried.contains(step)) {
                let before = pair.after(&state, step);
                // Where the rules above say so, something else would be next, and it is the later one that is looked at.
                let learns = matches!(next, Step::Happens(Underway::Apply(_)));
                let still_next = match step {
                    Step::Crash { power: false, .. } if learns => next,
                    Step::Crash { .. } | Step::Cut(_) => first_fast(&before).expect("it is still next"),
                    _ => next,
                };
                let mut one = pair.after(&before, still_next);
                let other = pair.after(&pair.after(&state, next), step);
                if matches!(step, Step::Write(..) | Step::Read(..) | Step::Flush(_)) {
                    // What may be answered is less after the other one's answer, and else the same.
                    let registers = other.client.registers.clone();
                    let narrower = |(few, many): (&Register, &Register)| few.values() & !many.values() == 0;
                    assert!(registers.iter().zip(&one.client.registers).all(narrower), "{step:?} permits more");
                    Arc::make_mut(&mut one.client).registers = registers;
                }
                assert!(one == other, "{step:?} and {}", pair.describe_step(&state, next));
                left_out += 1;
            }
        }
        assert!(left_out > 1000, "only {left_out} left out");
    }

    #[test]
    fn running_on_where_there_is_no_choice_skips_no_choice() {
        let pair = Pair::new(Budget { crashes: 1, partitions: 0, writes: 1, reads: 0, ticks: 2, ..Budget::SHORT });
        let explore = |runs_on: bool| {
            let (mut known, mut choices) = (HashSet::new(), HashSet::new());
            let mut left = vec![pair.settled()];
            while let Some(state) = left.pop() {
                if pair.only_step(&state).is_none() {
                    choices.insert(digest(&state));
                }
                let mut steps = Vec::new();
                pair.steps(&state, &mut steps);
                for step in steps {
                    let mut next = pair.after(&state, step);
                    if runs_on {
                        pair.run_on(&mut next);
                    }
                    if known.insert(digest(&next)) {
                        left.push(next);
                    }
                }
            }
            (known.len(), choices)
        };
        let ((few, choices), (many, all_choices)) = (explore(true), explore(false));
        assert!(choices == all_choices, "{} choices of {}", choices.len(), all_choices.len());
        assert!(few < many, "{few} of {many} states are met");
    }
}
