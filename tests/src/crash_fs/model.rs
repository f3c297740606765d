//! What the tree is to be, after each operation: names and inodes, as plain maps, and the changes from state to state.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use block_device::BlockDevice;
use filesystem::directory::Cookie;
use filesystem::engine::Filesystem;
use filesystem::units::ROOT_INODE;
use filesystem::{InodeNumber, TransactionId};

use super::contents::{History, Illegal};
use super::data::FileId;

/// A name in a directory.
pub(super) type Place = (u32, Vec<u8>);

/// Entries that are read at a time.
const BATCH: usize = 50;

/// What of an inode is compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) mode: u16,
    pub(super) links: u16,
    pub(super) generation: u32,
    /// 0 for directories. Of regular files it is no matter of the tree's states.
    pub(super) size: u64,
    /// Of a symbolic link whose target lies in the inode.
    pub(super) target: Option<Vec<u8>>,
    pub(super) user: u32,
    pub(super) group: u32,
    /// Extended attributes.
    pub(super) attributes: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Node {
    pub(super) fn is_directory(&self) -> bool {
        self.mode & 0xf000 == 0x4000
    }

    pub(super) fn is_regular(&self) -> bool {
        self.mode & 0xf000 == 0x8000
    }
}

/// A whole tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tree {
    pub(super) names: BTreeMap<Place, u32>,
    pub(super) nodes: BTreeMap<u32, Node>,
    /// Of regular files.
    pub(super) contents: BTreeMap<u32, Vec<u8>>,
}

impl Tree {
    /// Reads the tree of a filesystem from its root. Errors: something in it cannot be read, or is named and not in use.
    pub(super) async fn read<D: BlockDevice>(mounted: &Filesystem<D>) -> Result<Self> {
        let mut tree = Self::default();
        tree.read_node(mounted, ROOT_INODE).await?;
        let mut waiting = vec![ROOT_INODE];
        while let Some(directory) = waiting.pop() {
            let mut after = Cookie::START;
            loop {
                let batch = mounted.run(|handle| handle.read_directory(directory, after, BATCH)).await;
                let batch = batch.with_context(|| format!("reading directory {}", directory.0))?.value;
                for entry in batch.entries {
                    after = entry.cookie;
                    if entry.name == b"." || entry.name == b".." {
                        continue;
                    }
                    let is_new = tree.read_node(mounted, entry.inode).await?;
                    if is_new && tree.nodes[&entry.inode.0].is_directory() {
                        waiting.push(entry.inode);
                    }
                    tree.names.insert((directory.0, entry.name), entry.inode.0);
                }
                if batch.at_end {
                    break;
                }
            }
        }
        Ok(tree)
    }

    async fn read_node<D: BlockDevice>(&mut self, mounted: &Filesystem<D>, number: InodeNumber) -> Result<bool> {
        if self.nodes.contains_key(&number.0) {
            return Ok(false);
        }
        let inode = mounted.run(|handle| handle.live(number)).await;
        let inode = inode.with_context(|| format!("inode {}, which has a name", number.0))?.value;
        let attributes = mounted.run(|handle| {
            let names = handle.list_attributes(number)?;
            names.into_iter().map(|name| Ok((name.clone(), handle.get_attribute(number, &name)?))).collect()
        });
        let attributes = attributes.await.with_context(|| format!("attributes of inode {}", number.0))?.value;
        let mut node = Node {
            mode: inode.mode.0,
            links: inode.links,
            generation: inode.generation,
            size: inode.size,
            target: inode.fast_symlink().map(<[u8]>::to_vec),
            user: inode.user,
            group: inode.group,
            attributes,
        };
        if node.is_directory() {
            node.size = 0;
        }
        if node.is_regular() {
            let content = mounted.read(number, 0, usize::try_from(inode.size)?.max(1)).await;
            let content = content.with_context(|| format!("reading inode {}", number.0))?.value;
            ensure!(content.len() as u64 == inode.size, "{} bytes of inode {} are read", content.len(), number.0);
            self.contents.insert(number.0, content.to_vec());
        }
        self.nodes.insert(number.0, node);
        Ok(true)
    }

    /// All directories.
    pub(super) fn directories(&self) -> Vec<u32> {
        self.nodes.iter().filter(|(_, node)| node.is_directory()).map(|(number, _)| *number).collect()
    }
}

/// What one operation did to the tree; `None` is for what is gone.
#[derive(Debug, Default)]
struct Change {
    transaction: TransactionId,
    names: Vec<(Place, Option<u32>)>,
    nodes: Vec<(u32, Option<Node>)>,
}

