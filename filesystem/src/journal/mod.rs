//! The jbd2 journal: what is in the log (ext4 on-disk format, "Journal (jbd2)"), how it is replayed, and how a
//! transaction is laid out for it.
//!
//! Pure: nothing here reads or writes a device. [`recovery::Recovery`] asks for blocks of the log and is fed with them;
//! [`writer`] gives blocks of the log to write. Ordering, flushes and the moment at which the log's tail may move are the
//! business of what drives them.
//!
//! All forms of the log are read (no checksums, versions 1, 2 and 3; block numbers of 32 and 64 bits). Written is one
//! form only: checksums of version 3, block numbers of 64 bits, revoke records.

pub mod checkpoint;
pub mod commit;
pub mod descriptor;
pub mod format;
pub mod map;
pub mod recovery;
pub mod revoke;
pub mod ring;
pub mod superblock;
pub mod writer;

pub use commit::{CommitBlock, CommitTime};
pub use format::{BlockHeader, BlockKind, Checksums, LogFormat};
pub use map::JournalMap;
pub use recovery::{LogEnd, Outcome, Recovery, Step};
pub use ring::{LogIndex, LogRing, LogSpace};
pub use superblock::{JournalSuperblock, Refusal};
pub use writer::{NewTransaction, WrittenTransaction};
