//! Files and directories of a disk with a volatile cache.
//!
//! A new, removed or renamed name is durable once its directory was flushed, not before; flushing the file itself does
//! not help it (POSIX promises no more). At a cut the unflushed changes of names survive as a prefix, as in a journal, or
//! each by itself; a rename happens whole or not at all.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{OsStr, OsString};

use rand::Rng;

use super::file::{Fates, VolatileFile};

/// Number of the root directory.
pub const ROOT: u64 = 1;

type Names = BTreeMap<OsString, u64>;

/// What a number stands for.
#[derive(Debug)]
pub enum Node {
    /// A file.
    File(VolatileFile),
    /// A directory.
    Directory(Directory),
}

/// The names in a directory.
#[derive(Debug, Default)]
pub struct Directory {
    /// As they read now.
    pub current: Names,
    durable: Names,
}

/// A change of names that is not flushed.
#[derive(Clone, Debug)]
enum NameChange {
    Link { directory: u64, name: OsString, node: u64 },
    Unlink { directory: u64, name: OsString },
    Rename { from: (u64, OsString), to: (u64, OsString), node: u64 },
}

/// A file system in memory.
#[derive(Debug)]
pub struct Tree {
    nodes: HashMap<u64, Node>,
    next: u64,
    pending: Vec<NameChange>,
}

impl Default for Tree {
    fn default() -> Self {
        let nodes = HashMap::from([(ROOT, Node::Directory(Directory::default()))]);
        Self { nodes, next: ROOT + 1, pending: Vec::new() }
    }
}

impl Tree {
    /// A node.
    pub fn node(&self, number: u64) -> Option<&Node> {
        self.nodes.get(&number)
    }

    /// A file.
    pub fn file(&mut self, number: u64) -> Option<&mut VolatileFile> {
        match self.nodes.get_mut(&number) {
            Some(Node::File(file)) => Some(file),
            _ => None,
        }
    }

    /// A directory.
    pub fn directory(&self, number: u64) -> Option<&Directory> {
        match self.nodes.get(&number) {
            Some(Node::Directory(directory)) => Some(directory),
            _ => None,
        }
    }

    /// What a name leads to.
    pub fn lookup(&self, directory: u64, name: &OsStr) -> Option<u64> {
        self.directory(directory)?.current.get(name).copied()
    }

    /// Makes a file or directory under a name that is free.
    pub fn make(&mut self, directory: u64, name: &OsStr, node: Node) -> u64 {
        let number = self.next;
        self.next += 1;
        self.nodes.insert(number, node);
        self.change(NameChange::Link { directory, name: name.to_owned(), node: number });
        number
    }

    /// Removes a name. Its node stays for those who have it open.
    pub fn unlink(&mut self, directory: u64, name: &OsStr) {
        self.change(NameChange::Unlink { directory, name: name.to_owned() });
    }

    /// Renames; what had the new name loses it. False if there is nothing to rename.
    pub fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr)) -> bool {
        let Some(node) = self.lookup(from.0, from.1) else { return false };
        self.change(NameChange::Rename { from: (from.0, from.1.to_owned()), to: (to.0, to.1.to_owned()), node });
        true
    }

    /// Makes the names of a directory durable.
    pub fn sync_directory(&mut self, directory: u64) {
        let (done, pending): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.pending).into_iter().partition(|change| change.touches(directory));
        self.pending = pending;
        done.iter().for_each(|change| self.apply(change, Times::Durable));
    }

    /// The power goes and comes back. Nobody has anything open any more.
    pub fn cut(&mut self, rng: &mut impl Rng) -> Fates {
        let pending = std::mem::take(&mut self.pending);
        let journal: bool = rng.random();
        let first = rng.random_range(0..=pending.len());
        let mut fates = Fates::default();
        for (number, change) in pending.iter().enumerate() {
            let kept = if journal { number < first } else { rng.random() };
            if kept {
                fates.kept += 1;
                self.apply(change, Times::Durable);
            } else {
                fates.lost += 1;
            }
        }
        // In the order of their numbers, so that a seed means the same every time.
        let mut numbers: Vec<u64> = self.nodes.keys().copied().collect();
        numbers.sort_unstable();
        for number in numbers {
            match self.nodes.get_mut(&number) {
                Some(Node::Directory(directory)) => directory.current = directory.durable.clone(),
                Some(Node::File(file)) => {
                    let Fates { kept, lost, torn } = file.cut(rng);
                    fates = Fates { kept: fates.kept + kept, lost: fates.lost + lost, torn: fates.torn + torn };
                }
                None => {}
            }
        }
        self.forget_unreachable();
        fates
    }

    fn forget_unreachable(&mut self) {
        let mut reached = HashSet::from([ROOT]);
        let mut open = vec![ROOT];
        while let Some(number) = open.pop() {
            for node in self.directory(number).into_iter().flat_map(|directory| directory.current.values()) {
                if reached.insert(*node) {
                    open.push(*node);
                }
            }
        }
        self.nodes.retain(|number, _| reached.contains(number));
    }

    fn change(&mut self, change: NameChange) {
        self.apply(&change, Times::Current);
        self.pending.push(change);
    }

    fn names(&mut self, directory: u64, times: Times) -> Option<&mut Names> {
        match self.nodes.get_mut(&directory) {
            Some(Node::Directory(directory)) => Some(match times {
                Times::Current => &mut directory.current,
                Times::Durable => &mut directory.durable,
            }),
            _ => None,
        }
    }

    fn apply(&mut self, change: &NameChange, times: Times) {
        match change {
            NameChange::Link { directory, name, node } => {
                if let Some(names) = self.names(*directory, times) {
                    names.insert(name.clone(), *node);
                }
            }
            NameChange::Unlink { directory, name } => {
                if let Some(names) = self.names(*directory, times) {
                    names.remove(name);
                }
            }
            NameChange::Rename { from, to, node } => {
                if let Some(names) = self.names(from.0, times)
                    && names.get(&from.1) == Some(node)
                {
                    names.remove(&from.1);
                }
                if let Some(names) = self.names(to.0, times) {
                    names.insert(to.1.clone(), *node);
                }
            }
        }
    }
}

