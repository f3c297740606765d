//! The extended attributes of one inode: where each is kept, and what setting or removing one does to that.
//!
//! An inode has up to two places for them: what is left of its own body, and one block (ext4 on-disk format, "Extended
//! Attributes"). [`AttributeSet`] is both, decoded; edits happen there and are encoded whole, so that free space is in one
//! piece after each. Values in inodes of their own (`ea_inode`) are shown, never followed, and forbid edits. Not here: who
//! may see or change which attribute, and what values mean.

pub mod block;
pub mod body;
mod hash;
pub mod name;
mod region;

use thiserror::Error;

pub use self::name::{Name, NameError, NameIndex};
pub use self::region::{Entry, StoredValue};

/// The magic number both forms start with.
pub const MAGIC: u32 = 0xEA02_0000;

/// The longest name, in bytes and without its namespace.
pub const NAME_BYTES_MAX: usize = 255;

/// An attribute, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attribute {
    /// Its name.
    pub name: Name,
    /// Its value; on disk in the same region, behind the entries.
    pub value: Vec<u8>,
}

/// The attributes of one inode by the places they are kept in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttributeSet {
    /// Those in the inode's body, in the order of their entries.
    pub body: Vec<Attribute>,
    /// Those in the block, in the order of their entries.
    pub block: Vec<Attribute>,
}

/// How many bytes entries and values may take in each place, as [`body::room`] and [`block::room`] give them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// In the inode's body; 0 where it has no place for attributes.
    pub body: usize,
    /// In a block.
    pub block: usize,
}

/// What is demanded of an attribute that is set (setxattr(2), `flags`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SetMode {
    /// Nothing: made or replaced.
    #[default]
    Any,
    /// That it is not there yet.
    Create,
    /// That it is there.
    Replace,
}

/// Why attributes were not changed. They are as they were.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum EditError {
    /// It is there, and was to be made.
    #[error("the attribute exists")]
    Exists,
    /// It is not there.
    #[error("there is no such attribute")]
    Missing,
    /// The inode's body and one block cannot hold all of them, in any arrangement.
    #[error("the attributes do not fit")]
    NoSpace,
    /// A value is in an inode of its own (`ea_inode`), which is neither read nor written.
    #[error("an attribute's value is in an inode of its own, which is not supported")]
    ValueInInode,
}

impl Attribute {
    /// Bytes that the entry and the value take in a region.
    pub fn stored_bytes(&self) -> usize {
        region::stored_bytes(self.name.suffix().len(), self.value.len())
    }
}

impl AttributeSet {
    /// From the entries of both places. Errors: [`EditError::ValueInInode`].
    pub fn new(body: &[Entry<'_>], block: &[Entry<'_>]) -> Result<Self, EditError> {
        Ok(Self { body: owned(body)?, block: owned(block)? })
    }

    /// The value of `name`; that in the body if both places have one, as the kernel looks.
    pub fn get(&self, name: &Name) -> Option<&[u8]> {
        self.iter().find(|attribute| attribute.name == *name).map(|attribute| attribute.value.as_slice())
    }

    /// All of them, the body's first.
    pub fn iter(&self) -> impl Iterator<Item = &Attribute> {
        self.body.iter().chain(&self.block)
    }

    /// Gives `name` the value `value`: in the body if it fits there, else in the block, else others are moved from one to
    /// the other until it fits. Errors: [`EditError::Exists`], [`EditError::Missing`] by `mode`; [`EditError::NoSpace`].
    pub fn set(&mut self, name: &Name, value: &[u8], mode: SetMode, room: Room) -> Result<(), EditError> {
        match (self.get(name).is_some(), mode) {
            (true, SetMode::Create) => return Err(EditError::Exists),
            (false, SetMode::Replace) => return Err(EditError::Missing),
            _ => {}
        }
        let added = Attribute { name: name.clone(), value: value.to_vec() };
        let elsewhere = |attributes: &[Attribute]| used(attributes.iter().filter(|other| other.name != *name));
        if elsewhere(&self.body) + added.stored_bytes() <= room.body {
            self.block.retain(|other| other.name != *name);
            put(&mut self.body, added);
        } else if elsewhere(&self.block) + added.stored_bytes() <= room.block {
            self.body.retain(|other| other.name != *name);
            put(&mut self.block, added);
        } else {
            *self = self.repacked(added, room).ok_or(EditError::NoSpace)?;
        }
        Ok(())
    }

    /// Removes `name`. Errors: [`EditError::Missing`].
    pub fn remove(&mut self, name: &Name) -> Result<(), EditError> {
        if self.get(name).is_none() {
            return Err(EditError::Missing);
        }
        self.body.retain(|other| other.name != *name);
        self.block.retain(|other| other.name != *name);
        Ok(())
    }

    /// All attributes and `added`, the body filled as far as it can be: if that does not fit, nothing does. None then.
    fn repacked(&self, added: Attribute, room: Room) -> Option<Self> {
        let mut all: Vec<Attribute> = Vec::new();
        for attribute in self.iter().filter(|other| other.name != added.name) {
            if all.iter().all(|other| other.name != attribute.name) {
                all.push(attribute.clone());
            }
        }
        all.push(added);
        let sizes: Vec<usize> = all.iter().map(Attribute::stored_bytes).collect();
        // A total beyond both places needs no search; it also bounds the search's work.
        if sizes.iter().sum::<usize>() > room.body + room.block {
            return None;
        }
        let in_body = fullest(&sizes, room.body);
        let (mut body, mut block) = (Vec::new(), Vec::new());
        for (attribute, in_body) in all.into_iter().zip(in_body) {
            if in_body { &mut body } else { &mut block }.push(attribute);
        }
        (used(block.iter()) <= room.block).then_some(Self { body, block })
    }
}

/// Which of `sizes` (bytes, multiples of 4) fill `room` best.
fn fullest(sizes: &[usize], room: usize) -> Vec<bool> {
    let units = room / 4;
    // For every sum the item that reached it first; sums are only ever reached from sums of earlier items.
    let mut reached_by: Vec<Option<usize>> = vec![None; units + 1];
    for (item, size) in sizes.iter().enumerate() {
        let size = size / 4;
        for sum in (size..=units).rev() {
            let before = sum - size;
            if reached_by[sum].is_none() && (before == 0 || reached_by[before].is_some()) {
                reached_by[sum] = Some(item);
            }
        }
    }
    let mut chosen = vec![false; sizes.len()];
    let mut sum = (1..=units).rev().find(|sum| reached_by[*sum].is_some()).unwrap_or(0);
    while let Some(item) = reached_by[sum] {
        chosen[item] = true;
        sum -= sizes[item] / 4;
    }
    chosen
}

/// Replaces the attribute of the same name, or adds this one at the end.
fn put(attributes: &mut Vec<Attribute>, added: Attribute) {
    match attributes.iter_mut().find(|other| other.name == added.name) {
        Some(there) => there.value = added.value,
        None => attributes.push(added),
    }
}

fn used<'a>(attributes: impl Iterator<Item = &'a Attribute>) -> usize {
    attributes.map(Attribute::stored_bytes).sum()
}

fn owned(entries: &[Entry<'_>]) -> Result<Vec<Attribute>, EditError> {
    let attribute = |entry: &Entry<'_>| match entry.value {
        StoredValue::Here(value) => Ok(Attribute { name: entry.name(), value: value.to_vec() }),
        StoredValue::InInode { .. } => Err(EditError::ValueInInode),
    };
    entries.iter().map(attribute).collect()
}

#[cfg(test)]
#[path = "xattr/tests.rs"]
mod tests;
