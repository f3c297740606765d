//! `cargo xtask mutants`: deletes one guard of the core at a time and shows that the simulator notices.
//!
//! Works in a copy of the tree with its own target directory, so that neither the sources nor the binaries of the workspace
//! ever hold a mutant. The copy holds all of them, asleep, and is built once; a variable of the environment wakes one
//! (`weave`). The list stands in `tests/mutants/*.toml`.

mod list;
mod weave;
mod workshop;

use std::path::Path;

use anyhow::{Result, bail};
use clap::Args;

use crate::shell;
use list::Mutant;
use workshop::{Verdict, Workshop};

/// Seeds after which an unnoticed mutant counts as a survivor.
const SEEDS_MAX: u64 = 10_000;

#[derive(Args)]
pub(crate) struct MutantsOptions {
    /// Only mutants whose name contains this; may be given several times.
    #[arg(long)]
    name: Vec<String>,
    /// Only so many mutants, spread over the list.
    #[arg(long)]
    limit: Option<usize>,
    /// Seeds to try on each mutant.
    #[arg(long, default_value_t = SEEDS_MAX)]
    seeds: u64,
    /// Do not begin with the seeds that are known to kill, so as to count how many it takes.
    #[arg(long)]
    from_zero: bool,
    /// The model check instead of the simulator, for those mutants that the list names a budget for.
    #[arg(long)]
    model: bool,
    /// Only verify that every snippet still matches.
    #[arg(long)]
    match_only: bool,
}

/// Runs the list and prints the seed that kills each mutant. Fails if one survives or a snippet no longer matches.
pub(crate) fn run(options: &MutantsOptions) -> Result<()> {
    let root = shell::workspace_root();
    let all = list::load(&root.join("tests/mutants"))?;
    verify_matches(&root, &all)?;
    println!("mutants: {} in the list, each snippet matches once", all.len());
    if options.match_only {
        return Ok(());
    }
    let wanted = |(_, mutant): &(usize, &Mutant)| {
        let named = options.name.is_empty() || options.name.iter().any(|name| mutant.name.contains(name.as_str()));
        named && (!options.model || mutant.model.is_some())
    };
    let numbered = all.iter().enumerate().map(|(index, mutant)| (index + 1, mutant));
    let chosen = spread(numbered.filter(wanted).collect(), options.limit);
    if chosen.is_empty() {
        bail!("no mutant is chosen");
    }
    let workshop = Workshop::prepare(&root, &all)?;
    let mut survivors = Vec::new();
    for (number, mutant) in &chosen {
        let verdict = match (options.model, &mutant.model) {
            (true, Some(arguments)) => workshop.check_model(*number, arguments)?,
            _ => workshop.simulate(*number, mutant, options.seeds, options.from_zero)?,
        };
        println!("mutant {}: {verdict}", mutant.name);
        if matches!(verdict, Verdict::Survived { .. }) {
            survivors.push(mutant.name.as_str());
        }
    }
    println!("mutants: tried={} killed={} survived={}", chosen.len(), chosen.len() - survivors.len(), survivors.len());
    if !survivors.is_empty() {
        bail!("survivors: {}", survivors.join(", "));
    }
    Ok(())
}

/// The short form that `cargo xtask test` runs: some of the list, with fewer seeds.
pub(crate) fn run_some(limit: usize, seeds: u64) -> Result<()> {
    run(&MutantsOptions {
        name: Vec::new(),
        limit: Some(limit),
        seeds,
        from_zero: false,
        model: false,
        match_only: false,
    })
}

fn verify_matches(root: &Path, mutants: &[Mutant]) -> Result<()> {
    let mut stale = Vec::new();
    for mutant in mutants {
        if let Err(error) = mutant.mutate(&std::fs::read_to_string(root.join(&mutant.file)).unwrap_or_default()) {
            stale.push(format!("{}: {error}", mutant.name));
        }
    }
    if !stale.is_empty() {
        bail!("mutants that no longer fit the sources:\n  {}", stale.join("\n  "));
    }
    Ok(())
}

/// At most `limit` of the items, evenly over the list.
fn spread<T>(items: Vec<T>, limit: Option<usize>) -> Vec<T> {
    let limit = limit.unwrap_or(items.len()).min(items.len());
    let count = items.len();
    let mut kept = 0;
    items
        .into_iter()
        .enumerate()
        .filter(|(index, _)| {
            let keep = kept < limit && index * limit >= kept * count;
            kept += usize::from(keep);
            keep
        })
        .map(|(_, item)| item)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_spreads_over_the_list() {
        assert_eq!(spread(vec![0, 1, 2, 3, 4, 5], Some(2)), [0, 3]);
        assert_eq!(spread(vec![0, 1, 2], Some(5)), [0, 1, 2]);
        assert_eq!(spread(vec![0, 1, 2], None), [0, 1, 2]);
        assert_eq!(spread(Vec::<u8>::new(), Some(2)), Vec::<u8>::new());
    }

    #[test]
    fn a_snippet_that_no_longer_matches_is_an_error() {
        let root = tempfile::tempdir().expect("temporary directory");
        std::fs::write(root.path().join("a.rs"), "if guard { return; }").expect("write");
        let mutant = |find: &str| Mutant {
            name: "m".into(),
            why: "w".into(),
            file: "a.rs".into(),
            find: find.into(),
            replace: String::new(),
            killed_by: None,
            model: None,
        };
        assert!(verify_matches(root.path(), &[mutant("if guard { return; }")]).is_ok());
        assert!(verify_matches(root.path(), &[mutant("if other { return; }")]).is_err());
    }
}
