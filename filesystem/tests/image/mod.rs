//! Small ext4 images and the tools that judge them. A tool that is missing fails the test.
#![allow(dead_code)]

use std::path::PathBuf;
use std::process::Command;

use filesystem::layout::checksum::Seed;
use filesystem::{BlockNumber, BlockRun, BlockStore, InodeNumber, Stop};

/// An image in a file of its own.
pub(crate) struct Image {
    directory: tempfile::TempDir,
    pub(crate) block_bytes: usize,
    pub(crate) inode_bytes: usize,
}

/// Output of a tool that was there and ran: its status and everything it said.
pub(crate) fn run(program: &str, arguments: &[&str]) -> (i32, String) {
    let path = format!("{}:/sbin:/usr/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program).args(arguments).env("PATH", path).output();
    let output = output.unwrap_or_else(|error| panic!("this test needs {program}: {error}"));
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned())
}

impl Image {
    /// Made by mke2fs, of 8 MiB in one group, with 64 inodes.
    pub(crate) fn new(block_bytes: usize, inode_bytes: usize, features: &str) -> Self {
        Self::of_size(8, 64, (block_bytes, inode_bytes, features))
    }

    /// The same, of so many MiB and inodes.
    pub(crate) fn of_size(mib: u64, inodes: u32, (block_bytes, inode_bytes, features): (usize, usize, &str)) -> Self {
        let image = Self { directory: tempfile::tempdir().unwrap(), block_bytes, inode_bytes };
        let file = std::fs::File::create(image.path()).unwrap();
        file.set_len(mib << 20).unwrap();
        let (block, inode, inodes) = (block_bytes.to_string(), inode_bytes.to_string(), inodes.to_string());
        let path = image.path_text();
        let arguments = ["-q", "-F", "-t", "ext4", "-b", &block, "-I", &inode, "-O", features, "-N", &inodes, &path];
        let (status, said) = run("mke2fs", &arguments);
        assert_eq!(status, 0, "{said}");
        image
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    pub(crate) fn path_text(&self) -> String {
        self.path().to_str().unwrap().to_owned()
    }

    /// Somewhere beside the image.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs commands in debugfs, writing.
    pub(crate) fn debugfs(&self, commands: &[String]) -> String {
        let script = self.beside("script");
        std::fs::write(&script, commands.join("\n") + "\n").unwrap();
        let (status, said) = run("debugfs", &["-w", "-f", script.to_str().unwrap(), &self.path_text()]);
        assert_eq!(status, 0, "{said}");
        said
    }

    /// Panics unless e2fsck finds nothing to say.
    pub(crate) fn assert_clean(&self) {
        let (status, said) = run("e2fsck", &["-fn", &self.path_text()]);
        let clean = status == 0 && !["Fix?", "Clear?", "Connect"].iter().any(|word| said.contains(word));
        assert!(clean, "{said}");
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.path()).unwrap()
    }

    pub(crate) fn write(&self, bytes: &[u8]) {
        std::fs::write(self.path(), bytes).unwrap();
    }

    /// The filesystem's seed, if metadata has checksums.
    pub(crate) fn seed(&self) -> Option<Seed> {
        let bytes = self.bytes();
        let superblock = &bytes[1024..2048];
        let csum = u32_at(superblock, 0x64) & 0x400 != 0;
        let stored = u32_at(superblock, 0x60) & 0x2000 != 0;
        let of_uuid = Seed::of_uuid(superblock[0x68..0x78].try_into().unwrap());
        csum.then(|| if stored { Seed(u32_at(superblock, 0x270)) } else { of_uuid })
    }

    /// Where an inode starts in the image. One group: its table is what the first descriptor says.
    pub(crate) fn inode_offset(&self, inode: InodeNumber) -> usize {
        let descriptor = if self.block_bytes == 1024 { 2048 } else { self.block_bytes };
        let table = u32_at(&self.bytes(), descriptor + 8) as usize;
        table * self.block_bytes + (inode.0 as usize - 1) * self.inode_bytes
    }

    pub(crate) fn inode(&self, inode: InodeNumber) -> Vec<u8> {
        let start = self.inode_offset(inode);
        self.bytes()[start..start + self.inode_bytes].to_vec()
    }