/// Which of the two views of a directory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Times {
    Current,
    Durable,
}

impl NameChange {
    fn touches(&self, wanted: u64) -> bool {
        match self {
            Self::Link { directory, .. } | Self::Unlink { directory, .. } => *directory == wanted,
            Self::Rename { from, to, .. } => from.0 == wanted || to.0 == wanted,
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn file() -> Node {
        Node::File(VolatileFile::default())
    }

    /// What `name` holds after the cut of many seeds: the first byte, or nothing if there is no such name.
    fn outcomes(name: &str, prepare: impl Fn(&mut Tree)) -> HashSet<Option<Vec<u8>>> {
        (0..100)
            .map(|seed| {
                let mut tree = Tree::default();
                prepare(&mut tree);
                tree.cut(&mut ChaCha8Rng::seed_from_u64(seed));
                let number = tree.lookup(ROOT, OsStr::new(name))?;
                tree.file(number).map(|file| file.current().read(0, 1))
            })
            .collect()
    }

    fn write_whole(tree: &mut Tree, name: &str, byte: u8) {
        let number = tree.make(ROOT, OsStr::new(name), file());
        let file = tree.file(number).expect("a file");
        file.write(0, &[byte], false);
        file.sync();
    }

    #[test]
    fn a_name_is_durable_with_its_directory_and_not_before() {
        let both = outcomes("a", |tree| write_whole(tree, "a", 1));
        assert_eq!(both, [None, Some(vec![1])].into());
        let flushed = outcomes("a", |tree| {
            write_whole(tree, "a", 1);
            tree.sync_directory(ROOT);
        });
        assert_eq!(flushed, [Some(vec![1])].into());
    }

    #[test]
    fn a_replaced_file_is_the_old_or_the_new_one_and_never_gone() {
        let replaced = outcomes("a", |tree| {
            write_whole(tree, "a", 1);
            tree.sync_directory(ROOT);
            write_whole(tree, "a.new", 2);
            assert!(tree.rename((ROOT, OsStr::new("a.new")), (ROOT, OsStr::new("a"))));
        });
        assert_eq!(replaced, [Some(vec![1]), Some(vec![2])].into());
    }

    #[test]
    fn a_removed_file_may_come_back_until_its_directory_is_flushed() {
        let removed = outcomes("a", |tree| {
            write_whole(tree, "a", 1);
            tree.sync_directory(ROOT);
            tree.unlink(ROOT, OsStr::new("a"));
        });
        assert_eq!(removed, [None, Some(vec![1])].into());
    }

    #[test]
    fn the_same_seed_gives_the_same_disk() {
        let run = || {
            let mut tree = Tree::default();
            for number in 0..20_u8 {
                let at = tree.make(ROOT, OsStr::new(&format!("file{number}")), file());
                tree.file(at).expect("a file").write(0, &[number; 4096], false);
            }
            tree.cut(&mut ChaCha8Rng::seed_from_u64(5));
            let names = tree.directory(ROOT).expect("the root").current.clone();
            let content = |number: &u64| tree.file(*number).map(|file| file.current().read(0, 4096));
            names.values().collect::<Vec<_>>().into_iter().map(content).collect::<Vec<_>>()
        };
        assert_eq!(run(), run());
    }
}
