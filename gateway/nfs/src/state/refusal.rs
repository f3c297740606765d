//! Why something about opens and locks is not done, and who is in the way: the shell may have to send recalls, or to drop a
//! client that has not been heard of since its lease ended (courtesy ends where somebody else wants something).

use thiserror::Error;

use super::bounds::Bound;
use super::delegation::Delegated;
use super::holder::Holder;
use super::ranges::HeldRange;
use crate::v4::status::Status;

/// A lock that another holder has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// What is locked, and how.
    pub held: HeldRange,
    /// By whom.
    pub by: Holder,
}

/// Why an operation on opens or locks is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// As the protocol says it; nobody else has to do with it.
    #[error(transparent)]
    Status(#[from] Status),
    /// There is as much as there may be.
    #[error("a bound is reached: {0:?}")]
    Full(Bound),
    /// A share reservation is in the way.
    #[error("{status}")]
    Share {
        /// Of an OPEN or SHARE: SHARE_DENIED. Of a READ, WRITE or SETATTR: LOCKED.
        status: Status,
        /// Whose.
        by: Holder,
    },
    /// A lock is in the way.
    #[error("DENIED")]
    Lock(Denied),
    /// Delegations are in the way: they are to be recalled, and the operation answered DELAY or done again.
    #[error("DELAY")]
    Delegated(Vec<Delegated>),
}

impl Refusal {
    /// What NFSv4.1 is answered.
    pub fn status(&self) -> Status {
        match self {
            Self::Status(status) | Self::Share { status, .. } => *status,
            Self::Full(bound) => bound.status(),
            Self::Lock(_) => Status::Denied,
            Self::Delegated(_) => Status::Delay,
        }
    }
}
