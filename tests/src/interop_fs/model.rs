//! What a filesystem should hold after a number of operations, whoever did them.
//!
//! It does not know how permissions follow ACLs, nor the times that nobody set: two readers are compared with each other
//! for those.

use std::collections::BTreeMap;

use super::Finding;
use super::operation::{New, Operation, Taking, Time, join, split};
use super::tree::{self, CHUNK_BYTES, Content, Entry, Fingerprint, Tree};

const CHUNK: u64 = CHUNK_BYTES as u64;
/// What mke2fs makes, and nobody touches.
const LOST_AND_FOUND: &[u8] = b"lost+found";
const ACL_PREFIX: &[u8] = b"system.posix_acl_";

/// Number of a file in the model.
pub type Id = u64;
const ROOT: Id = 0;

/// A file.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it was made as.
    pub new: New,
    mode: u32,
    user: u32,
    group: u32,
    links: u64,
    /// Bytes.
    pub size: u64,
    /// What is not zero, by its number.
    chunks: BTreeMap<u64, Vec<u8>>,
    /// Without ACLs.
    pub attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    accessed: Option<Time>,
    modified: Option<Time>,
    /// An ACL has a say in its mode.
    has_acl: bool,
}

/// All files and names.
#[derive(Clone, Debug)]
pub struct Model {
    /// All files.
    pub nodes: BTreeMap<Id, Node>,
    names: BTreeMap<(Id, Vec<u8>), Id>,
    next: Id,
    extents: bool,
    wide_inodes: bool,
}

/// A file by one of its names, as it should be.
#[derive(Debug)]
struct Expected<'a>(&'a Node, u64);

impl Model {
    /// An empty filesystem, with extents or without, and with nanoseconds or without.
    pub fn new(extents: bool, wide_inodes: bool) -> Self {
        let mut root = Node::new(New::Directory, 0o755);
        root.links = 3;
        Self { nodes: BTreeMap::from([(ROOT, root)]), names: BTreeMap::new(), next: 1, extents, wide_inodes }
    }

    /// The file at a path.
    pub fn find(&self, path: &[u8]) -> Option<Id> {
        let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
        names.into_iter().try_fold(ROOT, |at, name| self.names.get(&(at, name.to_vec())).copied())
    }

    /// Bytes that are not zero, roughly.
    pub fn bytes(&self) -> u64 {
        self.nodes.values().map(|node| node.chunks.len() as u64 * CHUNK).sum()
    }

    /// Paths of all names, with their files; the root first.
    pub fn paths(&self) -> Vec<(Vec<u8>, Id)> {
        let mut paths = vec![(Vec::new(), ROOT)];
        let mut at = 0;
        while let Some((path, id)) = paths.get(at).cloned() {
            let below = self.names.range((id, Vec::new())..(id + 1, Vec::new()));
            paths.extend(below.map(|((_, name), id)| (join(&path, name), *id)));
            at += 1;
        }
        paths
    }

