//! What either side is asked to do: one change of a filesystem by path.

/// Seconds and nanoseconds.
pub use super::tree::Time;

/// What is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum New {
    /// An empty regular file.
    File,
    /// An empty directory.
    Directory,
    /// A symbolic link with this target.
    Link(Vec<u8>),
    /// A named pipe.
    Fifo,
    /// The name of a socket.
    Socket,
    /// A character device: major and minor number.
    Character(u32, u32),
    /// A block device, likewise.
    Block(u32, u32),
}

/// How a name is taken that may exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taking {
    /// What has it loses it.
    Replace,
    /// Nothing may have it.
    NoReplace,
    /// The two change places.
    Exchange,
}

/// A change. Paths have no leading slash; the root's is empty. Places and lengths are in bytes.
#[allow(missing_docs, reason = "the names of the fields say it all")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    Create {
        path: Vec<u8>,
        new: New,
        mode: u32,
    },
    Write {
        path: Vec<u8>,
        at: u64,
        data: Vec<u8>,
    },
    Truncate {
        path: Vec<u8>,
        size: u64,
    },
    /// Room is allocated, and the file grows unless `keep`.
    Allocate {
        path: Vec<u8>,
        at: u64,
        length: u64,
        keep: bool,
    },
    Punch {
        path: Vec<u8>,
        at: u64,
        length: u64,
    },
    Zero {
        path: Vec<u8>,
        at: u64,
        length: u64,
        keep: bool,
    },
    Fsync {
        path: Vec<u8>,
    },
    Link {
        from: Vec<u8>,
        to: Vec<u8>,
    },
    Remove {
        path: Vec<u8>,
        directory: bool,
    },
    Rename {
        from: Vec<u8>,
        to: Vec<u8>,
        how: Taking,
    },
    Mode {
        path: Vec<u8>,
        mode: u32,
    },
    Owner {
        path: Vec<u8>,
        user: u32,
        group: u32,
    },
    Times {
        path: Vec<u8>,
        accessed: Time,
        modified: Time,
    },
    SetAttribute {
        path: Vec<u8>,
        name: Vec<u8>,
        value: Vec<u8>,
    },
    RemoveAttribute {
        path: Vec<u8>,
        name: Vec<u8>,
    },
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has happened.
    Done,
    /// There was no room; nothing has happened.
    NoSpace,
    /// It cannot be done; nothing has happened.
    Refused(String),
}

/// The directory and the name in it.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

/// The path of a name in a directory.
pub fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, name].join(&b'/') }
}
