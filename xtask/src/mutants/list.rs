//! The list of mutants: what each removes and why that must be noticed.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// One guard or rule of the core, deleted.
#[derive(Clone, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct Mutant {
    /// A short name, unique in the list.
    pub(super) name: String,
    /// What goes wrong without the guard.
    pub(super) why: String,
    /// The source, relative to the workspace's root.
    pub(super) file: String,
    /// Occurs exactly once in that source.
    pub(super) find: String,
    /// Stands in its place in the mutant.
    pub(super) replace: String,
    /// A seed that is known to kill it, tried first. It goes stale with any change to the simulator; that is no error.
    pub(super) killed_by: Option<u64>,
    /// Arguments of the model check, in whose budget it breaks a rule, too.
    pub(super) model: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MutantFile {
    #[serde(default)]
    mutant: Vec<Mutant>,
}

impl Mutant {
    /// The mutated source. Fails unless the snippet stands in it exactly once.
    pub(super) fn mutate(&self, source: &str) -> Result<String> {
        match source.matches(self.find.as_str()).count() {
            1 if self.find == self.replace => bail!("the replacement equals the snippet"),
            1 => Ok(source.replacen(&self.find, &self.replace, 1)),
            0 => bail!("the snippet is not in {}", self.file),
            count => bail!("the snippet stands {count} times in {}", self.file),
        }
    }
}

/// Reads every `*.toml` of a directory, in the order of their names.
pub(super) fn load(directory: &Path) -> Result<Vec<Mutant>> {
    let mut paths: Vec<_> = std::fs::read_dir(directory)
        .with_context(|| format!("reading {}", directory.display()))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<_>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    let mut mutants: Vec<Mutant> = Vec::new();
    for path in paths {
        let text = std::fs::read_to_string(&path)?;
        for mutant in parse(&text).with_context(|| format!("in {}", path.display()))? {
            if mutants.iter().any(|known| known.name == mutant.name) {
                bail!("two mutants are named {}", mutant.name);
            }
            mutants.push(mutant);
        }
    }
    Ok(mutants)
}

fn parse(text: &str) -> Result<Vec<Mutant>> {
    let mutants = toml::from_str::<MutantFile>(text)?.mutant;
    for mutant in &mutants {
        let inside = mutant.file.starts_with("replication/src/") && !mutant.file.contains("..");
        if !inside || mutant.find.trim().is_empty() || mutant.why.trim().is_empty() {
            bail!("mutant {}: needs a file below replication/src, a snippet and a reason", mutant.name);
        }
    }
    Ok(mutants)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = r#"
        [[mutant]]
        name = "no-cas"
        why = "an old proposal overwrites a newer configuration"
        file = "replication/src/config/apply.rs"
        find = '''
if a != b {
    return;
}
'''
        replace = ""
        killed_by = 17
    "#;

    #[test]
    fn an_example_parses_and_mutates() {
        let mutants = parse(EXAMPLE).expect("a valid list");
        let mutated = mutants[0].mutate("fn f() {\nif a != b {\n    return;\n}\nx();\n}").expect("matches once");
        assert_eq!(mutated, "fn f() {\nx();\n}");
        assert_eq!(mutants[0].killed_by, Some(17));
    }

    #[test]
    fn a_snippet_must_stand_exactly_once() {
        let mutant = parse(EXAMPLE).expect("a valid list").remove(0);
        assert!(mutant.mutate("nothing").is_err());
        assert!(mutant.mutate(&mutant.find.repeat(2)).is_err());
    }

    #[test]
    fn bad_lists_are_refused() {
        assert!(parse(&EXAMPLE.replace("replication/src/config", "storage-node/src")).is_err());
        assert!(parse(&EXAMPLE.replace("replication/src", "replication/src/../..")).is_err());
        assert!(parse(&EXAMPLE.replace("killed_by", "killed")).is_err());
    }
}
