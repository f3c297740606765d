//! Which operations are done: drawn at random, mostly possible ones, with some that build large structures.

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use super::image::Shape;
use super::model::{Id, Model};
use super::operation::{New, Operation, Taking, join};

/// Bytes that all files of a model have at most, and files.
const BYTES_MAX: u64 = 12 << 20;
const FILES_MAX: usize = 2500;
/// Attributes that one file gets, of bytes together.
const ATTRIBUTES_BYTES_MAX: usize = 600;

/// Later times, from 2310 on, are taken by e2fsck for ones before 1970 that an old kernel wrote.
const TIME_MAX: i64 = 10_700_000_000;

/// Draws operations for a model.
pub struct Mix<'a> {
    /// What the filesystem can do.
    pub shape: &'a Shape,
    /// Decides about everything.
    pub rng: &'a mut ChaCha8Rng,
}

impl Mix<'_> {
    /// One operation, or several that belong together.
    pub fn draw(&mut self, model: &Model) -> Vec<Operation> {
        let paths = model.paths();
        let is_full = model.bytes() > BYTES_MAX || model.nodes.len() > FILES_MAX;
        match self.rng.random_range(0..100) {
            0..=2 if !is_full => self.fill_directory(model, &paths),
            3..=4 => self.empty_directory(model, &paths),
            5..=6 if !is_full => self.scatter(model, &paths),
            7..=32 if !is_full => vec![self.create(model, &paths)],
            33..=62 => self.content(model, &paths, is_full).into_iter().collect(),
            63..=80 => self.names(model, &paths).into_iter().collect(),
            _ => self.inode(model, &paths).into_iter().collect(),
        }
    }

    fn name(&mut self) -> Vec<u8> {
        let length = match self.rng.random_range(0..10) {
            0 => self.rng.random_range(200..=255),
            1 => 1,
            _ => self.rng.random_range(3..20),
        };
        // Bytes above 127 too, where signed and unsigned hashes differ.
        (0..length)
            .map(|_| match self.rng.random_range(0..40_u8) {
                letter @ 0..26 => b'a' + letter,
                high => 0xa0 + high,
            })
            .collect()
    }

    fn pick(&mut self, model: &Model, paths: &[(Vec<u8>, Id)], is: impl Fn(&New) -> bool) -> Option<(Vec<u8>, Id)> {
        let fitting: Vec<_> = paths.iter().filter(|(_, id)| is(&model.nodes[id].new)).collect();
        fitting.choose(self.rng).map(|found| (*found).clone())
    }

    fn directory(&mut self, model: &Model, paths: &[(Vec<u8>, Id)]) -> Vec<u8> {
        // The path of a name has to fit into a call.
        let short: Vec<_> = paths.iter().filter(|(path, _)| path.len() < 1500).cloned().collect();
        self.pick(model, &short, |new| *new == New::Directory).map_or(Vec::new(), |(path, _)| path)
    }

    fn new_path(&mut self, model: &Model, paths: &[(Vec<u8>, Id)]) -> Vec<u8> {
        let name = self.name();
        join(&self.directory(model, paths), &name)
    }

    fn create(&mut self, model: &Model, paths: &[(Vec<u8>, Id)]) -> Operation {
        let path = self.new_path(model, paths);
        let mode = *[0o644, 0o600, 0o755, 0o1777, 0o000].choose(self.rng).unwrap_or(&0o644);
        let (major, minor) = (self.rng.random_range(0..4096), self.rng.random_range(0..1 << 20));
        let new = match self.rng.random_range(0..20) {
            0..=10 => New::File,
            11..=13 => New::Directory,
            14 => New::Fifo,
            15 => New::Socket,
            // Small numbers have an encoding of their own; the character device 0:0 is a whiteout.
            16 => New::Character(major % 255 + 1, minor % 256),
            17 => New::Block(major, minor),
            _ => {
                let length = *[1, 20, 58, 59, 60, 61, 300, 1000].choose(self.rng).unwrap_or(&1);
                New::Link((0..length).map(|at| b'a' + (at % 23) as u8).collect())
            }
        };
        Operation::Create { path, new, mode }
    }

    /// Many names in one directory, so that it gets an index; every third is a hard link of the first.
    fn fill_directory(&mut self, model: &Model, paths: &[(Vec<u8>, Id)]) -> Vec<Operation> {
        let directory = self.directory(model, paths);
        let count = self.rng.random_range(50..600);
        let width = self.rng.random_range(1..60);
        let stem = self.name();
        let stem = &stem[..stem.len().min(20)];
        let path = |at: usize| join(&directory, &[stem, format!("{at:0width$}").as_bytes()].concat());
        let make = |at: usize| match at {
            at if at % 3 == 2 => Operation::Link { from: path(0), to: path(at) },
            at => Operation::Create { path: path(at), new: New::File, mode: 0o640 },
        };
        (0..count).map(make).collect()
    }

    /// Most of what a directory holds goes, and data may take the blocks.
    fn empty_directory(&mut self, model: &Model, paths: &[(Vec<u8>, Id)]) -> Vec<Operation> {
        let directory = self.directory(model, paths);
        let prefix = join(&directory, b"");
        let below = paths.iter().filter(|(path, _)| path.starts_with(&prefix) && !path.is_empty());
        let mut below: Vec<_> = below.collect();
        // The deepest first.
        below.reverse();
        let keep = self.rng.random_range(0..30);
        let mut all: Vec<Operation> = Vec::new();
        for (path, id) in below {
            if keep == 0 || self.rng.random_range(0..30) >= keep.min(10) {
                let directory = model.nodes[id].new == New::Directory;
                all.push(Operation::Remove { path: path.clone(), directory });
            }
        }
        if !directory.is_empty() && keep == 0 {
            all.push(Operation::Remove { path: directory, directory: true });
        }
        all.truncate(800);
        all
    }

    /// A file of many pieces, so that its map gets deep.
    fn scatter(&mut self, model: &Model, paths: &[(Vec<u8>, Id)]) -> Vec<Operation> {
        let path = self.new_path(model, paths);
        let mut all = vec![Operation::Create { path: path.clone(), new: New::File, mode: 0o644 }];
        let apart = *[2, 3, 64, 700].choose(self.rng).unwrap_or(&2) * self.shape.block_bytes;
        for at in 0..self.rng.random_range(20..400_u64) {
            all.push(Operation::Write { path: path.clone(), at: at * apart, data: vec![at as u8 | 1; 100] });
            if at % 64 == 0 && self.rng.random_range(0..3) == 0 {
                all.push(Operation::Fsync { path: path.clone() });
            }
        }
        all
    }

    fn content(&mut self, model: &Model, paths: &[(Vec<u8>, Id)], is_full: bool) -> Option<Operation> {
        let (path, id) = self.pick(model, paths, |new| *new == New::File)?;
        let size = model.nodes[&id].size;
        let block = self.shape.block_bytes;
        let place = match self.rng.random_range(0..8) {
            0..=2 => size,
            3 => self.rng.random_range(0..=size + 300_000),
            4 => self.rng.random_range(0..=size / block) * block,
            5 if self.rng.random_range(0..5) == 0 => self.rng.random_range(0..3_u64 << 30),
            _ => self.rng.random_range(0..=size),
        };
        let length = match self.rng.random_range(0..6) {
            0 => block * self.rng.random_range(1..20),
            1 => self.rng.random_range(1..150_000),
            _ => self.rng.random_range(1..5000),
        };
        let keep = self.rng.random_range(0..2) == 0;
        Some(match self.rng.random_range(0..16) {
            0..=6 if !is_full => {
                let mut data = vec![0; length as usize];
                self.rng.fill(&mut data[..]);
                Operation::Write { path, at: place, data }
            }
            7..=9 => Operation::Truncate { path, size: if keep { place } else { self.rng.random_range(0..=size) } },
            10 | 11 if !is_full => Operation::Allocate { path, at: place, length, keep },
            12 => Operation::Punch { path, at: place, length },
            13 => Operation::Zero { path, at: place, length, keep },
            14 => Operation::Truncate { path, size: 0 },
            _ => Operation::Fsync { path },
        })
    }

    fn names(&mut self, model: &Model, paths: &[(Vec<u8>, Id)]) -> Option<Operation> {
        let (from, id) = paths.get(self.rng.random_range(1..paths.len().max(2)))?.clone();
        let directory = model.nodes[&id].new == New::Directory;
        let other = paths.get(self.rng.random_range(1..paths.len().max(2)))?.0.clone();
        let to = if self.rng.random_range(0..2) == 0 { other } else { self.new_path(model, paths) };
        Some(match self.rng.random_range(0..10) {
            0 | 1 => Operation::Link { from, to },
            2..=5 => Operation::Remove { path: from, directory },
            how => {
                let how = [Taking::Replace, Taking::Replace, Taking::NoReplace, Taking::Exchange][how % 4];
                Operation::Rename { from, to, how }
            }
        })
    }

    fn inode(&mut self, model: &Model, paths: &[(Vec<u8>, Id)]) -> Option<Operation> {
        let (path, id) = self.pick(model, paths, |new| matches!(new, New::File | New::Directory))?;
        let node = &model.nodes[&id];
        let is_directory = node.new == New::Directory;
        Some(match self.rng.random_range(0..12) {
            0 | 1 => {
                let group = if is_directory && self.rng.random_range(0..3) == 0 { 0o2000 } else { 0 };
                Operation::Mode { path, mode: self.rng.random_range(0..0o1000) | group }
            }
            2 | 3 => {
                let user =
                    if self.rng.random_range(0..2) == 0 { self.rng.random_range(0..70_000) } else { 4_000_000_000 };
                Operation::Owner { path, user, group: self.rng.random_range(0..100_000) }
            }
            4 | 5 if !is_directory => {
                let last = if self.shape.wide_inodes { TIME_MAX } else { i64::from(i32::MAX) };
                let mut time =
                    || (self.rng.random_range(-2_000_000_000..last), self.rng.random_range(0..1_000_000_000));
                let (accessed, modified) = (time(), time());
                Operation::Times { path, accessed, modified }
            }
            6 => {
                let kind: &[u8] = if is_directory { b"default" } else { b"access" };
                let value = acl(self.rng.random_range(0..8), self.rng.random_range(1..3000));
                Operation::SetAttribute { path, name: [b"system.posix_acl_", kind].concat(), value }
            }
            7 => {
                let name = node.attributes.keys().next()?.clone();
                Operation::RemoveAttribute { path, name }
            }
            _ => {
                let taken: usize = node.attributes.values().map(Vec::len).sum();
                let length = self.rng.random_range(0..ATTRIBUTES_BYTES_MAX.saturating_sub(taken).max(1));
                let space: &[u8] = [&b"user."[..], b"trusted.", b"security."].choose(self.rng)?;
                let name = [space, [b'n', b'0' + self.rng.random_range(0..6)].as_slice()].concat();
                let value = (0..length).map(|_| self.rng.random()).collect();
                Operation::SetAttribute { path, name, value }
            }
        })
    }
}

/// An ACL with one named user, as user space passes it (version 2).
fn acl(permissions: u16, user: u32) -> Vec<u8> {
    let entries =
        [(1, 7, u32::MAX), (2, permissions, user), (4, 5, u32::MAX), (0x10, 7, u32::MAX), (0x20, 1, u32::MAX)];
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        let (tag, id): (u16, u32) = (tag, id);
        bytes.extend([&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat());
    }
    bytes
}