    /// Puts an inode back, with its checksum right.
    pub(crate) fn write_inode(&self, inode: InodeNumber, mut bytes: Vec<u8>) {
        if let Some(seed) = self.seed() {
            let high = bytes.len() > 128 && bytes[128] >= 4;
            bytes[0x7c..0x7e].fill(0);
            if high {
                bytes[0x82..0x84].fill(0);
            }
            let sum = seed.of_inode(inode, u32_at(&bytes, 0x64)).sum(&bytes).to_le_bytes();
            bytes[0x7c..0x7e].copy_from_slice(&sum[..2]);
            if high {
                bytes[0x82..0x84].copy_from_slice(&sum[2..]);
            }
        }
        let (start, mut all) = (self.inode_offset(inode), self.bytes());
        all[start..start + bytes.len()].copy_from_slice(&bytes);
        self.write(&all);
    }

    /// The number of a file by its path.
    pub(crate) fn inode_of(&self, path: &str) -> InodeNumber {
        let (_, said) = run("debugfs", &["-R", &format!("stat {path}"), &self.path_text()]);
        let number = said.split_whitespace().skip_while(|word| *word != "Inode:").nth(1);
        InodeNumber(number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{said}")))
    }
}

/// A loop mount of an image, until dropped.
pub(crate) struct Mount {
    pub(crate) at: PathBuf,
}

impl Mount {
    /// Panics where the test may not mount.
    pub(crate) fn new(image: &Image) -> Self {
        let at = image.beside("mount");
        std::fs::create_dir_all(&at).unwrap();
        let (status, said) = run("mount", &["-o", "loop,acl,user_xattr", &image.path_text(), at.to_str().unwrap()]);
        assert_eq!(status, 0, "this test needs root and loop mounts of ext4: {said}");
        Self { at }
    }

    /// Runs a Python script in the mounted root; gives what it prints.
    pub(crate) fn python(&self, script: &str) -> String {
        let script = format!("import os\nos.chdir({:?})\n{script}", self.at);
        let (status, said) = run("python3", &["-c", &script]);
        assert_eq!(status, 0, "{said}");
        said
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = run("umount", &[self.at.to_str().unwrap()]);
    }
}

/// An image's blocks; which are taken and freed is noted, and brought to the bitmap by [`Blocks::store`].
pub(crate) struct Blocks {
    pub(crate) bytes: Vec<u8>,
    pub(crate) block_bytes: usize,
    free: Vec<BlockNumber>,
    commands: Vec<String>,
    taken: i64,
}

impl Blocks {
    /// Of an image, with these free blocks to take from.
    pub(crate) fn new(image: &Image) -> Self {
        let (_, said) = run("debugfs", &["-R", "ffb 20", &image.path_text()]);
        let mut free: Vec<BlockNumber> =
            said.split_whitespace().filter_map(|word| word.parse().ok()).map(BlockNumber).collect();
        assert_eq!(free.len(), 20, "{said}");
        free.reverse();
        Self { bytes: image.bytes(), block_bytes: image.block_bytes, free, commands: Vec::new(), taken: 0 }
    }

    /// Brings blocks, bitmap and counts to the image.
    pub(crate) fn store(self, image: &Image) {
        image.write(&self.bytes);
        let free = i64::from(u32_at(&self.bytes, 1024 + 0xc)) - self.taken;
        let mut commands = self.commands;
        if !commands.is_empty() {
            commands.push(format!("ssv free_blocks_count {free}"));
            commands.push(format!("set_bg 0 free_blocks_count {free}"));
            commands.push("set_bg 0 checksum calc".to_owned());
            image.debugfs(&commands);
        }
    }

    fn slice(&mut self, at: BlockNumber) -> &mut [u8] {
        let start = at.0 as usize * self.block_bytes;
        &mut self.bytes[start..start + self.block_bytes]
    }
}

impl BlockStore for Blocks {
    fn block(&mut self, at: BlockNumber) -> Result<&[u8], Stop> {
        Ok(self.slice(at))
    }

    fn block_mut(&mut self, at: BlockNumber) -> Result<&mut [u8], Stop> {
        Ok(self.slice(at))
    }

    fn new_block(&mut self, at: BlockNumber) -> Result<&mut [u8], Stop> {
        let block = self.slice(at);
        block.fill(0);
        Ok(block)
    }

    fn allocate(&mut self, _: BlockNumber) -> Result<BlockNumber, Stop> {
        let at = self.free.pop().ok_or(Stop::NoSpace)?;
        self.commands.push(format!("setb {at}"));
        self.taken += 1;
        Ok(at)
    }

    fn free(&mut self, run: BlockRun, _: bool) -> Result<(), Stop> {
        self.commands.push(format!("freeb {} {}", run.start, run.count));
        self.taken -= i64::from(run.count);
        self.free.push(run.start);
        Ok(())
    }
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