    fn is_directory(&self, id: Id) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.new == New::Directory)
    }

    fn is_empty(&self, id: Id) -> bool {
        self.names.range((id, Vec::new())..(id + 1, Vec::new())).next().is_none()
    }

    /// Does an operation. False: it cannot be done, and nothing has changed.
    pub fn apply(&mut self, operation: &Operation) -> bool {
        match operation {
            Operation::Create { path, new, mode } => self.create(path, new, *mode),
            Operation::Link { from, to } => self.link(from, to),
            Operation::Remove { path, directory } => self.remove(path, *directory),
            Operation::Rename { from, to, how } => self.rename(from, to, *how),
            Operation::Write { path, .. }
            | Operation::Truncate { path, .. }
            | Operation::Allocate { path, .. }
            | Operation::Punch { path, .. }
            | Operation::Zero { path, .. }
            | Operation::Fsync { path } => {
                let extents = self.extents;
                let node = self.find(path).and_then(|id| self.nodes.get_mut(&id));
                node.filter(|node| node.new == New::File).is_some_and(|node| node.change_content(operation, extents))
            }
            Operation::Mode { path, .. }
            | Operation::Owner { path, .. }
            | Operation::Times { path, .. }
            | Operation::SetAttribute { path, .. }
            | Operation::RemoveAttribute { path, .. } => {
                let node = self.find(path).and_then(|id| self.nodes.get_mut(&id));
                node.is_some_and(|node| node.change_inode(operation))
            }
        }
    }

    fn create(&mut self, path: &[u8], new: &New, mode: u32) -> bool {
        let (directory, name) = split(path);
        let Some(parent) = self.find(directory).filter(|id| self.is_directory(*id)) else { return false };
        let place = (parent, name.to_vec());
        if self.names.contains_key(&place) || name == LOST_AND_FOUND {
            return false;
        }
        let mut node = Node::new(new.clone(), if matches!(new, New::Link(_)) { 0o777 } else { mode });
        let Some(above) = self.nodes.get_mut(&parent) else { return false };
        if above.mode & 0o2000 != 0 {
            node.group = above.group;
            node.mode |= if *new == New::Directory { 0o2000 } else { 0 };
        }
        node.has_acl = above.has_acl;
        above.links += u64::from(*new == New::Directory);
        self.names.insert(place, self.next);
        self.nodes.insert(self.next, node);
        self.next += 1;
        true
    }

    fn link(&mut self, from: &[u8], to: &[u8]) -> bool {
        let (directory, name) = split(to);
        let (Some(file), Some(parent)) = (self.find(from), self.find(directory)) else { return false };
        let place = (parent, name.to_vec());
        if self.is_directory(file) || !self.is_directory(parent) || self.names.contains_key(&place) {
            return false;
        }
        self.names.insert(place, file);
        self.add_links(file, 1);
        true
    }

    fn remove(&mut self, path: &[u8], directory: bool) -> bool {
        let (above, name) = split(path);
        let (Some(file), Some(parent)) = (self.find(path), self.find(above)) else { return false };
        if self.is_directory(file) != directory || (directory && !self.is_empty(file)) {
            return false;
        }
        self.names.remove(&(parent, name.to_vec()));
        self.lose(file, parent);
        true
    }

    /// A file has lost a name in a directory.
    fn lose(&mut self, file: Id, parent: Id) {
        if self.is_directory(file) {
            self.nodes.remove(&file);
            self.add_links(parent, -1);
            return;
        }
        self.add_links(file, -1);
        if self.nodes.get(&file).is_some_and(|node| node.links == 0) {
            self.nodes.remove(&file);
        }
    }

    fn add_links(&mut self, file: Id, by: i64) {
        if let Some(node) = self.nodes.get_mut(&file) {
            node.links = node.links.saturating_add_signed(by);
        }
    }

    fn rename(&mut self, from: &[u8], to: &[u8], how: Taking) -> bool {
        let ((from_directory, from_name), (to_directory, to_name)) = (split(from), split(to));
        let (Some(source), Some(old), Some(new)) =
            (self.find(from), self.find(from_directory), self.find(to_directory))
        else {
            return false;
        };
        let target = self.find(to);
        let is_inside = |inside: &[u8], outside: &[u8]| inside == outside || inside.starts_with(&join(outside, b""));
        if !self.is_directory(new) || (self.is_directory(source) && is_inside(to_directory, from)) {
            return false;
        }
        let moves_directory = self.is_directory(source);
        match (how, target) {
            (Taking::NoReplace, Some(_)) | (Taking::Exchange, None) => return false,
            (_, Some(target)) if target == source => return true,
            (Taking::Exchange, Some(target)) => {
                if self.is_directory(target) && is_inside(from_directory, to) {
                    return false;
                }
                self.names.insert((old, from_name.to_vec()), target);
                if self.is_directory(target) {
                    self.add_links(new, -1);
                    self.add_links(old, 1);
                }
            }
            (_, Some(target)) => {
                let empty = !self.is_directory(target) || self.is_empty(target);
                if self.is_directory(target) != moves_directory || !empty {
                    return false;
                }
                self.names.remove(&(old, from_name.to_vec()));
                self.lose(target, new);
            }
            (_, None) => drop(self.names.remove(&(old, from_name.to_vec()))),
        }
        self.names.insert((new, to_name.to_vec()), source);
        if moves_directory {
            self.add_links(old, -1);
            self.add_links(new, 1);
        }
        true
    }

    /// Compares with what a reader saw. Errors: the differences.
    pub fn expect(&self, found: &Tree, what: &str) -> Result<(), Finding> {
        let mut found = found.clone();
        found.remove(LOST_AND_FOUND);
        let paths = self.paths();
        let expected = paths.iter().filter_map(|(path, id)| Some((path.clone(), Expected(self.nodes.get(id)?, *id))));
        let mut inodes: BTreeMap<Id, u64> = BTreeMap::new();
        tree::expect(&expected.collect(), &found, what, |Expected(node, id), entry| {
            let is_same_file = *inodes.entry(*id).or_insert(entry.inode) == entry.inode;
            is_same_file && node.is(entry, self.wide_inodes)
        })
    }

    /// Compares one file with what a reader saw, by its path. Errors: the differences.
    pub fn expect_file(&self, path: &[u8], found: &Tree, what: &str) -> Result<(), Finding> {
        let node = self.find(path).and_then(|id| self.nodes.get(&id));
        match (node, found.get(path)) {
            (Some(node), Some(entry)) if node.is(entry, self.wide_inodes) => Ok(()),
            (node, entry) => Err(Finding::Different(format!("{what}: expected {node:?}\n  found {entry:?}"))),
        }
    }
}

