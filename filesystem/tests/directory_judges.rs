//! Directories of images that mke2fs and e2fsck made, read and edited by us, and judged by e2fsck and debugfs.

mod directory;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use directory::{MemoryBlocks, Model, assert_reads_as, names_with_one_tea_hash, random_name};
use filesystem::InodeNumber;
use filesystem::directory::{Cookie, Directory, Insertion, Name, Summary, check, create};
use filesystem::layout::checksum::Seed;
use filesystem::layout::dirent::{DirectoryFormat, EntryType};
use filesystem::layout::hash::{HashVersion, Hashing};
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tempfile::TempDir;

/// Runs a tool of e2fsprogs; tells its exit status and what it wrote.
fn run(tool: &str, arguments: &[&OsStr]) -> (i32, Vec<u8>) {
    let path = ["/sbin", "/usr/sbin", "/usr/bin", "/bin"].map(|directory| PathBuf::from(directory).join(tool));
    let path = path.iter().find(|path| path.exists()).unwrap_or_else(|| panic!("e2fsprogs are needed: no {tool}"));
    let output = Command::new(path).args(arguments).env("DEBUGFS_PAGER", "cat").output().unwrap();
    (output.status.code().unwrap(), [output.stdout, output.stderr].concat())
}

fn text(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}

/// A filesystem in a file, with a directory `/d`.
struct Image {
    place: TempDir,
    path: PathBuf,
}

impl Image {
    /// Of empty files in `/d`.
    fn new(names: &[Vec<u8>], block_bytes: usize, features: &str, hash: &str) -> Self {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("image");
        let root = place.path().join("root");
        fs::create_dir_all(root.join("d")).unwrap();
        for name in names {
            File::create(root.join("d").join(OsStr::from_bytes(name))).unwrap();
        }
        File::create(&path).unwrap().set_len(128 << 20).unwrap();
        let inodes = (names.len() + 1000).to_string();
        let block_bytes = block_bytes.to_string();
        let mut arguments: Vec<&OsStr> =
            ["-q", "-t", "ext4", "-b", &block_bytes, "-N", &inodes, "-O", features, "-d"].map(OsStr::new).to_vec();
        arguments.extend([root.as_os_str(), path.as_os_str()]);
        let (status, output) = run("mke2fs", &arguments);
        assert_eq!(status, 0, "{}", text(&output));
        fs::remove_dir_all(root).unwrap();
        let image = Self { place, path };
        image.run("tune2fs", &["-E", &format!("hash_alg={hash}")]);
        image
    }

    fn run(&self, tool: &str, arguments: &[&str]) -> (i32, Vec<u8>) {
        let mut arguments: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
        arguments.push(self.path.as_os_str());
        run(tool, &arguments)
    }

    /// What debugfs answers to commands.
    fn debugfs(&self, commands: &[Vec<u8>]) -> Vec<u8> {
        let script = self.place.path().join("commands");
        fs::write(&script, commands.join(&b'\n')).unwrap();
        self.run("debugfs", &["-w", "-f", script.to_str().unwrap()]).1
    }

    fn build_index(&self) {
        let (status, output) = self.run("e2fsck", &["-fyD"]);
        assert!(status <= 1, "{}", text(&output));
    }

    fn assert_clean(&self) {
        let (status, output) = self.run("e2fsck", &["-fn"]);
        let output = text(&output);
        let clean = status == 0 && !["Fix?", "Clear?", "Connect", "? no"].iter().any(|sign| output.contains(sign));
        assert!(clean, "status {status}: {output}");
    }

    fn read(&self, at: u64, bytes: usize) -> Vec<u8> {
        let mut read = vec![0; bytes];
        File::open(&self.path).unwrap().read_exact_at(&mut read, at).unwrap();
        read
    }

    fn number(&self, superblock_offset: u64) -> u32 {
        u32::from_le_bytes(self.read(1024 + superblock_offset, 4).try_into().unwrap())
    }

    fn block_bytes(&self) -> usize {
        1024 << self.number(0x18)
    }

