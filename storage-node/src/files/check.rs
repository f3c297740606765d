//! e2fsck's judgement of a volume's filesystem, without root and without a copy of its data: what it looks at is brought
//! into a sparse file, and e2fsck reads that.
//!
//! Nothing here decides what is sound. A block is copied before it is looked at; where it cannot be understood the way ends,
//! and e2fsck finds the same bytes there.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use block_device::{BlockDevice, BlockError, ByteRange};
use bytes::Bytes;
use filesystem::layout::features::ro_compat;
use filesystem::layout::file_kind::FileKind;
use filesystem::layout::group::GroupDescriptor;
use filesystem::layout::inode::{Inode, InodeRules};
use filesystem::layout::superblock::{SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET, Superblock};
use filesystem::map::FileMap;
use filesystem::{BlockNumber, BlockRun, BlockStore, FileBlock, GroupNumber, InodeNumber, Refusal, Stop};
use tempfile::TempPath;
use tokio::sync::mpsc;

use super::error::FilesError;
use super::mke2fs::{ToolError, tool};

/// Blocks read at a time.
const RUN_BLOCKS_MAX: u32 = 256;
/// Pieces that may wait to be written to the file.
const PIECES_QUEUED_MAX: usize = 8;
/// Problems that are told one by one.
pub const PROBLEMS_MAX: usize = 100;

/// What e2fsck says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// It found nothing to mend.
    pub clean: bool,
    /// What it would mend, in its words; at most [`PROBLEMS_MAX`].
    pub problems: Vec<String>,
    /// Its last line: files and blocks in use.
    pub summary: String,
    /// Bytes of metadata that it was shown.
    pub looked_at_bytes: u64,
}

/// Brings what e2fsck reads into a sparse file in `directory`. The filesystem has to be closed: its log is not looked at.
/// Gives the file, which goes when it is dropped, and how much is in it.
pub async fn collect<D: BlockDevice>(device: &D, directory: PathBuf) -> Result<(TempPath, u64), FilesError> {
    let range = ByteRange { offset: SUPERBLOCK_OFFSET, length: SUPERBLOCK_BYTES as u64 };
    let bytes = device.read(range).await.map_err(|_| FilesError::Ended)?;
    let superblock = Superblock::decode(&bytes).map_err(|why| FilesError::Open(why.into()))?;
    let (pieces, mut queue) = mpsc::channel::<(u64, Bytes)>(PIECES_QUEUED_MAX);
    let size = device.size_bytes();
    let writing = tokio::task::spawn_blocking(move || {
        let image = tempfile::Builder::new().prefix("check-").tempfile_in(directory)?;
        image.as_file().set_len(size)?;
        while let Some((offset, bytes)) = queue.blocking_recv() {
            image.as_file().write_all_at(&bytes, offset)?;
        }
        Ok(image.into_temp_path())
    });
    let mut collector = Collector { device, superblock, pieces, nodes: Nodes::default(), bytes: 0 };
    let collected = collector.all().await;
    let bytes = collector.bytes;
    drop(collector);
    let written = writing.await.map_err(std::io::Error::other).and_then(|written| written);
    let image = written.map_err(ToolError::Image)?;
    collected.map_err(|_| FilesError::Ended)?;
    Ok((image, bytes))
}

/// Asks e2fsck, which changes nothing. It blocks.
pub fn judge(image: &Path, looked_at_bytes: u64) -> Result<Verdict, ToolError> {
    let output = match tool("e2fsck").arg("-fn").arg(image).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(ToolError::Missing { tool: "e2fsck" });
        }
        output => output?,
    };
    verdict(&output, image, looked_at_bytes)
}

/// Bit of e2fsck's status that says that errors are left (e2fsck(8), "EXIT CODE"); the bits above say that it did not work.
const ERRORS_LEFT: i32 = 4;

fn verdict(output: &Output, image: &Path, looked_at_bytes: u64) -> Result<Verdict, ToolError> {
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let status = output.status.code().unwrap_or(i32::MAX);
    if status > ERRORS_LEFT {
        let said = [said.trim(), complained.trim()].join(" ");
        return Err(ToolError::Failed { tool: "e2fsck", status: output.status.to_string(), said });
    }
    let name = format!("{}: ", image.display());
    let lines = || said.lines().map(|line| line.strip_prefix(&name).unwrap_or(line).trim());
    let is_news = |line: &&str| !line.is_empty() && !line.starts_with("Pass ") && !line.contains("WARNING: Filesystem");
    let summary = lines().rfind(|line| line.contains(" files (") && line.ends_with(" blocks")).unwrap_or_default();
    let problems: Vec<String> = lines().filter(is_news).filter(|line| *line != summary).map(str::to_owned).collect();
    // It ends with 0 on counts that are wrong, and on what it does not want to mend.
    let clean = status == 0 && !["Fix?", "Clear?", "Connect"].iter().any(|word| said.contains(word));
    let problems = if clean { Vec::new() } else { problems.into_iter().take(PROBLEMS_MAX).collect() };
    Ok(Verdict { clean, problems, summary: summary.to_owned(), looked_at_bytes })
}

/// Nodes of the map of one inode.
#[derive(Default)]
struct Nodes(BTreeMap<BlockNumber, Bytes>);

impl BlockStore for Nodes {
    fn block(&mut self, at: BlockNumber) -> Result<&[u8], Stop> {
        self.0.get(&at).map(|block| &block[..]).ok_or(Stop::Missing(at))
    }

    fn block_mut(&mut self, _: BlockNumber) -> Result<&mut [u8], Stop> {
        Err(Refusal::WrongKind.into())
    }

    fn new_block(&mut self, _: BlockNumber) -> Result<&mut [u8], Stop> {
        Err(Refusal::WrongKind.into())
    }

