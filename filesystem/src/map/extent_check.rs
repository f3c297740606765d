//! A walk through a whole extent tree, as a checker does it.

use super::ExtentTree;
use crate::layout::extent::{Entry, Extent, Node};
use crate::layout::{Corrupt, Structure};
use crate::store::{BlockStore, Stop};
use crate::units::BlockNumber;

/// What a tree consists of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// The extents, in order.
    pub extents: Vec<Extent>,
    /// The blocks of the nodes, parents before their children.
    pub nodes: Vec<BlockNumber>,
    /// The root's depth.
    pub depth: u16,
}

impl ExtentTree {
    /// Reads the whole tree and checks what is visible in it alone: everything that a search checks, that each index has
    /// the first key of its node, that no node is empty, and that extents and nodes do not share blocks. Takes memory for
    /// everything that it finds, no more than the device has blocks.
    ///
    /// Errors: those of the store, and the first thing that is wrong.
    pub fn check<S: BlockStore + ?Sized>(&self, store: &mut S) -> Result<Contents, Stop> {
        let root = self.rules.root(&self.root)?;
        let mut contents = Contents { depth: root.depth(), ..Contents::default() };
        // A stack of nodes to be read: where they are, how far above the leaves, and under which key.
        let mut pending = Vec::new();
        take_in(&root, &mut contents, &mut pending);
        while let Some((at, depth, key)) = pending.pop() {
            let blocks_needed = contents.nodes.len() + pending.len() + contents.extents.len();
            if blocks_needed as u64 >= self.rules.device_blocks {
                return Err(self.broken("more blocks are in use than the device has").into());
            }
            contents.nodes.push(at);
            let node = self.rules.block(store.block(at)?, at, depth)?;
            if node.entries().first().map(Entry::key) != Some(key) {
                return Err(Corrupt::new(Structure::ExtentTree, at.0, "its first key is not its index's").into());
            }
            take_in(&node, &mut contents, &mut pending);
        }
        self.check_order(&contents)?;
        self.check_overlap(&contents)?;
        Ok(contents)
    }

    fn check_order(&self, contents: &Contents) -> Result<(), Corrupt> {
        let ordered = |pair: &[Extent]| matches!(pair, [left, right] if left.end() <= right.file.0);
        if contents.extents.windows(2).all(ordered) { Ok(()) } else { Err(self.broken("extents are out of order")) }
    }

    fn check_overlap(&self, contents: &Contents) -> Result<(), Corrupt> {
        let data = contents.extents.iter().map(|extent| (extent.run.start, extent.run.end()));
        let mut runs: Vec<_> = data.chain(contents.nodes.iter().map(|at| (*at, at.plus(1)))).collect();
        runs.sort_unstable();
        let apart = runs.windows(2).all(|pair| matches!(pair, [left, right] if left.1 <= right.0));
        if apart { Ok(()) } else { Err(self.broken("a block is used twice")) }
    }
}

fn take_in(node: &Node<'_>, contents: &mut Contents, pending: &mut Vec<(BlockNumber, u16, u32)>) {
    match node.depth().checked_sub(1) {
        None => contents.extents.extend(node.entries().iter().map(Entry::extent)),
        Some(depth) => {
            pending.extend(node.entries().iter().rev().map(|entry| (entry.child(), depth, entry.key())));
        }
    }
}