    /// `/d`, and the numbers of its blocks on the device.
    fn open(&self) -> (Directory, Vec<u64>) {
        let stat = text(&self.debugfs(&[b"stat /d".to_vec()]));
        let field = |name: &str| -> String {
            let start = stat.find(name).unwrap_or_else(|| panic!("{name} in {stat}")) + name.len();
            stat[start..].split_whitespace().next().unwrap().to_string()
        };
        let inode = InodeNumber(field("Inode:").parse().unwrap());
        let flags = u32::from_str_radix(field("Flags:").trim_start_matches("0x"), 16).unwrap();
        let generation: u32 = field("Generation:").parse().unwrap();
        let blocks = field("Size:").parse::<u64>().unwrap() / self.block_bytes() as u64;
        let commands: Vec<_> = (0..blocks).map(|at| format!("bmap <{inode}> {at}").into_bytes()).collect();
        let places: Vec<u64> = text(&self.debugfs(&commands)).lines().filter_map(|line| line.parse().ok()).collect();
        assert_eq!(places.len() as u64, blocks);
        let uuid: [u8; 16] = self.read(1024 + 0x68, 16).try_into().unwrap();
        let seed = if self.number(0x60) & 0x2000 != 0 { Seed(self.number(0x270)) } else { Seed::of_uuid(&uuid) };
        let directory = Directory {
            format: DirectoryFormat {
                verified: false,
                directory: inode,
                file_types: self.number(0x60) & 2 != 0,
                checksum: (self.number(0x64) & 0x400 != 0).then(|| seed.of_inode(inode, generation)),
                inode_max: InodeNumber(self.number(0)),
            },
            hashing: Hashing {
                version: HashVersion::from_disk(self.read(1024 + 0xfc, 1)[0]).unwrap(),
                signed: self.number(0x160) & 1 != 0,
                seed: [0, 4, 8, 12].map(|at| self.number(0xec + at)),
            },
            dir_index: self.number(0x5c) & 0x20 != 0,
            indexed: flags & 0x1000 != 0,
        };
        (directory, places)
    }

    fn load(&self, places: &[u64]) -> MemoryBlocks {
        let mut blocks = MemoryBlocks::new(self.block_bytes());
        let bytes = blocks.block_bytes;
        blocks.blocks = places.iter().map(|place| self.read(place * bytes as u64, bytes)).collect();
        blocks
    }

    fn store(&self, places: &[u64], blocks: &MemoryBlocks) {
        assert_eq!(places.len(), blocks.blocks.len());
        let file = OpenOptions::new().write(true).open(&self.path).unwrap();
        for (place, block) in places.iter().zip(&blocks.blocks) {
            file.write_all_at(block, place * blocks.block_bytes as u64).unwrap();
        }
    }

    /// Gives `/d` exactly these blocks.
    fn replace(&self, directory: &Directory, blocks: &MemoryBlocks) {
        let (_, places) = self.open();
        let (had, has) = (places.len(), blocks.blocks.len());
        let inode = directory.format.directory;
        let mut commands = vec![b"expand_dir /d".to_vec(); has.saturating_sub(had)];
        if has < had {
            commands.push(format!("punch <{inode}> {has} {}", had - 1).into_bytes());
        }
        commands.push(format!("sif <{inode}> size {}", has * blocks.block_bytes).into_bytes());
        let stat = text(&self.debugfs(&[b"stat /d".to_vec()]));
        let extents = if stat.contains("Flags: 0x8") { 0x80000 } else { 0 };
        let index = if directory.indexed { 0x1000 } else { 0 };
        commands.push(format!("sif <{inode}> flags {:#x}", extents | index).into_bytes());
        self.debugfs(&commands);
        self.store(&self.open().1, blocks);
    }

    /// Looks names up with debugfs, and compares their inodes.
    fn assert_found(&self, names: &[(Vec<u8>, InodeNumber)]) {
        let commands: Vec<_> = names.iter().map(|(name, _)| [b"stat \"/d/", name.as_slice(), b"\""].concat()).collect();
        let output = text(&self.debugfs(&commands));
        let found: Vec<u32> = output
            .lines()
            .filter_map(|line| line.strip_prefix("Inode: "))
            .map(|rest| rest.split_whitespace().next().unwrap().parse().unwrap())
            .collect();
        assert_eq!(found, names.iter().map(|(_, inode)| inode.0).collect::<Vec<_>>());
    }
}

