//! From the command line into the daemon: the supervisor, and the worker it starts.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use replication::config::NodeKind;

/// `tandem node` and `tandem witness`.
pub(crate) fn supervise(_config: &Path, _kind: NodeKind) -> ExitCode {
    ExitCode::FAILURE
}

/// The hidden `tandem worker`.
pub(crate) fn work(_arguments: Vec<OsString>) -> ExitCode {
    ExitCode::FAILURE
}