    fn allocate(&mut self, _: BlockNumber) -> Result<BlockNumber, Stop> {
        Err(Stop::NoSpace)
    }

    fn free(&mut self, _: BlockRun, _: bool) -> Result<(), Stop> {
        Err(Refusal::WrongKind.into())
    }
}

struct Collector<'a, D> {
    device: &'a D,
    superblock: Superblock,
    pieces: mpsc::Sender<(u64, Bytes)>,
    nodes: Nodes,
    bytes: u64,
}

impl<D: BlockDevice> Collector<'_, D> {
    async fn all(&mut self) -> Result<(), BlockError> {
        let geometry = self.superblock.geometry().clone();
        self.copy(BlockRun::new(BlockNumber(0), 1)).await?;
        self.copy(geometry.base_blocks(GroupNumber(0))).await?;
        // Many groups have their descriptors in one block.
        let (mut block, mut block_at) = (Bytes::new(), None);
        for group in (0..geometry.group_count).map(GroupNumber) {
            let Ok(place) = geometry.descriptor_place(group) else { continue };
            if block_at.replace(place.block) != Some(place.block) {
                block = self.copy(BlockRun::new(place.block, 1)).await?;
            }
            let from = place.offset as usize;
            let bytes = block.get(from..from + geometry.descriptor_size as usize).unwrap_or_default();
            let Ok(descriptor) = GroupDescriptor::decode(&geometry, group, bytes) else { continue };
            // Those that were never written are not read by e2fsck either.
            if !descriptor.is_block_bitmap_uninit() {
                self.copy(BlockRun::new(descriptor.block_bitmap, 1)).await?;
            }
            if !descriptor.is_inode_bitmap_uninit() {
                self.copy(BlockRun::new(descriptor.inode_bitmap, 1)).await?;
                self.inodes(group, &descriptor).await?;
            }
        }
        Ok(())
    }

    /// The part of a group's table that was ever used, and what its inodes lead to.
    async fn inodes(&mut self, group: GroupNumber, descriptor: &GroupDescriptor) -> Result<(), BlockError> {
        let geometry = self.superblock.geometry().clone();
        let rules = InodeRules {
            block_size: geometry.block_size,
            device_blocks: geometry.block_count,
            seed: geometry.checksum_seed,
            huge_file: self.superblock.features().has_ro_compat(ro_compat::HUGE_FILE),
        };
        let used = geometry.inodes_per_group.saturating_sub(descriptor.unused_inodes);
        let per_block = (geometry.block_size / geometry.inode_size).max(1);
        for at in 0..used.div_ceil(per_block) {
            let table = self.copy(BlockRun::new(descriptor.inode_table.plus(u64::from(at)), 1)).await?;
            for (index, bytes) in table.chunks_exact(geometry.inode_size as usize).enumerate() {
                let number = geometry.inode_of_bit(group, at * per_block + index as u32);
                if let Ok(inode) = Inode::decode(bytes, number, &rules)
                    && inode.links > 0
                {
                    self.inode(number, &inode, &rules).await?;
                }
            }
        }
        Ok(())
    }

    async fn inode(&mut self, number: InodeNumber, inode: &Inode, rules: &InodeRules) -> Result<(), BlockError> {
        if inode.attributes_block.0 != 0 {
            self.copy(BlockRun::new(inode.attributes_block, 1)).await?;
        }
        let is_data_read = match inode.mode.kind() {
            Some(FileKind::Directory) => true,
            Some(FileKind::Symlink) if inode.fast_symlink().is_none() => true,
            Some(FileKind::Regular) => self.is_of_the_filesystem(number),
            _ => return Ok(()),
        };
        let is_journal = self.superblock.journal_inode() == Some(number);
        let map = FileMap::of_inode(inode, number, rules, BlockNumber(0));
        self.nodes.0.clear();
        let mut at = FileBlock(0);
        loop {
            match map.next(&mut self.nodes, at) {
                Ok(Some(extent)) => {
                    if is_data_read {
                        self.copy(extent.run).await?;
                    } else if is_journal && extent.file == FileBlock(0) {
                        self.copy(BlockRun::new(extent.run.start, 1)).await?;
                    }
                    match extent.end() {
                        end if end > at.0 => at = FileBlock(end),
                        _ => return Ok(()),
                    }
                }
                Err(Stop::Missing(block)) if block.0 < rules.device_blocks => {
                    let node = self.copy(BlockRun::new(block, 1)).await?;
                    self.nodes.0.insert(block, node);
                }
                Ok(None) | Err(_) => return Ok(()),
            }
        }
    }

    /// Files whose content is metadata, too.
    fn is_of_the_filesystem(&self, number: InodeNumber) -> bool {
        self.superblock.orphan_file_inode() == Some(number) || self.superblock.quota_inodes().contains(&Some(number))
    }

    /// Brings blocks into the file; gives the last piece, which is the whole of a run that is no longer than one.
    async fn copy(&mut self, run: BlockRun) -> Result<Bytes, BlockError> {
        let geometry = self.superblock.geometry();
        let (size, blocks) = (u64::from(geometry.block_size), geometry.block_count);
        let mut last = Bytes::new();
        let (mut at, end) = (run.start.0, run.end().0.min(blocks));
        while at < end {
            let count = (end - at).min(u64::from(RUN_BLOCKS_MAX));
            let bytes = self.device.read(ByteRange { offset: at * size, length: count * size }).await?;
            self.bytes += count * size;
            if bytes.iter().any(|byte| *byte != 0) {
                // The writer has failed, then: that is told when all is done.
                let _ = self.pieces.send((at * size, bytes.clone())).await;
            }
            last = bytes;
            at += count;
        }
        Ok(last)
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
