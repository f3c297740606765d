//! An image made by mke2fs: read and edited by us, judged by debugfs and e2fsck.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use filesystem::layout::checksum::Seed;
use filesystem::layout::inode::{Inode, InodeRules};
use filesystem::{BlockNumber, BlockRun, BlockStore, InodeNumber, Stop};
use tempfile::TempDir;

/// Runs a tool of e2fsprogs, which has to be installed.
pub(crate) fn tool(name: &str, arguments: &[&str]) -> Output {
    let path = format!("{}:/sbin:/usr/sbin", std::env::var("PATH").unwrap_or_default());
    let run = Command::new(name).args(arguments).env("PATH", path).output();
    run.unwrap_or_else(|error| panic!("{name} of e2fsprogs has to be installed for this test: {error}"))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The image, its parameters, and a directory of files that it was made from.
pub(crate) struct Image {
    directory: TempDir,
    file: File,
    pub(crate) rules: InodeRules,
    pub(crate) inode_size: usize,
}

impl Image {
    /// Makes an image of `size` with the arguments of mke2fs, from the files that `fill` puts into a directory.
    pub(crate) fn make(size: &str, arguments: &[&str], fill: impl FnOnce(&Path)) -> Self {
        let directory = TempDir::new().unwrap();
        let source = directory.path().join("source");
        std::fs::create_dir(&source).unwrap();
        fill(&source);
        let image = directory.path().join("image");
        let (source, image_name) = (source.to_str().unwrap(), image.to_str().unwrap());
        let made = tool("mke2fs", &[&["-q", "-F", "-d", source], arguments, &[image_name, size]].concat());
        assert!(made.status.success(), "{}", text(&made));
        let file = File::options().read(true).write(true).open(&image).unwrap();
        let mut superblock = [0; 1024];
        file.read_exact_at(&mut superblock, 1024).unwrap();
        let word = |at: usize| u32::from_le_bytes(superblock[at..at + 4].try_into().unwrap());
        let uuid: [u8; 16] = superblock[0x68..0x78].try_into().unwrap();
        let has_own_seed = word(0x60) & 0x2000 != 0;
        let has_checksums = word(0x64) & 0x400 != 0;
        let seed = if has_own_seed { Seed(word(0x270)) } else { Seed::of_uuid(&uuid) };
        let rules = InodeRules {
            block_size: 1024 << word(0x18),
            device_blocks: u64::from(word(4)),
            seed: has_checksums.then_some(seed),
            huge_file: word(0x64) & 8 != 0,
        };
        let inode_size = usize::from(u16::from_le_bytes([superblock[0x58], superblock[0x59]]));
        Self { directory, file, rules, inode_size }
    }

    pub(crate) fn source(&self, name: &str) -> PathBuf {
        self.directory.path().join("source").join(name)
    }

    fn path(&self) -> String {
        self.directory.path().join("image").to_str().unwrap().to_owned()
    }

    /// What debugfs says to one request.
    pub(crate) fn debugfs(&self, request: &str) -> String {
        text(&tool("debugfs", &["-R", request, &self.path()]))
    }

    /// Lets debugfs change the image.
    pub(crate) fn change(&self, requests: &[String]) {
        let script = self.directory.path().join("script");
        std::fs::write(&script, requests.join("\n")).unwrap();
        let output = text(&tool("debugfs", &["-w", "-f", script.to_str().unwrap(), &self.path()]));
        for complaint in ["Usage", "not found", "nvalid"] {
            assert!(!output.contains(complaint), "{output}");
        }
    }

    /// Clean is: exit status 0, and no question. That a tree could have fewer nodes is not an error.
    pub(crate) fn assert_clean(&self) {
        let output = tool("e2fsck", &["-fn", &self.path()]);
        let text = text(&output);
        let questions = text.lines().filter(|line| line.contains('?') && !line.contains("Optimize?")).count();
        assert!(output.status.success() && questions == 0, "{text}");
    }

    /// The content that debugfs reads.
    pub(crate) fn dump(&self, name: &str) -> Vec<u8> {
        let to = self.directory.path().join("dump");
        self.debugfs(&format!("dump {name} {}", to.display()));
        std::fs::read(to).unwrap()
    }

    /// The number of a file.
    pub(crate) fn number(&self, name: &str) -> InodeNumber {
        let stat = self.debugfs(&format!("stat {name}"));
        InodeNumber(field(&stat, "Inode:").parse().unwrap())
    }

    fn inode_offset(&self, number: InodeNumber) -> u64 {
        let place = self.debugfs(&format!("imap <{number}>"));
        let block: u64 = field(&place, "at block").trim_end_matches(',').parse().unwrap();
        let offset = field(&place, "offset").trim_start_matches("0x").to_owned();
        block * u64::from(self.rules.block_size) + u64::from_str_radix(&offset, 16).unwrap()
    }

    pub(crate) fn inode_bytes(&self, number: InodeNumber) -> Vec<u8> {
        let mut bytes = vec![0; self.inode_size];
        self.file.read_exact_at(&mut bytes, self.inode_offset(number)).unwrap();
        bytes
    }

    pub(crate) fn inode(&self, number: InodeNumber) -> Inode {
        let inode = Inode::decode(&self.inode_bytes(number), number, &self.rules).unwrap();
        inode.check(number, &self.rules).unwrap();
        inode
    }

    pub(crate) fn put_inode(&self, number: InodeNumber, inode: &Inode) {
        let mut bytes = self.inode_bytes(number);
        inode.encode(&mut bytes, number, &self.rules).unwrap();
        self.file.write_all_at(&bytes, self.inode_offset(number)).unwrap();
    }

    pub(crate) fn read_block(&self, at: BlockNumber) -> Vec<u8> {
        let size = self.rules.block_size as usize;
        let mut bytes = vec![0; size];
        self.file.read_exact_at(&mut bytes, at.0 * size as u64).unwrap();
        bytes
    }

    /// A store over the image, with `count` blocks to allocate from.
    pub(crate) fn store(&self, count: usize) -> ImageStore<'_> {
        let found = self.debugfs(&format!("ffb {count}"));
        let free: BTreeSet<u64> = found.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        assert_eq!(free.len(), count, "{found}");
        ImageStore { image: self, edits: BTreeMap::new(), free, allocated: BTreeSet::new(), freed: BTreeSet::new() }
    }
}

