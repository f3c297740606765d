//! From the command line into the daemon: the supervisor, and the worker it starts.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use replication::config::NodeKind;

use crate::{node, supervisor};

/// `tandem node` and `tandem witness`.
pub(super) fn supervise(config: &Path, kind: NodeKind) -> ExitCode {
    supervisor::run(config, kind)
}

/// The hidden `tandem worker`.
pub(super) fn work(arguments: Vec<OsString>) -> ExitCode {
    node::worker_main(arguments)
}
