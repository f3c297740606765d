//! Why something was not done with the files of a volume.

use block_device::BlockError;
use filesystem::Refusal;
use filesystem::engine::{Failure, OpenError};
use filesystem::layout::superblock::Unusable;
use thiserror::Error;

use super::make::MakeError;
use crate::volume::SessionRefused;

/// Sorted by what the caller can do about it.
#[derive(Debug, Error)]
pub enum FilesError {
    /// This node does not serve the volume, or stopped while it worked.
    #[error("this node does not serve the volume's files now, or stopped while it worked; ask again")]
    Ended,
    /// The volume is used as a block device.
    #[error(
        "{0} NBD client(s) are connected to the volume: they and the filesystem engine must not write at once, so \
         disconnect them first"
    )]
    Clients(usize),
    /// The filesystem is being made or checked, or was not closed in time.
    #[error("the volume's filesystem is being made, checked or closed just now; try again when that is done")]
    Busy,
    /// There is none.
    #[error("the volume has no filesystem; `tandem fs make VOLUME` makes one")]
    NoFilesystem,
    /// It is not opened.
    #[error("the filesystem is not opened: {0}")]
    Open(OpenError),
    /// Its NFS service does not begin.
    #[error(transparent)]
    Nfs(#[from] crate::nfs::StartError),
    /// It could not be made.
    #[error(transparent)]
    Make(#[from] MakeError),
    /// The volume is not empty.
    #[error("the volume holds {0}; `tandem fs make --force` overwrites it, and all of it is lost")]
    NotEmpty(&'static str),
    /// Something stands against it in the tree.
    #[error("{path}: {why}")]
    Refused {
        /// The path as it was given.
        path: String,
        /// What.
        why: Refusal,
    },
    /// The path itself is not possible.
    #[error("{path}: {why}")]
    BadPath {
        /// The path as it was given.
        path: String,
        /// What is wrong, and what is allowed.
        why: &'static str,
    },
    /// The engine could not do it.
    #[error("{path}: {why}")]
    Failed {
        /// The path as it was given.
        path: String,
        /// Why.
        why: Failure,
    },
    /// A tool, or a file on this node.
    #[error("{0}")]
    Tool(#[from] super::mke2fs::ToolError),
}

impl FilesError {
    /// A failure of the engine while it worked on `path`.
    pub fn at(path: &[u8], why: Failure) -> Self {
        let path = shown(path);
        match why {
            Failure::Refused(why) => Self::Refused { path, why },
            Failure::Device(BlockError::NotPrimary { .. } | BlockError::Closed) => Self::Ended,
            why => Self::Failed { path, why },
        }
    }
}

impl From<SessionRefused> for FilesError {
    fn from(refused: SessionRefused) -> Self {
        match refused {
            SessionRefused::Unreachable(_) => Self::Ended,
            SessionRefused::Clients(count) => Self::Clients(count),
            SessionRefused::Files => Self::Busy,
        }
    }
}

impl From<OpenError> for FilesError {
    fn from(why: OpenError) -> Self {
        match why {
            OpenError::Unusable(Unusable::NotExt4) => Self::NoFilesystem,
            OpenError::Failed(Failure::Device(_)) => Self::Ended,
            why => Self::Open(why),
        }
    }
}

/// A path as people see it.
pub fn shown(path: &[u8]) -> String {
    match path {
        [] => "/".to_owned(),
        _ => String::from_utf8_lossy(path).into_owned(),
    }
}
