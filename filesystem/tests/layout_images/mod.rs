//! Images made by mke2fs, and what dumpe2fs, debugfs and e2fsck say of them.
#![allow(dead_code)] // Each test takes of it what it needs.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use filesystem::layout::geometry::{Geometry, Place};
use filesystem::layout::group::GroupDescriptor;
use filesystem::layout::superblock::{Superblock, Unusable};
use filesystem::units::{BlockNumber, GroupNumber};
use tempfile::TempDir;

/// The features of the volumes that we make.
pub(crate) const OURS: &str = "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,\
    huge_file,dir_nlink,extra_isize,metadata_csum,metadata_csum_seed,resize_inode";

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;

/// A sparse file with a filesystem, and the directory it is in.
pub(crate) struct Image {
    path: PathBuf,
    _directory: TempDir,
}

/// One group, as dumpe2fs describes it.
pub(crate) struct DumpedGroup {
    pub(crate) text: String,
}

/// A tool of e2fsprogs: in the PATH or where they are put outside of it.
fn tool(name: &str) -> Command {
    let path = std::env::var("PATH").unwrap_or_default() + ":/sbin:/usr/sbin:/usr/local/sbin";
    let found = path.split(':').map(|place| Path::new(place).join(name)).find(|program| program.is_file());
    let program = found.unwrap_or_else(|| panic!("{name} is missing: install e2fsprogs, these tests need it as judge"));
    let mut command = Command::new(program);
    command.env("LC_ALL", "C").env("TZ", "UTC").env("MKE2FS_CONFIG", "/dev/null").env("DEBUGFS_PAGER", "cat");
    command
}

/// The standard output and error of a tool that ended.
pub(crate) fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

impl Image {
    /// Makes a filesystem of `size` bytes by these arguments of mke2fs, split at blanks.
    pub(crate) fn make(size: u64, arguments: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        File::create(&path).unwrap().set_len(size).unwrap();
        let mut command = tool("mke2fs");
        command.args(["-q", "-F", "-E", "lazy_itable_init=1,nodiscard"]);
        let output = command.args(arguments.split_whitespace()).arg(&path).output().unwrap();
        assert!(output.status.success(), "mke2fs {arguments}: {}", text(&output));
        Self { path, _directory: directory }
    }

    /// Another file with the same content.
    pub(crate) fn copy(&self) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        fs::copy(&self.path, &path).unwrap();
        Self { path, _directory: directory }
    }

    /// Changes it by one command of debugfs.
    pub(crate) fn debugfs(&self, request: &str) {
        let output = tool("debugfs").args(["-w", "-R", request]).arg(&self.path).output().unwrap();
        assert!(output.status.success(), "debugfs {request}: {}", text(&output));
    }

    /// What debugfs answers to one command.
    pub(crate) fn asked(&self, request: &str) -> String {
        let output = tool("debugfs").args(["-R", request]).arg(&self.path).output().unwrap();
        assert!(output.status.success(), "debugfs {request}: {}", text(&output));
        text(&output)
    }

    /// What `e2fsck -y` says while it repairs; it decides by the state whether there is anything to look at.
    pub(crate) fn repair(&self) -> String {
        text(&tool("e2fsck").arg("-y").arg(&self.path).output().unwrap())
    }

    /// Puts some files and directories into it.
    pub(crate) fn populate(&self) {
        let file = self.path.with_file_name("file");
        fs::write(&file, vec![7; 300_000]).unwrap();
        for directory in 0..3 {
            self.debugfs(&format!("mkdir directory{directory}"));
            self.debugfs(&format!("write {} directory{directory}/file", file.display()));
        }
    }

    /// What dumpe2fs says: the lines of its head by their names, and the groups.
    pub(crate) fn dump(&self) -> (BTreeMap<String, String>, Vec<DumpedGroup>) {
        let output = tool("dumpe2fs").arg(&self.path).output().unwrap();
        let all = text(&output);
        assert!(output.status.success(), "dumpe2fs: {all}");
        let (head, groups) = all.split_once("\nGroup 0: ").unwrap_or((&all, ""));
        let lines = head.lines().filter_map(|line| line.split_once(':'));
        let head = lines.map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned())).collect();
        let groups = groups.split("\nGroup ").map(|text| DumpedGroup { text: text.to_owned() }).collect();
        (head, groups)
    }

    /// What `e2fsck -fn` says against it; nothing when it is clean.
    pub(crate) fn complaints(&self) -> Option<String> {
        let output = tool("e2fsck").arg("-fn").arg(&self.path).output().unwrap();
        let said = text(&output);
        let bad = ["Fix?", "Clear?", "Connect", "IGNORED"].iter().any(|word| said.contains(word));
        (!output.status.success() || bad).then_some(said)
    }

    /// Where the file lies.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        File::open(&self.path).unwrap().read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) {
        OpenOptions::new().write(true).open(&self.path).unwrap().write_all_at(bytes, offset).unwrap();
    }

    pub(crate) fn decode(&self) -> Result<Superblock, Unusable> {
        Superblock::decode(&self.read(1024, 1024))
    }

    pub(crate) fn superblock(&self) -> Superblock {
        self.decode().unwrap()
    }

    pub(crate) fn block(&self, geometry: &Geometry, block: BlockNumber) -> Vec<u8> {
        self.read(block.0 * u64::from(geometry.block_size), geometry.block_size as usize)
    }

    pub(crate) fn write_block(&self, geometry: &Geometry, block: BlockNumber, bytes: &[u8]) {
        self.write(block.0 * u64::from(geometry.block_size), bytes);
    }

    /// The bytes of a descriptor, and where they are.
    pub(crate) fn descriptor_bytes(&self, geometry: &Geometry, group: GroupNumber) -> (u64, Vec<u8>) {
        let Place { block, offset } = geometry.descriptor_place(group).unwrap();
        let offset = block.0 * u64::from(geometry.block_size) + u64::from(offset);
        (offset, self.read(offset, geometry.descriptor_size as usize))
    }

    pub(crate) fn descriptors(&self, geometry: &Geometry) -> Vec<GroupDescriptor> {
        let groups = (0..geometry.group_count).map(GroupNumber);
        groups
            .map(|group| GroupDescriptor::decode(geometry, group, &self.descriptor_bytes(geometry, group).1).unwrap())
            .collect()
    }
}

impl DumpedGroup {
    /// The number after `name`, decimal or with 0x.
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        let (_, after) = self.text.split_once(name)?;
        let end = |after: &str, radix| after.find(|c: char| !c.is_digit(radix)).unwrap_or(after.len());
        match after.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(&hex[..end(hex, 16)], 16).ok(),
            None => after[..end(after, 10)].parse().ok(),
        }
    }

    /// The number before `name`.
    pub(crate) fn count(&self, name: &str) -> Option<u64> {
        let (before, _) = self.text.split_once(name)?;
        before.rsplit([' ', '\n']).next()?.parse().ok()
    }

    /// What follows `name` on its line.
    pub(crate) fn rest(&self, name: &str) -> &str {
        self.text.lines().find_map(|line| line.trim().strip_prefix(name)).unwrap_or("").trim()
    }

    /// The first and last of `name` followed by A-B or A.
    pub(crate) fn range(&self, name: &str) -> Option<(u64, u64)> {
        let (_, after) = self.text.split_once(name)?;
        let word = after.split([' ', ',', '\n']).next()?;
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        Some((first.parse().ok()?, last.parse().ok()?))
    }
}