/// Reads everything, and looks each name up.
fn model_of(directory: &Directory, blocks: &mut MemoryBlocks, names: &[Vec<u8>]) -> Model {
    let mut model = Model::new();
    for entry in directory.read(blocks, Cookie::DOT_DOT, usize::MAX).unwrap().entries {
        model.insert(entry.name, (entry.inode, entry.kind));
    }
    assert_eq!(model.len(), names.len());
    let kind = if directory.format.file_types { EntryType::File } else { EntryType::Unknown };
    for name in names {
        let found = directory.lookup(blocks, name).unwrap().unwrap();
        assert_eq!(model.get(name), Some(&(found.inode, found.kind)));
        assert_eq!(found.kind, kind);
    }
    assert_eq!(directory.lookup(blocks, b"no such name").unwrap(), None);
    assert_eq!(directory.lookup(blocks, b"..").unwrap().unwrap().inode, InodeNumber(2));
    assert_reads_as(directory, blocks, &model, 333);
    model
}

fn insert_all(directory: &mut Directory, blocks: &mut MemoryBlocks, model: &Model, order: &[Vec<u8>]) {
    for name in order {
        let (inode, kind) = model[name];
        match directory.insert(blocks, Name::new(name).unwrap(), inode, kind).unwrap() {
            Insertion::Done { indexed } => directory.indexed = indexed,
            Insertion::Exists(found) => panic!("{found:?}"),
        }
    }
}

fn sample(model: &Model, rng: &mut ChaCha8Rng) -> Vec<(Vec<u8>, InodeNumber)> {
    let all: Vec<_> = model.iter().map(|(name, (inode, _))| (name.clone(), *inode)).collect();
    all.choose_multiple(rng, 50).cloned().collect()
}

/// Reads an image's directory, takes all names out and in again in random orders and with inodes swapped, then makes the
/// directory anew; e2fsck and debugfs judge both.
fn judge(names: &[Vec<u8>], block_bytes: usize, features: &str, hash: &str, seed: u64) -> Summary {
    println!("{} names, blocks of {block_bytes}, {features}, {hash}, seed {seed}", names.len());
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let image = Image::new(names, block_bytes, features, hash);
    let (linear, places) = image.open();
    assert!(!linear.indexed);
    model_of(&linear, &mut image.load(&places), names);
    image.build_index();

    let (mut directory, places) = image.open();
    let mut blocks = image.load(&places);
    let mut model = model_of(&directory, &mut blocks, names);
    println!("of e2fsck: {:?}", check(&directory, &mut blocks).unwrap());
    let mut order = names.to_vec();
    order.shuffle(&mut rng);
    for name in &order {
        assert!(directory.remove(&mut blocks, Name::new(name).unwrap()).unwrap().is_some());
    }
    assert!(directory.is_empty(&mut blocks).unwrap());
    order.shuffle(&mut rng);
    insert_all(&mut directory, &mut blocks, &model, &order);
    for pair in order.chunks_exact(2) {
        let (first, second) = (model[&pair[0]], model[&pair[1]]);
        for (name, (inode, kind)) in [(&pair[0], second), (&pair[1], first)] {
            directory.replace(&mut blocks, Name::new(name).unwrap(), inode, kind).unwrap().unwrap();
            model.insert(name.clone(), (inode, kind));
        }
    }
    assert_reads_as(&directory, &mut blocks, &model, 500);
    image.replace(&directory, &blocks);
    image.assert_clean();
    image.assert_found(&sample(&model, &mut rng));

    directory.indexed = false;
    let mut anew = MemoryBlocks::new(block_bytes);
    create(&directory.format, &mut anew, InodeNumber(2)).unwrap();
    order.shuffle(&mut rng);
    insert_all(&mut directory, &mut anew, &model, &order);
    directory.replace_parent(&mut anew, InodeNumber(11)).unwrap();
    directory.replace_parent(&mut anew, InodeNumber(2)).unwrap();
    let summary = check(&directory, &mut anew).unwrap();
    println!("of ours: {summary:?}");
    image.replace(&directory, &anew);
    image.assert_clean();
    let (read_again, places) = image.open();
    assert_eq!(read_again, directory);
    assert!(image.load(&places).blocks == anew.blocks);
    image.assert_found(&sample(&model, &mut rng));
    // What e2fsck makes of it is the same again to us.
    image.build_index();
    let (directory, places) = image.open();
    assert_reads_as(&directory, &mut image.load(&places), &model, 700);
    summary
}