/// The word after `name`.
pub(crate) fn field<'a>(text: &'a str, name: &str) -> &'a str {
    let (_, after) = text.split_once(name).unwrap_or_else(|| panic!("no {name} in {text}"));
    after.split_whitespace().next().unwrap_or_default()
}

/// Edits over an image of one block group, kept until they are committed.
pub(crate) struct ImageStore<'a> {
    image: &'a Image,
    edits: BTreeMap<u64, Vec<u8>>,
    free: BTreeSet<u64>,
    allocated: BTreeSet<u64>,
    freed: BTreeSet<u64>,
}

impl ImageStore<'_> {
    /// Takes a block for data, and fills it.
    pub(crate) fn data_block(&mut self, fill: u8) -> BlockNumber {
        let at = self.allocate(BlockNumber(0)).unwrap();
        self.new_block(at).unwrap().fill(fill);
        at
    }

    /// Writes the edits, and lets debugfs bring the bitmap and the counts up to date.
    pub(crate) fn commit(self) {
        let size = u64::from(self.image.rules.block_size);
        let superblock = text(&tool("dumpe2fs", &["-h", &self.image.path()]));
        let free: usize = field(&superblock, "Free blocks:").parse().unwrap();
        let free = free - self.allocated.len() + self.freed.len();
        let mut requests: Vec<_> = self.allocated.iter().map(|at| format!("setb {at}")).collect();
        requests.extend(self.freed.iter().map(|at| format!("freeb {at}")));
        requests.push(format!("set_block_group 0 free_blocks_count {free}"));
        requests.push(format!("set_super_value free_blocks_count {free}"));
        if self.image.rules.seed.is_some() {
            requests.push("set_block_group 0 checksum calc".to_owned());
        }
        self.image.change(&requests);
        for (at, bytes) in &self.edits {
            self.image.file.write_all_at(bytes, at * size).unwrap();
        }
    }
}

impl BlockStore for ImageStore<'_> {
    fn block(&mut self, at: BlockNumber) -> Result<&[u8], Stop> {
        self.block_mut(at).map(|bytes| &*bytes)
    }

    fn block_mut(&mut self, at: BlockNumber) -> Result<&mut [u8], Stop> {
        Ok(self.edits.entry(at.0).or_insert_with(|| self.image.read_block(at)))
    }

    fn new_block(&mut self, at: BlockNumber) -> Result<&mut [u8], Stop> {
        let zeros = vec![0; self.image.rules.block_size as usize];
        let block = self.edits.entry(at.0).or_default();
        *block = zeros;
        Ok(block)
    }

    fn allocate(&mut self, _goal: BlockNumber) -> Result<BlockNumber, Stop> {
        let at = self.free.pop_first().ok_or(Stop::NoSpace)?;
        self.allocated.insert(at);
        Ok(BlockNumber(at))
    }

    fn free(&mut self, run: BlockRun, _metadata: bool) -> Result<(), Stop> {
        for at in run.start.0..run.end().0 {
            self.edits.remove(&at);
            if !self.allocated.remove(&at) {
                assert!(self.freed.insert(at), "block {at} is freed twice");
            }
        }
        Ok(())
    }
}
