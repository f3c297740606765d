//! Filesystems in volumes: made, opened on the node that serves the volume, and worked on path by path.
//!
//! - `mke2fs`: a fresh filesystem as a sparse file; `make`: puts it into a volume.
//! - `registry`: which volumes of this node are open; `mounted`: one engine, a task on its volume's shard.
//! - `path`: from paths to inodes; `shell`: what `tandem fs` does with names; `content`: files in and out;
//!   `check`: what e2fsck says.
//!
//! **Who may write.** A volume is used either by clients of the block device or by one engine, never both: the volume's actor
//! refuses the other kind as long as one is there (`volume::SessionKind`). On the other box nobody writes, because only the
//! primary's device does. An engine ends without writing as soon as its node does not serve the volume any more.

pub mod check;
pub mod content;
pub mod error;
pub mod make;
pub mod mke2fs;
pub mod mounted;
pub mod path;
pub mod registry;
pub mod shell;

use std::time::{SystemTime, UNIX_EPOCH};

use filesystem::journal::CommitTime;
use filesystem::layout::timestamp::Timestamp;

/// Real time for commits.
pub fn real_time() -> CommitTime {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    CommitTime { seconds: now.as_secs(), nanoseconds: now.subsec_nanos() }
}

/// Real time for files.
pub fn now() -> Timestamp {
    let CommitTime { seconds, nanoseconds } = real_time();
    Timestamp { seconds: seconds as i64, nanoseconds }
}