fn names(count: usize, lengths: std::ops::RangeInclusive<usize>, seed: u64) -> Vec<Vec<u8>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut names = BTreeMap::new();
    while names.len() < count {
        names.insert(random_name(&mut rng, lengths.clone()), ());
    }
    names.into_keys().collect()
}

const OURS: &str = "metadata_csum,metadata_csum_seed,64bit,dir_index";

#[test]
fn directories_of_few_names_are_as_e2fsck_wants_them() {
    judge(&names(1, 5..=5, 1), 4096, OURS, "half_md4", 1);
    judge(&names(100, 5..=40, 2), 4096, OURS, "half_md4", 2);
    judge(&names(100, 5..=40, 3), 1024, OURS, "half_md4", 3);
}

#[test]
fn directories_of_thousands_are_as_e2fsck_wants_them() {
    let summary = judge(&names(5_000, 3..=60, 4), 4096, OURS, "half_md4", 4);
    assert!(summary.index_blocks == 1);
    let summary = judge(&names(5_000, 3..=255, 5), 1024, OURS, "legacy", 5);
    assert!(summary.index_blocks > 2);
    judge(&names(3_000, 3..=120, 6), 2048, "^metadata_csum,^64bit,^filetype", "tea", 6);
    judge(&names(2_000, 3..=120, 7), 1024, "^metadata_csum,^64bit,^extent", "half_md4", 7);
    judge(&names(1_000, 3..=120, 8), 1024, "^dir_index,metadata_csum", "half_md4", 8);
}

#[test]
fn a_directory_of_two_levels_of_index_is_as_e2fsck_wants_it() {
    let summary = judge(&names(12_000, 8..=24, 9), 1024, OURS, "half_md4", 9);
    assert!(summary.index_blocks > 2);
}

#[test]
fn names_with_one_hash_are_where_e2fsck_wants_them() {
    let mut rng = ChaCha8Rng::seed_from_u64(10);
    let mut all = names(500, 3..=100, 11);
    for (count, blocks) in [(600, 15), (200, 10), (30, 5)] {
        all.extend(names_with_one_tea_hash(&mut rng, count, blocks));
    }
    let summary = judge(&all, 1024, OURS, "tea", 10);
    assert!(summary.continued > 100 && summary.index_blocks > 2);
}

#[test]
fn hashes_are_those_of_debugfs() {
    let mut rng = ChaCha8Rng::seed_from_u64(12);
    let place = tempfile::tempdir().unwrap();
    let script = place.path().join("commands");
    let mut file = File::create(&script).unwrap();
    let mut expected = Vec::new();
    for number in 0..12_000_u32 {
        let version = (number % 6) as u8;
        let seed: [u8; 16] = if number % 4 == 0 { [0; 16] } else { rng.random() };
        let lengths = if number % 2 == 0 { 1..=40 } else { 1..=255 };
        let name = random_name(&mut rng, lengths);
        let hex = seed.map(|byte| format!("{byte:02x}")).concat();
        let uuid = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-");
        write!(file, "dx_hash -h {version} -s {uuid} ").unwrap();
        file.write_all(&[&name, &b"\n"[..]].concat()).unwrap();
        let words = [0, 4, 8, 12].map(|at| u32::from_le_bytes(seed[at..at + 4].try_into().unwrap()));
        let kind = HashVersion::from_disk(version % 3).unwrap();
        let hash = Hashing { version: kind, signed: version < 3, seed: words }.hash(&name);
        expected.push((format!("{:#x}", hash.major), format!("{:#x}", hash.minor)));
    }
    drop(file);
    let (_, output) = run("debugfs", &["-f".as_ref(), script.as_os_str()]);
    let told: Vec<_> = text(&output)
        .lines()
        .filter(|line| line.starts_with("Hash of "))
        .map(|line| {
            let (_, hashes) = line.rsplit_once(" is ").unwrap();
            let (major, minor) = hashes.trim_end_matches(')').split_once(" (minor ").unwrap();
            (major.to_string(), minor.to_string())
        })
        .collect();
    assert_eq!(told.len(), expected.len(), "{}", &text(&output)[..500]);
    for (told, expected) in told.iter().zip(&expected) {
        assert_eq!(told, expected);
    }
}
