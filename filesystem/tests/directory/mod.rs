//! What the tests of directories share: blocks in memory that can stop, and names.
#![allow(dead_code, reason = "each test uses a part")]
#![allow(unreachable_pub, reason = "a module of tests")]

use std::collections::BTreeMap;

use filesystem::directory::{Batch, Cookie, Directory, DirectoryBlocks, check, create};
use filesystem::layout::checksum::Seed;
use filesystem::layout::dirent::{DirectoryFormat, EntryType};
use filesystem::layout::hash::{HashVersion, Hashing};
use filesystem::{BlockNumber, FileBlock, InodeNumber, Stop};
use rand::Rng;

/// The blocks of a directory, in memory.
#[derive(Clone)]
pub struct MemoryBlocks {
    pub blocks: Vec<Vec<u8>>,
    pub block_bytes: usize,
    /// Calls until one stops; none: never.
    pub calls_left: Option<u64>,
    /// How often a block was asked for to be edited, or a new one.
    pub edits: u64,
}

impl MemoryBlocks {
    pub fn new(block_bytes: usize) -> Self {
        Self { blocks: Vec::new(), block_bytes, calls_left: None, edits: 0 }
    }

    fn call(&mut self) -> Result<(), Stop> {
        match &mut self.calls_left {
            Some(0) => Err(Stop::Missing(BlockNumber(0))),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl DirectoryBlocks for MemoryBlocks {
    fn len_blocks(&self) -> u32 {
        self.blocks.len() as u32
    }

    fn block(&mut self, at: FileBlock) -> Result<&[u8], Stop> {
        self.call()?;
        Ok(&self.blocks[at.0 as usize])
    }

    fn block_mut(&mut self, at: FileBlock) -> Result<&mut [u8], Stop> {
        self.call()?;
        self.edits += 1;
        Ok(&mut self.blocks[at.0 as usize])
    }

    fn append(&mut self) -> Result<FileBlock, Stop> {
        self.call()?;
        self.edits += 1;
        self.blocks.push(vec![0; self.block_bytes]);
        Ok(FileBlock(self.blocks.len() as u32 - 1))
    }
}

pub type Model = BTreeMap<Vec<u8>, (InodeNumber, EntryType)>;

/// A directory of a filesystem with all that ours have.
pub fn directory(version: HashVersion) -> Directory {
    let inode = InodeNumber(12);
    Directory {
        format: DirectoryFormat {
            verified: false,
            directory: inode,
            file_types: true,
            checksum: Some(Seed(0x1234_5678).of_inode(inode, 99)),
            inode_max: InodeNumber(10_000_000),
        },
        hashing: Hashing { version, signed: true, seed: [0x0123_4567, 0x89ab_cdef, 0x0f1e_2d3c, 0x4b5a_6978] },
        dir_index: true,
        indexed: false,
    }
}

pub fn empty(directory: &Directory, block_bytes: usize) -> MemoryBlocks {
    let mut blocks = MemoryBlocks::new(block_bytes);
    create(&directory.format, &mut blocks, InodeNumber(2)).unwrap();
    blocks
}

/// Any legal name of a length in the range, of all bytes that names can have.
pub fn random_name(rng: &mut impl Rng, lengths: std::ops::RangeInclusive<usize>) -> Vec<u8> {
    loop {
        let length = rng.random_range(lengths.clone());
        let name: Vec<u8> = (0..length)
            .map(|_| match rng.random_range(0..10) {
                0..=6 => rng.random_range(b'a'..=b'z'),
                7 => rng.random_range(0x80..=0xff),
                _ => rng.random_range(b'0'..=b'9'),
            })
            .collect();
        if filesystem::layout::dirent::is_legal_name(&name) {
            return name;
        }
    }
}

/// Names of one length that all have the same hash by TEA, major and minor. Their bytes are its key there, and a key of TEA
/// has three others that do the same: the highest bits of both words of a half are flipped.
pub fn names_with_one_tea_hash(rng: &mut impl Rng, count: usize, blocks: usize) -> Vec<Vec<u8>> {
    let base: Vec<u8> = (0..blocks * 16).map(|_| rng.random_range(b'a'..=b'z')).collect();
    let mut names = std::collections::BTreeSet::new();
    while names.len() < count {
        let mut name = base.clone();
        for half in name.chunks_mut(8) {
            if rng.random() {
                half[0] ^= 0x80;
                half[4] ^= 0x80;
            }
        }
        names.insert(name);
    }
    names.into_iter().collect()
}

/// Reads all of a directory in batches, and compares it with a model. The order and the cookies are checked, too.
pub fn assert_reads_as(directory: &Directory, blocks: &mut MemoryBlocks, model: &Model, wanted: usize) {
    let mut after = Cookie::START;
    let mut read = Model::new();
    let mut parent = None;
    loop {
        let Batch { entries, at_end } = directory.read(blocks, after, wanted).unwrap();
        assert!(at_end || entries.len() >= wanted);
        for entry in entries {
            assert!(entry.cookie >= after, "{after:?} {entry:?}");
            after = entry.cookie;
            match entry.cookie {
                Cookie::DOT => {
                    assert_eq!((entry.name.as_slice(), entry.inode), (&b"."[..], directory.format.directory))
                }
                Cookie::DOT_DOT => {
                    assert_eq!(entry.name, b"..");
                    parent = Some(entry.inode);
                }
                Cookie(3..0x8000_0000_0000_0000) => {
                    assert!(read.insert(entry.name, (entry.inode, entry.kind)).is_none(), "a name came twice");
                }
                _ => panic!("cookie {:?} is out of range", entry.cookie),
            }
        }
        if at_end {
            break;
        }
    }
    assert!(parent.is_some());
    assert!(read == *model, "read {} names, and the model has {}", read.len(), model.len());
    let summary = check(directory, blocks).unwrap();
    assert_eq!(summary.entries, model.len() as u64);
}
