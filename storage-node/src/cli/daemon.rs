//! From the command line into the daemon: the supervisor, and the worker it starts.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use replication::config::NodeKind;

/// `tandem node` and `tandem witness`.
pub(crate) fn supervise(config: &Path, kind: NodeKind) -> ExitCode {
    crate::supervisor::run(config, kind)
}

/// The hidden `tandem worker`.
pub(crate) fn work(arguments: Vec<OsString>) -> ExitCode {
    crate::node::worker_main(arguments)
}
