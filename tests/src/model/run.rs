//! Runs the check and tells what it found.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Model};

use super::Pair;
use super::checks::{RULES, SIGHTS};
use super::state::{Budget, State};
use super::step::Step;

/// How to search.
#[derive(Clone, Copy, Debug)]
pub struct Search {
    /// Threads.
    pub threads: usize,
    /// Breadth first: the shortest counterexample, at the cost of memory.
    pub breadth_first: bool,
    /// Give up after so long.
    pub timeout: Option<Duration>,
    /// Give up after so many states.
    pub states_max: Option<usize>,
}

/// What a check found.
#[derive(Debug)]
pub struct Verdict {
    /// States met, counting each way to one.
    pub states: usize,
    /// States met.
    pub unique: usize,
    /// Longest way to a state.
    pub depth: usize,
    /// How long it took.
    pub took: Duration,
    /// Nothing was left to look at.
    pub complete: bool,
    /// A broken rule, in words, with the steps that lead there.
    pub broken: Option<(String, Vec<String>)>,
    /// How often each of the sights was seen.
    pub seen: Vec<(&'static str, u64)>,
}

/// Checks every state that the budget permits, or until a rule is broken.
pub fn check(budget: Budget, search: Search) -> Verdict {
    let pair = Pair::new(budget);
    let sightings = pair.sightings.clone();
    let began = Instant::now();
    let mut builder = pair.checker().threads(search.threads).finish_when(HasDiscoveries::AnyFailures);
    if let Some(timeout) = search.timeout {
        builder = builder.timeout(timeout);
    }
    if let Some(states_max) = search.states_max {
        builder = builder.target_state_count(states_max);
    }
    let mut verdict = match search.breadth_first {
        true => conclude(&builder.spawn_bfs().join()),
        false => conclude(&builder.spawn_dfs().join()),
    };
    verdict.took = began.elapsed();
    let cut_short = search.timeout.is_some_and(|timeout| verdict.took >= timeout)
        || search.states_max.is_some_and(|states_max| verdict.states >= states_max);
    verdict.complete = verdict.broken.is_none() && !cut_short;
    verdict.seen = SIGHTS.iter().enumerate().map(|(index, sight)| (*sight, sightings.count(index))).collect();
    verdict
}

fn conclude(checker: &impl Checker<Pair>) -> Verdict {
    let broken = RULES.iter().find_map(|rule| checker.discovery(rule).map(|path| tell(checker.model(), path)));
    Verdict {
        states: checker.state_count(),
        unique: checker.unique_state_count(),
        depth: checker.max_depth(),
        took: Duration::ZERO,
        complete: false,
        broken,
        seen: Vec::new(),
    }
}

fn tell(pair: &Pair, path: stateright::Path<State, Step>) -> (String, Vec<String>) {
    let steps = path.into_vec();
    let rule = steps.last().and_then(|(state, _)| state.broken.as_ref());
    let rule = rule.map_or(String::new(), |broken| format!("{}: {}", broken.rule, broken.detail));
    let mut told = Vec::new();
    for (state, step) in &steps {
        let mut state = state.clone();
        let mut step = *step;
        while let Some(taken) = step {
            let values = [0, 1].map(|node| state.boxes[node].store.values());
            told.push(format!("t{} {values:?} {}", state.time, pair.describe_step(&state, taken)));
            pair.act(&mut state, taken);
            step = pair.only_step(&state);
        }
    }
    (rule, told)
}

/// Threads that the machine offers, at most two.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(2)
}
