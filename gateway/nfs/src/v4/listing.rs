//! Names of a directory, as many as fit a reply: what READDIR of NFSv4 and READDIR and READDIRPLUS of NFSv3 have in common.
//!
//! Names of one hash position share a cookie, so they are all in one reply or none is: whoever goes on behind the cookie gets
//! every name once that was there all the time.

use filesystem::directory::{Cookie, ReadEntry};

use super::context::{Context, Halt};
use crate::ids::FileId;
use crate::xdr::Encoder;

/// Bytes that an entry with few attributes takes: how many are looked at for one reply.
const ENTRY_BYTES_TYPICAL: usize = 100;
const ENTRIES_AT_ONCE_MAX: usize = 2048;
/// Number of the file, cookie and lengths: what goes with a name.
const BESIDE_NAME_BYTES: usize = 24;

/// How much is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Length of the message behind which no entry may reach.
    pub end: usize,
    /// No more is put once the names, with their cookies and the numbers of their files, have so many bytes.
    pub name_bytes_max: usize,
}

/// How far it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Entries that were put.
    pub count: usize,
    /// Nothing follows.
    pub at_end: bool,
}

/// Puts the entries behind a position. What the server keeps for itself is not there.
pub fn put_entries<'h>(
    context: &mut Context<'_, 'h>,
    (directory, mut after): (FileId, Cookie),
    room: Room,
    out: &mut Encoder,
    mut put_entry: impl FnMut(&mut Context<'_, 'h>, &ReadEntry, &mut Encoder) -> Result<(), Halt>,
) -> Result<Listed, Halt> {
    let bytes = room.end.saturating_sub(out.len()).min(room.name_bytes_max);
    let wanted = (bytes / ENTRY_BYTES_TYPICAL).clamp(1, ENTRIES_AT_ONCE_MAX) + 2;
    let (mut count, mut name_bytes) = (0, 0);
    loop {
        let batch = context.files.read_directory(directory.inode, after, wanted)?;
        let Some(last) = batch.entries.last().map(|entry| entry.cookie) else {
            return Ok(Listed { count, at_end: true });
        };
        // Where the names of the newest position begin.
        let (mut position, mut position_count, mut position_cookie) = (out.mark(), 0, None);
        for entry in &batch.entries {
            if filesystem::engine::is_hidden_name(directory.inode, &entry.name) {
                continue;
            }
            if position_cookie != Some(entry.cookie) {
                if name_bytes >= room.name_bytes_max {
                    return Ok(Listed { count, at_end: false });
                }
                (position, position_count, position_cookie) = (out.mark(), count, Some(entry.cookie));
            }
            put_entry(context, entry, out)?;
            if out.len() > room.end {
                out.truncate(position);
                return Ok(Listed { count: position_count, at_end: false });
            }
            count += 1;
            name_bytes += BESIDE_NAME_BYTES + entry.name.len();
        }
        if batch.at_end {
            return Ok(Listed { count, at_end: true });
        }
        if out.len() + ENTRY_BYTES_TYPICAL > room.end {
            return Ok(Listed { count, at_end: false });
        }
        after = last;
    }
}
