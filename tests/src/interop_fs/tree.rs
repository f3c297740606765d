//! What a filesystem shows of itself: every name with all that is known of its file, comparable whoever read it.

use std::collections::BTreeMap;
use std::hash::Hasher;

use rustc_hash::FxHasher;

use super::Finding;

/// Bytes that a fingerprint takes together. No filesystem has smaller blocks.
pub const CHUNK_BYTES: usize = 1024;
/// Differences told of one comparison.
const TOLD_MAX: usize = 8;

/// Seconds and nanoseconds.
pub type Time = (i64, u32);

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Directories, fifos and sockets: nothing that is compared here.
    Nothing,
    /// A hash of what is not zero, and first bytes and ends of what was written.
    File {
        /// Of the bytes, see [`Fingerprint`].
        hash: u64,
        /// In order.
        written: Vec<(u64, u64)>,
    },
    /// The target of a symbolic link.
    Link(Vec<u8>),
    /// Major and minor number.
    Device(u32, u32),
}

/// A file by one of its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number.
    pub inode: u64,
    /// Kind and permissions, as `st_mode`.
    pub mode: u32,
    /// Owner.
    pub user: u32,
    /// Group of the owner.
    pub group: u32,
    /// Names, and for directories those in them.
    pub links: u64,
    /// Bytes.
    pub size: u64,
    /// What it holds.
    pub content: Content,
    /// Extended attributes and ACLs by their full names.
    pub attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Last read.
    pub accessed: Time,
    /// Last change of the content.
    pub modified: Time,
    /// Last change of anything.
    pub changed: Time,
    /// When it was made, where inodes tell.
    pub created: Option<Time>,
}

/// Everything, by path from the root, whose own path is empty.
pub type Tree = BTreeMap<Vec<u8>, Entry>;

/// A hash of a file's bytes in which zeros do not count, wherever holes are.
#[derive(Default)]
pub struct Fingerprint(FxHasher);

impl Fingerprint {
    /// Adds the bytes at `at`, a multiple of [`CHUNK_BYTES`]; in rising order.
    pub fn add(&mut self, at: u64, bytes: &[u8]) {
        for (number, chunk) in (at / CHUNK_BYTES as u64..).zip(bytes.chunks(CHUNK_BYTES)) {
            let length = chunk.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            if length > 0 {
                self.0.write_u64(number);
                self.0.write(&chunk[..length]);
            }
        }
    }

    /// The hash.
    pub fn finish(self) -> u64 {
        self.0.finish()
    }
}

/// Compares what two readers saw. Errors: the first few differences.
pub fn expect_same(expected: &Tree, found: &Tree, what: &str) -> Result<(), Finding> {
    expect(expected, found, what, |expected, found| expected == found)
}

/// The same with another notion of sameness.
pub fn expect<E: std::fmt::Debug>(
    expected: &BTreeMap<Vec<u8>, E>,
    found: &Tree,
    what: &str,
    mut same: impl FnMut(&E, &Entry) -> bool,
) -> Result<(), Finding> {
    let mut told = Vec::new();
    for (path, entry) in expected {
        match found.get(path) {
            None => told.push(format!("{}: missing", path.escape_ascii())),
            Some(other) if !same(entry, other) => {
                told.push(format!("{}:\n  expected {entry:?}\n  found    {other:?}", path.escape_ascii()));
            }
            Some(_) => {}
        }
    }
    let more = found.keys().filter(|path| !expected.contains_key(*path));
    told.extend(more.map(|path| format!("{}: nobody made it", path.escape_ascii())));
    if told.is_empty() {
        return Ok(());
    }
    let count = told.len();
    told.truncate(TOLD_MAX);
    Err(Finding::Different(format!("{what}: {count} differences\n{}", told.join("\n"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(size: u64) -> Entry {
        Entry {
            inode: 12,
            mode: 0o100_644,
            user: 0,
            group: 0,
            links: 1,
            size,
            content: Content::Nothing,
            attributes: BTreeMap::new(),
            accessed: (0, 0),
            modified: (0, 0),
            changed: (0, 0),
            created: None,
        }
    }

    #[test]
    fn what_is_missing_added_or_changed_is_told() {
        let tree = |rows: &[(&str, u64)]| -> Tree {
            rows.iter().map(|(path, size)| (path.as_bytes().to_vec(), entry(*size))).collect()
        };
        assert!(expect_same(&tree(&[("a", 1)]), &tree(&[("a", 1)]), "same").is_ok());
        let told =
            expect_same(&tree(&[("a", 1), ("b", 2)]), &tree(&[("b", 3), ("c", 4)]), "x").unwrap_err().to_string();
        assert!(told.contains("a: missing") && told.contains("b:\n") && told.contains("c: nobody"), "{told}");
    }

    #[test]
    fn zeros_do_not_count_and_places_do() {
        let hash = |parts: &[(u64, &[u8])]| {
            let mut print = Fingerprint::default();
            parts.iter().for_each(|(at, bytes)| print.add(*at, bytes));
            print.finish()
        };
        let mut long = vec![0; 3 * CHUNK_BYTES];
        long[CHUNK_BYTES] = 7;
        assert_eq!(hash(&[(0, &long)]), hash(&[(CHUNK_BYTES as u64, &[7])]));
        assert_ne!(hash(&[(0, &long)]), hash(&[(0, &[7])]));
    }
}
