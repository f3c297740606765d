//! Orphans: inodes without a name, or in the middle of being truncated, that recovery has to finish with.
//!
//! The classic list starts in the superblock (`s_last_orphan`) and goes on through the inodes (`i_dtime`), the newest first
//! (ext4 on-disk format, "Orphan file", and "Inode Table", `i_dtime`). [`list`] edits it through accessors; the file of
//! orphans, which images made elsewhere may have, is [`file`]. Not here: what is done with an orphan, and the feature bit
//! `orphan_present`, which the superblock has while the file of orphans may not be empty.

pub mod file;
pub mod list;
