//! An exhaustive check of the replication core: two boxes and a witness, as a model for stateright.
//!
//! The boxes run the shipped step function, `replication::Replica::handle`, and the shipped configuration state machine,
//! `replication::config::ClusterState::apply`. What surrounds them is abstract: Raft is a list of committed commands, the
//! network two queues per connection, a disk two blocks with what is on stable media and what is not, time a counter that
//! both boxes read. `step` says what can happen, `order` which of it may as well come later, `checks` what must hold,
//! `fingerprint` when two states are one.
//!
//! What makes the search small, and why it hides nothing: Raft is one ordered register, so its messages have no states. What
//! is fast happens in one order, which a delay of the budget breaks (`step`). What commutes with the next fast thing is not
//! tried before it (`order`). A state with one way on is run through, not kept (`Pair::only_step`): a broken rule stays in the
//! state, so what is judged on the way is not lost. A request to a box that is not primary is left out, for it is refused
//! and changes nothing; so is a read of what was never written; the first write goes to the first block, as both are alike.
//!
//! Not modelled: disk errors and bad blocks, pauses of a process, drift of clocks, crashes of the witness, changes of the
//! set of replicas, ForcePrimary. The simulator has all of these.

pub mod checks;
pub mod dispatch;
pub mod fingerprint;
pub mod history;
pub mod network;
pub mod order;
pub mod run;
pub mod state;
pub mod step;
pub mod store;

use std::sync::Arc;

use proto::{EXTENT_BLOCKS, Micros};
use replication::Timing;
use stateright::{Model, Property};

use checks::{RULES, Sightings};
use fingerprint::QUANTUM;
use state::{Budget, State};
use step::Step;

/// The pair, as a model.
#[derive(Clone, Debug)]
pub struct Pair {
    /// What may happen in a run.
    pub budget: Budget,
    /// What has been seen so far, in all states.
    pub sightings: Arc<Sightings>,
}

const fn quanta(count: u64) -> Micros {
    Micros(count * QUANTUM)
}

impl Pair {
    /// Timers in steps of the clock, in the order that the protocol asks for: beacon < lease < grace, shrink < grace.
    pub const TIMING: Timing = Timing {
        beacon_interval: quanta(1),
        lease: quanta(1),
        grace: quanta(2),
        shrink_after: quanta(2),
        io_timeout: quanta(1000),
        extent_idle: quanta(1),
        scrub_period: None,
        proposal_retry: quanta(2),
        cold_wait: quanta(3),
        readmit_backoff: (quanta(1), quanta(1)),
        confirmed_reads: false,
        resync_chunk_blocks: EXTENT_BLOCKS,
        resync_chunks_in_flight: 2,
        resync_compares_in_vain: 1,
        check_invariants: true,
    };

    /// A model with a budget.
    pub fn new(budget: Budget) -> Self {
        Self { budget, sightings: Arc::default() }
    }

    /// A pair in sync, connected, with a lease, and nothing under way.
    fn settled(&self) -> State {
        let mut state = State::new(Budget { ticks: 2, crashes: 0, partitions: 0, writes: 0, ..self.budget });
        state.start(0);
        state.start(1);
        for _ in 0..2 {
            self.settle(&mut state);
            state.tick();
        }
        self.settle(&mut state);
        state.budget = self.budget;
        state
    }

    /// Goes on to where there is a choice: a state between, which has one way to it and one from it, need not be kept.
    /// What is judged there is judged all the same, for a broken rule stays.
    fn run_on(&self, state: &mut State) {
        while let Some(only) = self.only_step(state) {
            self.act(state, only);
        }
    }

    fn settle(&self, state: &mut State) {
        while let Some((what, _)) = state.underway().first().copied() {
            *state = self.after(state, Step::Happens(what));
        }
    }
}

impl Model for Pair {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![self.settled()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Step>) {
        if state.broken.is_none() {
            self.steps(state, actions);
        }
    }

    fn next_state(&self, state: &State, step: Step) -> Option<State> {
        let mut next = self.after(state, step);
        self.run_on(&mut next);
        Some(next)
    }

    fn format_action(&self, step: &Step) -> String {
        format!("{step:?}")
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties: Vec<Property<Self>> = Vec::new();
        macro_rules! rules {
            ($($index:literal),*) => {$(
                properties.push(Property::always(RULES[$index], |_, state: &State| {
                    state.broken.as_ref().is_none_or(|broken| broken.rule != RULES[$index])
                }));
            )*};
        }
        rules!(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10);
        assert_eq!(properties.len(), RULES.len(), "every rule is a property");
        properties
    }
}