/// All states of the tree, one after each operation, and what of them was acknowledged when.
#[derive(Debug)]
pub(super) struct Model {
    first: Tree,
    changes: Vec<Change>,
    tree: Tree,
    pending: Change,
    /// Oldest first.
    acknowledged: Vec<Acknowledged>,
    /// What was and is in regular files.
    pub(super) files: BTreeMap<FileId, History>,
}

/// What was known to be durable at a moment of the record.
#[derive(Clone, Copy, Debug, Default)]
struct Acknowledged {
    position: usize,
    /// The newest state of the tree.
    state: usize,
    /// The newest transaction.
    transaction: Option<TransactionId>,
}

/// How a tree that was found stands to the states of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is a state that may be there.
    Legal,
    /// It is a state, but an older one than was acknowledged.
    Old { state: usize, least: usize },
    /// It is none of the states, or one in the middle of a transaction.
    Foreign,
}

impl Model {
    /// State 0 is there from the record's beginning.
    pub(super) fn new(first: Tree) -> Self {
        let (changes, pending) = (Vec::new(), Change::default());
        let content = |inode| first.contents.get(inode).map_or(&[][..], |content| content);
        let regular = first.nodes.iter().filter(|(_, node)| node.is_regular());
        let files = regular.map(|(inode, node)| ((*inode, node.generation), History::new(content(inode)))).collect();
        // What is in files is the histories' matter from here on.
        let tree = Tree { contents: BTreeMap::new(), ..first.clone() };
        Self { tree, first, changes, pending, acknowledged: vec![Acknowledged::default()], files }
    }

    /// The tree as it is now, the running operation's changes included.
    pub(super) fn tree(&self) -> &Tree {
        &self.tree
    }

    /// State 0.
    pub(super) fn first(&self) -> &Tree {
        &self.first
    }

    /// The transaction of the last operation.
    pub(super) fn last_transaction(&self) -> Option<TransactionId> {
        self.changes.last().map(|change| change.transaction)
    }

    /// The last state in which an inode was changed by an operation on names.
    pub(super) fn last_state_of(&self, inode: u32) -> usize {
        let touches = |change: &Change| change.nodes.iter().any(|(number, _)| *number == inode);
        self.changes.iter().rposition(touches).map_or(0, |change| change + 1)
    }

    /// How many states there are.
    pub(super) fn states(&self) -> usize {
        self.changes.len() + 1
    }

    pub(super) fn set_name(&mut self, place: Place, inode: Option<u32>) {
        match inode {
            Some(inode) => drop(self.tree.names.insert(place.clone(), inode)),
            None => drop(self.tree.names.remove(&place)),
        }
        self.pending.names.push((place, inode));
    }

    pub(super) fn set_node(&mut self, inode: u32, node: Option<Node>) {
        match &node {
            Some(node) => {
                if node.is_regular() {
                    self.files.entry((inode, node.generation)).or_insert_with(|| History::new(&[]));
                }
                self.tree.nodes.insert(inode, node.clone());
            }
            None => drop(self.tree.nodes.remove(&inode)),
        }
        self.pending.nodes.push((inode, node));
    }

    /// The changes since the last state are one operation, durable with `transaction`.
    pub(super) fn end_of_operation(&mut self, transaction: TransactionId) {
        let change = std::mem::take(&mut self.pending);
        self.changes.push(Change { transaction, ..change });
    }

    /// At this moment of the record `transaction` was said to be durable.
    pub(super) fn acknowledge(&mut self, position: usize, transaction: TransactionId) {
        let later = |change: &&Change| transaction.is_before(change.transaction);
        let state = self.changes.len() - self.changes.iter().rev().take_while(later).count();
        let last = self.acknowledged.last().copied().unwrap_or_default();
        let is_newer = last.transaction.is_none_or(|last| last.is_before(transaction));
        let transaction = if is_newer { Some(transaction) } else { last.transaction };
        self.acknowledged.push(Acknowledged { position, state: state.max(last.state), transaction });
    }

    /// Moments of the record at which something was acknowledged.
    pub(super) fn moments(&self) -> Vec<usize> {
        self.acknowledged.iter().map(|known| known.position).collect()
    }

    /// At this moment of the record a state was known to be durable.
    pub(super) fn acknowledge_state(&mut self, position: usize, state: usize) {
        let last = self.acknowledged.last().copied().unwrap_or_default();
        self.acknowledged.push(Acknowledged { position, state: state.max(last.state), ..last });
    }

