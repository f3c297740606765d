//! Extended attributes of an inode as operations: read, set, removed, released, over the inode's body and the blocks of the
//! filesystem.
//!
//! The kernel lets inodes whose attributes are equal share a block. Such a block is left to the others before anything is
//! changed, and none is ever shared from here. Not here: who may do it, the inode's own fields and its checksum (the
//! caller takes [`Change`] to them), and values of the ACLs' names, which [`acl`] reads and writes.

pub mod acl;

use thiserror::Error;

use crate::layout::checksum::Seed;
use crate::layout::xattr::{AttributeSet, EditError, Entry, Name, NameError, Room, SetMode, StoredValue, block, body};
use crate::store::{BlockStore, Stop};
use crate::units::{BlockNumber, BlockRun, InodeNumber};

/// What attributes of all inodes have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Bytes of a block.
    pub block_bytes: usize,
    /// The filesystem's seed, where metadata has checksums.
    pub seed: Option<Seed>,
}

/// Where an inode's attributes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// The inode.
    pub inode: InodeNumber,
    /// Its bytes for attributes, [`body::range`] of it.
    pub body: &'a [u8],
    /// The block of attributes, `i_file_acl`; None for 0.
    pub block: Option<BlockNumber>,
}

/// What an edit makes of the inode. The caller takes it over into the inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The new bytes for attributes, of the same length; None if they stay as they are.
    pub body: Option<Vec<u8>>,
    /// What `i_file_acl` is now.
    pub block: Option<BlockNumber>,
    /// What is added to the blocks that the inode counts as its own, in blocks of the filesystem: -1, 0 or 1.
    pub blocks: i8,
}

/// Why attributes were not read or changed. Nothing was changed then.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AttributeError {
    /// As in [`EditError`].
    #[error(transparent)]
    Edit(#[from] EditError),
    /// It is not a name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The operation has to stop.
    #[error(transparent)]
    Stop(#[from] Stop),
}

/// An edit: where, and with what.
struct Edit<'a, S> {
    store: &'a mut S,
    format: Format,
    place: Place<'a>,
    before: AttributeSet,
}

/// The value of an attribute. Errors: [`EditError::Missing`]; [`EditError::ValueInInode`]; those of the store; broken
/// regions.
pub fn get<S: BlockStore>(
    store: &mut S,
    format: Format,
    place: Place<'_>,
    name: &Name,
) -> Result<Vec<u8>, AttributeError> {
    let value_of = |entries: &[Entry<'_>]| match entries.iter().find(|entry| entry.has_name(name)).map(|e| e.value) {
        Some(StoredValue::Here(value)) => Ok(Some(value.to_vec())),
        Some(StoredValue::InInode { .. }) => Err(EditError::ValueInInode),
        None => Ok(None),
    };
    if let Some(value) = value_of(&body::entries(place.body, place.inode).map_err(Stop::from)?)? {
        return Ok(value);
    }
    if let Some(at) = place.block {
        let entries = block::entries(store.block(at)?, at, format.seed).map_err(Stop::from)?;
        if let Some(value) = value_of(&entries)? {
            return Ok(value);
        }
    }
    Err(EditError::Missing.into())
}

/// The names of all attributes, each once, also those whose namespace has no prefix ([`Name::full`] is None). Errors: those
/// of the store; broken regions.
pub fn list<S: BlockStore>(store: &mut S, format: Format, place: Place<'_>) -> Result<Vec<Name>, AttributeError> {
    let entries = body::entries(place.body, place.inode).map_err(Stop::from)?;
    let mut names: Vec<Name> = entries.iter().map(Entry::name).collect();
    if let Some(at) = place.block {
        let entries = block::entries(store.block(at)?, at, format.seed).map_err(Stop::from)?;
        names.extend(entries.iter().map(Entry::name));
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// Sets an attribute; a new block is taken near `goal`. Errors: [`EditError`]; those of the store; broken regions.
pub fn set<S: BlockStore>(
    store: &mut S,
    format: Format,
    place: Place<'_>,
    (name, value): (&Name, &[u8]),
    mode: SetMode,
    goal: BlockNumber,
) -> Result<Change, AttributeError> {
    let edit = Edit::start(store, format, place)?;
    let room = Room { body: body::room(place.body.len()), block: block::room(format.block_bytes) };
    let mut after = edit.before.clone();
    after.set(name, value, mode, room)?;
    Ok(edit.finish(after, goal)?)
}

/// Removes an attribute, and the block with the last one in it. Errors: [`EditError::Missing`];
/// [`EditError::ValueInInode`]; those of the store; broken regions.
pub fn remove<S: BlockStore>(
    store: &mut S,
    format: Format,
    place: Place<'_>,
    name: &Name,
    goal: BlockNumber,
) -> Result<Change, AttributeError> {
    let edit = Edit::start(store, format, place)?;
    let mut after = edit.before.clone();
    after.remove(name)?;
    Ok(edit.finish(after, goal)?)
}

/// Gives up an inode's block of attributes when the inode is freed: others that share it keep it. Errors: those of the
/// store; a broken header.
pub fn release<S: BlockStore>(store: &mut S, format: Format, at: BlockNumber) -> Result<(), Stop> {
    if block::references(store.block(at)?, at, format.seed)? > 1 {
        block::drop_reference(store.block_mut(at)?, at, format.seed);
        return Ok(());
    }
    store.free(BlockRun::new(at, 1), true)
}

impl<'a, S: BlockStore> Edit<'a, S> {
    fn start(store: &'a mut S, format: Format, place: Place<'a>) -> Result<Self, AttributeError> {
        let in_body = body::entries(place.body, place.inode).map_err(Stop::from)?;
        let in_block = match place.block {
            Some(at) => block::entries(store.block(at)?, at, format.seed).map_err(Stop::from)?,
            None => Vec::new(),
        };
        let before = AttributeSet::new(&in_body, &in_block)?;
        Ok(Self { store, format, place, before })
    }

    /// Writes what differs.
    fn finish(mut self, after: AttributeSet, goal: BlockNumber) -> Result<Change, Stop> {
        let mut change = Change { body: None, block: self.place.block, blocks: 0 };
        // A block without attributes, which other tools may have left, is freed by whatever edit comes first.
        if after.block != self.before.block || (after.block.is_empty() && self.place.block.is_some()) {
            change.block = self.write_block(&after, goal)?;
            change.blocks = i8::from(change.block.is_some()) - i8::from(self.place.block.is_some());
        }
        if after.body != self.before.body {
            let mut bytes = self.place.body.to_vec();
            body::write(&mut bytes, &after.body);
            change.body = Some(bytes);
        }
        Ok(change)
    }

    /// Gives the block that holds them now.
    fn write_block(&mut self, after: &AttributeSet, goal: BlockNumber) -> Result<Option<BlockNumber>, Stop> {
        let Format { seed, .. } = self.format;
        let attributes = &after.block;
        match self.place.block {
            Some(at) if !attributes.is_empty() && block::references(self.store.block(at)?, at, seed)? == 1 => {
                block::write(self.store.block_mut(at)?, attributes, at, seed);
                return Ok(Some(at));
            }
            Some(at) => release(self.store, self.format, at)?,
            None => {}
        }
        if attributes.is_empty() {
            return Ok(None);
        }
        let at = self.store.allocate(goal)?;
        block::write(self.store.new_block(at)?, attributes, at, seed);
        Ok(Some(at))
    }
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod model_tests;