impl Node {
    fn new(new: New, mode: u32) -> Self {
        Self {
            links: if new == New::Directory { 2 } else { 1 },
            size: if let New::Link(target) = &new { target.len() as u64 } else { 0 },
            new,
            mode,
            user: 0,
            group: 0,
            chunks: BTreeMap::new(),
            attributes: BTreeMap::new(),
            accessed: None,
            modified: None,
            has_acl: false,
        }
    }

    fn change_content(&mut self, operation: &Operation, extents: bool) -> bool {
        match operation {
            Operation::Fsync { .. } => return true,
            Operation::Write { at, data, .. } => {
                self.put(*at, data);
                self.size = self.size.max(at + data.len() as u64);
            }
            Operation::Truncate { size, .. } => {
                self.clear(*size, u64::MAX);
                self.size = *size;
            }
            Operation::Allocate { .. } | Operation::Zero { .. } if !extents => return false,
            Operation::Allocate { at, length, keep, .. } if !keep => self.size = self.size.max(at + length),
            Operation::Punch { at, length, .. } => self.clear(*at, at + length),
            Operation::Zero { at, length, keep, .. } => {
                self.clear(*at, at + length);
                if !keep {
                    self.size = self.size.max(at + length);
                }
            }
            _ => {}
        }
        self.modified = None;
        true
    }

    fn put(&mut self, at: u64, mut data: &[u8]) {
        let mut at = at;
        while !data.is_empty() {
            let within = (at % CHUNK) as usize;
            let length = data.len().min(CHUNK_BYTES - within);
            let chunk = self.chunks.entry(at / CHUNK).or_insert_with(|| vec![0; CHUNK_BYTES]);
            chunk[within..within + length].copy_from_slice(&data[..length]);
            (at, data) = (at + length as u64, &data[length..]);
        }
    }

    fn clear(&mut self, from: u64, to: u64) {
        for (number, chunk) in self.chunks.range_mut(from / CHUNK..=to / CHUNK) {
            let start = number * CHUNK;
            let (from, to) = (from.max(start) - start, to.min(start + CHUNK).saturating_sub(start));
            if from < to {
                chunk[from as usize..to as usize].fill(0);
            }
        }
        self.chunks.retain(|_, chunk| chunk.iter().any(|byte| *byte != 0));
    }

    fn change_inode(&mut self, operation: &Operation) -> bool {
        match operation {
            Operation::Mode { mode, .. } => self.mode = *mode,
            Operation::Owner { user, group, .. } => (self.user, self.group) = (*user, *group),
            Operation::Times { accessed, modified, .. } => {
                (self.accessed, self.modified) = (Some(*accessed), Some(*modified));
            }
            Operation::SetAttribute { name, .. } if name.starts_with(ACL_PREFIX) => self.has_acl = true,
            Operation::SetAttribute { name, value, .. } => drop(self.attributes.insert(name.clone(), value.clone())),
            Operation::RemoveAttribute { name, .. } => return self.attributes.remove(name).is_some(),
            _ => {}
        }
        true
    }

    /// Whether a file is this one.
    fn is(&self, entry: &Entry, wide_inodes: bool) -> bool {
        let kind = match self.new {
            New::File => 0o100_000,
            New::Directory => 0o040_000,
            New::Link(_) => 0o120_000,
            New::Fifo => 0o010_000,
            New::Socket => 0o140_000,
            New::Character(..) => 0o020_000,
            New::Block(..) => 0o060_000,
        };
        let content = match (&self.new, &entry.content) {
            (New::File, Content::File { hash, .. }) => self.size == entry.size && *hash == self.hash(),
            (New::Link(target), Content::Link(found)) => target == found && entry.size == self.size,
            (New::Character(major, minor) | New::Block(major, minor), Content::Device(a, b)) => {
                (major, minor) == (a, b)
            }
            (New::Directory | New::Fifo | New::Socket, Content::Nothing) => true,
            _ => false,
        };
        let mode = if self.has_acl { entry.mode & 0o7777 } else { self.mode };
        let mut attributes = entry.attributes.clone();
        attributes.retain(|name, _| !name.starts_with(ACL_PREFIX));
        let time = |expected: Option<Time>, found: Time| {
            expected.is_none_or(|(seconds, nanoseconds)| (seconds, if wide_inodes { nanoseconds } else { 0 }) == found)
        };
        content
            && entry.mode == kind | mode
            && (entry.user, entry.group, entry.links) == (self.user, self.group, self.links)
            && attributes == self.attributes
            && time(self.accessed, entry.accessed)
            && time(self.modified, entry.modified)
    }

    fn hash(&self) -> u64 {
        let mut print = Fingerprint::default();
        for (number, chunk) in &self.chunks {
            print.add(number * CHUNK, chunk);
        }
        print.finish()
    }
}
