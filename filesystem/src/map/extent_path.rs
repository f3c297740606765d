//! The way from the root of an extent tree to a leaf, every node of it checked, also against its parent.

use smallvec::SmallVec;

use crate::layout::extent::{DEPTH_MAX, Node, NodeRules, ROOT_SIZE};
use crate::layout::{Corrupt, Structure};
use crate::store::{BlockStore, Stop};
use crate::units::BlockNumber;

/// Where a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Root,
    Block(BlockNumber),
}

impl Place {
    /// Something wrong with the node there.
    pub(super) fn broken(self, rules: &NodeRules, what: &'static str) -> Corrupt {
        match self {
            Self::Root => Corrupt::new(Structure::Inode, u64::from(rules.inode.0), what),
            Self::Block(at) => Corrupt::new(Structure::ExtentTree, at.0, what),
        }
    }
}

/// A node of a path.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) place: Place,
    /// The entry that the path goes on with; in a leaf without a meaning.
    pub(super) position: usize,
    pub(super) entries: usize,
    pub(super) max: usize,
    pub(super) depth: u16,
}

/// From the root to a leaf.
pub(super) struct Path {
    pub(super) steps: SmallVec<[Step; DEPTH_MAX as usize + 1]>,
    /// The key under which the leaf is found; None when the leaf is the root.
    pub(super) lower: Option<u32>,
    /// The key of the next leaf; None when there is none.
    pub(super) upper: Option<u32>,
    leaf: Step,
}

impl Path {
    /// The last step.
    pub(super) fn leaf(&self) -> Step {
        self.leaf
    }

    /// True when there is no leaf before this one.
    pub(super) fn is_leftmost(&self) -> bool {
        self.steps.iter().rev().skip(1).all(|step| step.position == 0)
    }
}

/// The path to the leaf where `at` is or would be. Errors: those of the store, and what is wrong with a node of it.
pub(super) fn path_to<S: BlockStore + ?Sized>(
    store: &mut S,
    root: &[u8; ROOT_SIZE],
    rules: &NodeRules,
    at: u32,
) -> Result<Path, Stop> {
    let mut steps = SmallVec::new();
    let (mut lower, mut upper) = (None, None);
    let mut place = Place::Root;
    let mut depth = 0;
    loop {
        let node = match place {
            Place::Root => rules.root(root)?,
            Place::Block(at) => rules.block(store.block(at)?, at, depth)?,
        };
        check_bounds(&node, lower, upper).map_err(|what| place.broken(rules, what))?;
        let position = node.position_after(at).saturating_sub(1);
        let step = Step { place, position, entries: node.entries().len(), max: node.max(), depth: node.depth() };
        steps.push(step);
        if node.depth() == 0 {
            return Ok(Path { steps, lower, upper, leaf: step });
        }
        let chosen = node.entries().get(position).ok_or_else(|| place.broken(rules, "a node has no entry"))?;
        lower = Some(chosen.key());
        upper = node.entries().get(position + 1).map(|next| next.key()).or(upper);
        place = Place::Block(chosen.child());
        depth = node.depth() - 1;
    }
}

/// The node at a place that a path has been through.
pub(super) fn node_of<'a, S: BlockStore + ?Sized>(
    store: &'a mut S,
    root: &'a [u8; ROOT_SIZE],
    rules: &NodeRules,
    place: Place,
) -> Result<Node<'a>, Stop> {
    let bytes = match place {
        Place::Root => root.as_slice(),
        Place::Block(at) => store.block(at)?,
    };
    Ok(Node::trusted(bytes).ok_or_else(|| place.broken(rules, "the entries do not fit"))?)
}

/// What a node maps is between its own key and its neighbour's.
fn check_bounds(node: &Node<'_>, lower: Option<u32>, upper: Option<u32>) -> Result<(), &'static str> {
    let (Some(first), Some(last)) = (node.entries().first(), node.entries().last()) else { return Ok(()) };
    if lower.is_some_and(|lower| first.key() < lower) {
        return Err("a node begins before its parent's index");
    }
    let end = if node.depth() == 0 { last.extent().end() } else { last.key().saturating_add(1) };
    if upper.is_some_and(|upper| end > upper) {
        return Err("a node reaches beyond its parent's next index");
    }
    Ok(())
}
