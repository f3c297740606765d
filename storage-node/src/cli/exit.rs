//! Why a command ends, and with which code.

use std::io;
use std::process::ExitCode;

use thiserror::Error;
use tonic::{Code, Status};

/// A command that was not done, sorted by exit code.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    /// The node tried and could not.
    #[error("{0}")]
    Failed(String),
    /// The command was wrong.
    #[error("{0}")]
    Usage(String),
    /// Nobody answers.
    #[error("{0}")]
    Unreachable(String),
    /// A guard refused.
    #[error("refused: {0}")]
    Refused(String),
    /// No outcome in time.
    #[error("timeout: {0}")]
    Timeout(String),
    /// No such thing.
    #[error("{0}")]
    NotFound(String),
    /// A volume's copies are not as they should be: a verify found it, or a scrub could not mend it.
    #[error("damaged: {0}")]
    Damaged(String),
}

impl Failure {
    /// The process's exit code; the list is in the `--help` text.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Failure::Failed(_) => 1,
            Failure::Usage(_) => 2,
            Failure::Unreachable(_) => 3,
            Failure::Refused(_) => 4,
            Failure::Timeout(_) => 5,
            Failure::NotFound(_) => 6,
            Failure::Damaged(_) => 7,
        }
    }
}

impl Failure {
    /// The same with another text.
    pub(crate) fn map(self, change: impl FnOnce(String) -> String) -> Self {
        match self {
            Failure::Failed(text) => Failure::Failed(change(text)),
            Failure::Usage(text) => Failure::Usage(change(text)),
            Failure::Unreachable(text) => Failure::Unreachable(change(text)),
            Failure::Refused(text) => Failure::Refused(change(text)),
            Failure::Timeout(text) => Failure::Timeout(change(text)),
            Failure::NotFound(text) => Failure::NotFound(change(text)),
            Failure::Damaged(text) => Failure::Damaged(change(text)),
        }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let text = status.message().to_owned();
        match status.code() {
            Code::InvalidArgument => Failure::Usage(text),
            Code::Unavailable | Code::Cancelled => Failure::Unreachable(text),
            Code::FailedPrecondition | Code::AlreadyExists => Failure::Refused(text),
            Code::DeadlineExceeded => Failure::Timeout(text),
            Code::NotFound => Failure::NotFound(text),
            Code::Unimplemented => {
                Failure::Failed("that node runs another version, which does not know this command".into())
            }
            _ => Failure::Failed(text),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Failed(error.to_string())
    }
}

/// Prints the failure and turns it into the exit code.
pub(crate) fn end(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("tandem: {failure}");
            ExitCode::from(failure.code())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_grpc_code_has_its_exit_code() {
        let code = |status: Status| Failure::from(status).code();
        assert_eq!(code(Status::internal("")), 1);
        assert_eq!(code(Status::unimplemented("")), 1);
        assert_eq!(code(Status::invalid_argument("")), 2);
        assert_eq!(code(Status::unavailable("")), 3);
        assert_eq!(code(Status::failed_precondition("")), 4);
        assert_eq!(code(Status::already_exists("")), 4);
        assert_eq!(code(Status::deadline_exceeded("")), 5);
        assert_eq!(code(Status::not_found("")), 6);
    }
}
