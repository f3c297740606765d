//! The data of regular files: what is written waits in memory, and its place on the device is chosen when it goes there.
//!
//! A write puts blocks of the file ([`table::Page`]) into memory, reserves what they may need on the device, and changes the
//! inode's times; nothing more. Written back they go one of two ways. A little of it (`ordered`) joins the running
//! transaction as it is: it gets its blocks there, and the batch that writes the log writes it, too, before the commit block. Much
//! of it (`write_back`) gets blocks that are only held in memory, is written there, is flushed, and only then do the
//! extents join a transaction: no operation waits for the data of another.
//!
//! Blocks that have to change together with the map, as the rest of a block at a file's new end does, go through the
//! log as metadata does. As long as the log may hold a copy, everything else that is written to such a block goes
//! through it, too: a replay would undo it otherwise.

mod allocate;
pub(super) mod content;
mod ordered;
mod read;
mod resize;
pub(super) mod table;
mod write;
mod write_back;

pub use read::{Seek, Wanted};
pub(super) use write_back::{Holds, OrderedPages};
