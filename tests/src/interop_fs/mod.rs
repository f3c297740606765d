//! The kernel as judge and partner of the filesystem engine, on images that both work on in turns.
//!
//! `tree` is what a filesystem shows, read by either side; `model` what it should show after the operations of `operation`;
//! `kernel` and `engine` do these operations, on a loop mount and in process; `turns` lets them take turns, `logs` has
//! each replay the log of the other, `import` reads what mke2fs made of a directory. Needs root, loop mounts and
//! e2fsprogs; who calls asks for them first.

pub mod engine;
pub mod image;
pub mod import;
pub mod kernel;
pub mod logs;
pub mod mix;
pub mod model;
pub mod operation;
pub mod tree;
pub mod turns;

/// What a campaign did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Operations that changed something, by either side.
    pub operations: u64,
    /// Logs left by one side and replayed by another.
    pub logs: u64,
    /// Files that were compared.
    pub files: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, more: Self) {
        self.operations += more.operations;
        self.logs += more.logs;
        self.files += more.files;
    }
}

/// What went wrong.
#[derive(Debug)]
pub enum Finding {
    /// A checker or a mount found the image damaged.
    Unclean(String),
    /// Two readers, or a reader and the model, do not agree; or an operation ended otherwise than it should.
    Different(String),
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unclean(what) => write!(f, "unclean: {what}"),
            Self::Different(what) => write!(f, "different: {what}"),
        }
    }
}

impl std::error::Error for Finding {}