    /// At this moment of the record everything is durable.
    pub(super) fn all_is_durable(&mut self, position: usize) {
        if let Some(last) = self.last_transaction() {
            self.acknowledge(position, last);
        }
        for history in self.files.values_mut() {
            let step = history.last_step();
            history.synced(position, step);
        }
    }

    fn acknowledged_at(&self, position: usize) -> Acknowledged {
        let before = self.acknowledged.partition_point(|known| known.position <= position);
        self.acknowledged[..before].last().copied().unwrap_or_default()
    }

    /// The last state that had been acknowledged at a moment of the record.
    fn least(&self, position: usize) -> usize {
        self.acknowledged_at(position).state
    }

    /// Judges what is in the files of a tree; of which generation they are, `generations` tells.
    pub(super) fn judge_contents(&self, found: &Tree, generations: &Tree, position: usize) -> Result<(), Illegal> {
        let acknowledged = self.acknowledged_at(position).transaction;
        for (inode, content) in &found.contents {
            let generation = generations.nodes.get(inode).map_or(0, |node| node.generation);
            let history = self.files.get(&(*inode, generation));
            let what = |what| format!("inode {inode}: {what}");
            let history = history.ok_or_else(|| Illegal::Foreign(what("no such file".to_owned())))?;
            history.judge(content, position, acknowledged).map_err(|illegal| match illegal {
                Illegal::Old(why) => Illegal::Old(what(why)),
                Illegal::Foreign(why) => Illegal::Foreign(what(why)),
            })?;
        }
        Ok(())
    }

    /// Of a transaction all operations are there, or none.
    fn is_end_of_transaction(&self, state: usize) -> bool {
        let of = |state: usize| state.checked_sub(1).map(|change| self.changes[change].transaction);
        state == self.changes.len() || of(state) != of(state + 1)
    }

    /// Compares a tree that was found after a loss of power at `position` with all states; generations and extended attributes
    /// only `with_hidden`.
    pub(super) fn standing(&self, found: &Tree, position: usize, with_hidden: bool) -> Standing {
        let least = self.least(position);
        let states = self.equal_states(found, with_hidden);
        if states.iter().any(|state| *state >= least && self.is_end_of_transaction(*state)) {
            return Standing::Legal;
        }
        match states.last() {
            Some(state) if *state < least => Standing::Old { state: *state, least },
            _ => Standing::Foreign,
        }
    }

    fn equal_states(&self, found: &Tree, with_hidden: bool) -> Vec<usize> {
        let mut comparison = Comparison::new(&self.first, found, with_hidden);
        let mut equal = Vec::new();
        if comparison.different == 0 {
            equal.push(0);
        }
        for (number, change) in self.changes.iter().enumerate() {
            comparison.apply(change);
            if comparison.different == 0 {
                equal.push(number + 1);
            }
        }
        equal
    }

    /// In what a tree differs from the state that it is nearest to, of those from `least` on: for people.
    pub(super) fn differences(&self, found: &Tree, position: usize, with_hidden: bool) -> String {
        let least = self.least(position);
        let mut comparison = Comparison::new(&self.first, found, with_hidden);
        let mut nearest = (usize::MAX, 0, String::new());
        for number in 0..self.states() {
            if number > 0 {
                comparison.apply(&self.changes[number - 1]);
            }
            if number >= least && comparison.different < nearest.0 {
                nearest = (comparison.different, number, comparison.describe());
            }
        }
        let (count, number, text) = nearest;
        format!("{count} differences from state {number} (acknowledged: {least}, of {}): {text}", self.states())
    }
}

/// A tree that was found beside a state that goes through all changes: how many names and inodes differ.
struct Comparison<'a> {
    names: BTreeMap<&'a Place, u32>,
    nodes: BTreeMap<u32, &'a Node>,
    found: &'a Tree,
    with_hidden: bool,
    different: usize,
}

impl<'a> Comparison<'a> {
    fn new(first: &'a Tree, found: &'a Tree, with_hidden: bool) -> Self {
        let mut comparison = Self {
            names: BTreeMap::new(),
            nodes: BTreeMap::new(),
            found,
            with_hidden,
            different: found.names.len() + found.nodes.len(),
        };
        first.names.iter().for_each(|(place, inode)| comparison.set_name(place, Some(*inode)));
        first.nodes.iter().for_each(|(inode, node)| comparison.set_node(*inode, Some(node)));
        comparison
    }

    fn apply(&mut self, change: &'a Change) {
        change.names.iter().for_each(|(place, inode)| self.set_name(place, *inode));
        change.nodes.iter().for_each(|(inode, node)| self.set_node(*inode, node.as_ref()));
    }

