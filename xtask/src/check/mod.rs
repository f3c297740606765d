//! `cargo xtask check`: the rules of the architecture that the compiler does not enforce.

mod imports;
mod purity;
mod size;
mod source;
mod unsafe_places;

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::shell;
use source::SourceFile;

/// How bad a finding is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Severity {
    Warning,
    Error,
}

/// One broken rule, at a place.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Finding {
    severity: Severity,
    rule: &'static str,
    path: String,
    line: usize,
    message: String,
}

impl Finding {
    fn error(rule: &'static str, path: &str, line: usize, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, rule, path: path.to_owned(), line, message: message.into() }
    }

    fn warning(rule: &'static str, path: &str, line: usize, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, rule, path: path.to_owned(), line, message: message.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        write!(f, "{word}[{}] {}:{}: {}", self.rule, self.path, self.line, self.message)
    }
}

/// Checks the workspace and prints what it finds. Fails if any rule is broken.
pub(crate) fn run() -> Result<()> {
    let root = shell::workspace_root();
    let metadata = shell::output(&mut shell::cargo(&["metadata", "--format-version", "1", "--no-deps", "--offline"]))?;
    let packages = imports::parse(&metadata.stdout).context("reading `cargo metadata`")?;
    let mut findings = imports::check(&packages);
    let files = load_sources(&root)?;
    for file in &files {
        findings.extend(purity::check(file));
        findings.extend(unsafe_places::check(file));
        findings.extend(size::check(file));
    }
    for finding in &findings {
        println!("{finding}");
    }
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    let warnings = findings.len() - errors;
    println!("check: packages={} files={} errors={errors} warnings={warnings}", packages.len(), files.len());
    if errors > 0 {
        bail!("the architecture's rules are broken in {errors} places");
    }
    Ok(())
}

/// Every Rust source below the root, except what cargo builds.
fn load_sources(root: &Path) -> Result<Vec<SourceFile>> {
    let mut paths = Vec::new();
    collect(root, &mut paths)?;
    paths.sort();
    let mut files = Vec::with_capacity(paths.len());
    for path in paths {
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let relative = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
        files.push(SourceFile::parse(relative, &text));
    }
    Ok(files)
}

fn collect(directory: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            if !name.starts_with('.') && name != "target" {
                collect(&path, into)?;
            }
        } else if name.ends_with(".rs") {
            into.push(path);
        }
    }
    Ok(())
}
