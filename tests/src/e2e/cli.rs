//! The `tandem` command line as a program uses it: `--json` and exit codes.

use std::process::Command;

use serde_json::Value;

/// The end of one command.
#[derive(Clone, Debug)]
pub struct CliOutcome {
    /// Its exit code; -1 if a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl CliOutcome {
    /// Runs a command to its end.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn of(mut command: Command) -> Self {
        let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Its output as JSON, if it was done.
    pub fn json(&self) -> Option<Value> {
        (self.code == 0).then(|| serde_json::from_str(&self.stdout).ok()).flatten()
    }
}

/// What `volume show --json` tells, as far as tests look at it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeState {
    /// Name of the primary.
    pub primary: String,
    /// Names of the committed in-sync members.
    pub in_sync: Vec<String>,
    /// `healthy`, `busy`, `degraded` or `down`.
    pub level: String,
    /// The sentence that explains the state.
    pub text: String,
    /// The volume's epoch.
    pub epoch: u64,
}

impl VolumeState {
    /// Reads the JSON of `volume show`.
    pub fn from_json(json: &Value) -> Self {
        let summary = json.get("summary").unwrap_or(json);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let names = |value: &Value| value.as_array().into_iter().flatten().map(text).collect();
        Self {
            primary: text(&summary["primary_name"]),
            in_sync: names(&summary["in_sync"]),
            level: text(&summary["health"]["level"]),
            text: text(&summary["health"]["text"]),
            epoch: json["epoch"].as_u64().unwrap_or_default(),
        }
    }
}