    fn set_name(&mut self, place: &'a Place, inode: Option<u32>) {
        let found = self.found.names.get(place).copied();
        let before = match inode {
            Some(inode) => self.names.insert(place, inode),
            None => self.names.remove(place),
        };
        self.count(before == found, inode == found);
    }

    fn set_node(&mut self, inode: u32, node: Option<&'a Node>) {
        let found = self.found.nodes.get(&inode);
        let before = match node {
            Some(node) => self.nodes.insert(inode, node),
            None => self.nodes.remove(&inode),
        };
        let (was, is) = (self.is_same(before, found), self.is_same(node, found));
        self.count(was, is);
    }

    fn is_same(&self, node: Option<&Node>, found: Option<&Node>) -> bool {
        let (Some(node), Some(found)) = (node, found) else { return node.is_none() && found.is_none() };
        (node.mode, node.links, &node.target, node.user, node.group)
            == (found.mode, found.links, &found.target, found.user, found.group)
            && (node.is_regular() || node.size == found.size)
            && (!self.with_hidden || (node.generation == found.generation && node.attributes == found.attributes))
    }

    fn count(&mut self, was_same: bool, is_same: bool) {
        self.different = self.different + usize::from(was_same) - usize::from(is_same);
    }

    /// The first few differences.
    fn describe(&self) -> String {
        let places = self.names.keys().copied().chain(self.found.names.keys());
        let names = places.filter_map(|place| {
            let (model, found) = (self.names.get(place), self.found.names.get(place));
            let name = String::from_utf8_lossy(&place.1);
            (model != found).then(|| format!("name {name} in {}: {found:?}, not {model:?}", place.0))
        });
        let numbers = self.nodes.keys().chain(self.found.nodes.keys());
        let nodes = numbers.filter_map(|inode| {
            let (model, found) = (self.nodes.get(inode).copied(), self.found.nodes.get(inode));
            (!self.is_same(model, found)).then(|| format!("inode {inode}: {found:?}, not {model:?}"))
        });
        let mut all: Vec<String> = names.chain(nodes).collect();
        all.dedup();
        all.truncate(12);
        all.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Node {
        Node { mode: 0x81ed, links: 1, generation: 7, ..Node::default() }
    }

    /// Three states after the first, the last two of one transaction; the first of them acknowledged at moment 10.
    fn model() -> Model {
        let mut model = Model::new(Tree::default());
        for (inode, transaction) in [(11, 5), (12, 6), (13, 6)] {
            model.set_name((2, vec![inode as u8]), Some(inode));
            model.set_node(inode, Some(node()));
            model.end_of_operation(TransactionId(transaction));
            if inode == 11 {
                model.acknowledge(10, TransactionId(5));
            }
        }
        model
    }

    fn tree(inodes: impl IntoIterator<Item = u32>) -> Tree {
        let inodes: Vec<u32> = inodes.into_iter().collect();
        let names = inodes.iter().map(|inode| ((2, vec![*inode as u8]), *inode)).collect();
        Tree { names, nodes: inodes.iter().map(|inode| (*inode, node())).collect(), ..Tree::default() }
    }

    #[test]
    fn an_acknowledged_operation_must_be_there_and_others_may() {
        let model = model();
        assert_eq!(model.standing(&tree([]), 9, true), Standing::Legal);
        assert_eq!(model.standing(&tree([]), 10, true), Standing::Old { state: 0, least: 1 });
        assert_eq!(model.standing(&tree([11]), 10, true), Standing::Legal);
        assert_eq!(model.standing(&tree([11, 12, 13]), 10, true), Standing::Legal);
    }

    #[test]
    fn half_a_transaction_and_anything_else_is_foreign() {
        let model = model();
        assert_eq!(model.standing(&tree([11, 12]), 10, true), Standing::Foreign);
        assert_eq!(model.standing(&tree([12]), 0, true), Standing::Foreign);
        let mut other = tree([11]);
        other.nodes.insert(11, Node { links: 2, ..node() });
        assert_eq!(model.standing(&other, 0, true), Standing::Foreign);
        assert!(model.differences(&other, 0, true).contains("links: 2"), "{}", model.differences(&other, 0, true));
    }

    #[test]
    fn what_the_kernel_does_not_show_counts_only_elsewhere() {
        let mut other = tree([11]);
        other.nodes.insert(11, Node { generation: 0, ..node() });
        assert_eq!(model().standing(&other, 0, true), Standing::Foreign);
        assert_eq!(model().standing(&other, 0, false), Standing::Legal);
    }
}
