//! Extended attributes against e2fsprogs and the kernel.

mod image;

use std::collections::BTreeMap;

use filesystem::attributes::{AttributeError, Change, Format, Place, get, list, remove, set};
use filesystem::layout::xattr::{EditError, Name, SetMode, block, body};
use filesystem::{BlockNumber, InodeNumber};
use image::{Blocks, Image, Mount, hex, u32_at};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const CSUM: &str = "metadata_csum,metadata_csum_seed,^has_journal";
const PLAIN: &str = "^metadata_csum,^has_journal";

/// A file's inode beside the image's blocks, until both are stored.
struct File {
    number: InodeNumber,
    inode: Vec<u8>,
    format: Format,
    blocks: Blocks,
}

impl File {
    fn open(image: &Image, path: &str) -> Self {
        let number = image.inode_of(path);
        let format = Format { block_bytes: image.block_bytes, seed: image.seed() };
        Self { number, inode: image.inode(number), format, blocks: Blocks::new(image) }
    }

    fn block(&self) -> Option<BlockNumber> {
        let number = u32_at(&self.inode, 0x68);
        (number != 0).then_some(BlockNumber(number.into()))
    }

    fn place(&self) -> Place<'_> {
        let range = body::range(&self.inode, self.number).unwrap();
        Place { inode: self.number, body: &self.inode[range], block: self.block() }
    }

    fn check(&mut self) {
        body::check(self.place().body, self.number).unwrap();
        if let Some(at) = self.block() {
            let start = at.0 as usize * self.format.block_bytes;
            block::check(&self.blocks.bytes[start..start + self.format.block_bytes], at, self.format.seed).unwrap();
        }
    }

    fn get(&mut self, name: &Name) -> Result<Vec<u8>, AttributeError> {
        let inode = self.inode.clone();
        let range = body::range(&inode, self.number).unwrap();
        let place = Place { inode: self.number, body: &inode[range], block: self.block() };
        get(&mut self.blocks, self.format, place, name)
    }

    fn all(&mut self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let inode = self.inode.clone();
        let range = body::range(&inode, self.number).unwrap();
        let place = Place { inode: self.number, body: &inode[range], block: self.block() };
        let names = list(&mut self.blocks, self.format, place).unwrap();
        names.into_iter().map(|name| (name.full().unwrap(), self.get(&name).unwrap())).collect()
    }

    /// Sets, or removes with None.
    fn edit(&mut self, name: &Name, value: Option<&[u8]>) -> Result<(), AttributeError> {
        let inode = self.inode.clone();
        let range = body::range(&inode, self.number).unwrap();
        let place = Place { inode: self.number, body: &inode[range], block: self.block() };
        let goal = BlockNumber(0);
        let change = match value {
            Some(value) => set(&mut self.blocks, self.format, place, (name, value), SetMode::Any, goal),
            None => remove(&mut self.blocks, self.format, place, name, goal),
        }?;
        self.take(change);
        Ok(())
    }

    fn take(&mut self, change: Change) {
        if let Some(bytes) = change.body {
            let range = body::range(&self.inode, self.number).unwrap();
            self.inode[range].copy_from_slice(&bytes);
        }
        let at = change.block.map_or(0, |at| at.0 as u32);
        self.inode[0x68..0x6c].copy_from_slice(&at.to_le_bytes());
        let sectors =
            i64::from(u32_at(&self.inode, 0x1c)) + i64::from(change.blocks) * self.format.block_bytes as i64 / 512;
        self.inode[0x1c..0x20].copy_from_slice(&(sectors as u32).to_le_bytes());
    }

    fn store(self, image: &Image) {
        let (number, inode) = (self.number, self.inode.clone());
        self.blocks.store(image);
        image.write_inode(number, inode);
    }
}

fn name(full: &[u8]) -> Name {
    Name::parse(full).unwrap()
}

/// An image with an empty file `f`.
fn with_file(block_bytes: usize, inode_bytes: usize, features: &str) -> Image {
    let image = Image::new(block_bytes, inode_bytes, features);
    std::fs::write(image.beside("empty"), b"").unwrap();
    image.debugfs(&[format!("write {} f", image.beside("empty").display())]);
    image
}

const SHAPES: [(usize, usize, &str); 6] = [
    (1024, 128, PLAIN),
    (1024, 256, CSUM),
    (1024, 512, PLAIN),
    (4096, 128, CSUM),
    (4096, 256, CSUM),
    (4096, 512, PLAIN),
];

#[test]
fn what_debugfs_sets_is_read() {
    for (block_bytes, inode_bytes, features) in SHAPES {
        let image = with_file(block_bytes, inode_bytes, features);
        let mut expected = BTreeMap::new();
        let mut commands = Vec::new();
        for (at, length) in [1usize, 3, 4, 17, 40, 100, 300].into_iter().enumerate() {
            let value: Vec<u8> = (0..length).map(|byte| b'a' + (byte % 26) as u8).collect();
            let prefix = ["user", "trusted", "security"][at % 3];
            let full = format!("{prefix}.name{}", "x".repeat(at));
            std::fs::write(image.beside(&full), &value).unwrap();
            commands.push(format!("ea_set -f {} f {full}", image.beside(&full).display()));
            expected.insert(full.into_bytes(), value);
        }
        image.debugfs(&commands);
        image.assert_clean();
        let mut file = File::open(&image, "f");
        assert_eq!(file.all(), expected);
        assert_eq!(file.get(&name(b"user.none")), Err(EditError::Missing.into()));
        file.check();
    }
}

#[test]
fn random_edits_are_clean_for_e2fsck_and_read_by_debugfs() {
    for (block_bytes, inode_bytes, features) in SHAPES {
        let seed = (block_bytes + inode_bytes) as u64;
        println!("seed {seed}");
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let image = with_file(block_bytes, inode_bytes, features);
        let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        for round in 0..5 {
            let mut file = File::open(&image, "f");
            for _ in 0..40 {
                let prefix = *["user.", "trusted.", "security."].choose(&mut random).unwrap();
                let full = format!("{prefix}{}", ["a", "b", "cc", "\u{e4}"].choose(&mut random).unwrap()).into_bytes();
                if random.random_ratio(1, 3) {
                    let removed = file.edit(&name(&full), None).is_ok();
                    assert_eq!(removed, model.remove(&full).is_some());
                } else {
                    let value = vec![random.random_range(b'a'..=b'z'); random.random_range(0..block_bytes / 4)];
                    if file.edit(&name(&full), Some(&value)).is_ok() {
                        model.insert(full, value);
                    }
                }
                file.check();
            }
            if round == 4 {
                for full in std::mem::take(&mut model).keys() {
                    file.edit(&name(full), None).unwrap();
                }
                assert_eq!(file.block(), None, "the block goes with the last attribute");
            }
            file.store(&image);
            image.assert_clean();
            let known = || model.iter().enumerate().filter(|(_, (full, _))| full.is_ascii());
            let read = |at: usize| image.beside(&format!("value{at}"));
            let command = |(at, (full, _)): (usize, (&Vec<u8>, _))| {
                format!("ea_get -f {} f {}", read(at).display(), std::str::from_utf8(full).unwrap())
            };
            let said = image.debugfs(&known().map(command).collect::<Vec<_>>());
            for (at, (_, value)) in known() {
                assert_eq!(std::fs::read(read(at)).unwrap(), *value, "{said}");
            }
            assert_eq!(File::open(&image, "f").all(), model);
        }
    }
}

#[test]
fn the_kernel_and_we_read_each_other_which_needs_root_and_loop() {
    for (block_bytes, inode_bytes, features) in SHAPES {
        let image = with_file(block_bytes, inode_bytes, features);
        let mut file = File::open(&image, "f");
        let mut expected = BTreeMap::new();
        for (full, length) in [("user.\u{e4}", 5), ("user.empty", 0), ("trusted.a", 200), ("security.b", 300)] {
            let value = vec![b'v'; length];
            file.edit(&name(full.as_bytes()), Some(&value)).unwrap();
            expected.insert(full.as_bytes().to_vec(), value);
        }
        file.store(&image);
        let mount = Mount::new(&image);
        for (full, value) in &expected {
            let full = String::from_utf8(full.clone()).unwrap();
            let said = mount.python(&format!("print(os.getxattr('f', '{full}').hex())"));
            assert_eq!(said.trim(), hex(value), "{full}");
        }
        // The kernel edits what we wrote: it finds names by their order.
        let script = "os.removexattr('f', 'trusted.a')\nos.setxattr('f', 'user.k', b'k' * 150)\n\
                      os.setxattr('f', 'user.empty', b'no more')\nprint(sorted(os.listxattr('f')))";
        mount.python(script);
        drop(mount);
        image.assert_clean();
        expected.remove(b"trusted.a".as_slice());
        expected.insert(b"user.k".to_vec(), vec![b'k'; 150]);
        expected.insert(b"user.empty".to_vec(), b"no more".to_vec());
        let mut file = File::open(&image, "f");
        assert_eq!(file.all(), expected);
        file.check();
    }
}

#[test]
fn a_block_shared_by_the_kernel_is_copied_which_needs_root_and_loop() {
    let image = Image::new(1024, 128, CSUM);
    let mount = Mount::new(&image);
    mount.python("for f in 'abc':\n open(f, 'w').close()\n os.setxattr(f, 'user.same', b's' * 100)");
    drop(mount);
    let shared = File::open(&image, "a").block().unwrap();
    let references = |image: &Image| {
        let at = shared.0 as usize * 1024;
        block::references(&image.bytes()[at..at + 1024], shared, image.seed())
    };
    assert_eq!(references(&image), Ok(3), "the kernel shares equal blocks");
    for (path, value) in [("a", Some(b"new".as_slice())), ("b", None)] {
        let mut file = File::open(&image, path);
        assert_eq!(file.block(), Some(shared));
        file.edit(&name(b"user.same"), value).unwrap();
        assert_ne!(file.block(), Some(shared));
        file.store(&image);
        image.assert_clean();
    }
    assert_eq!(references(&image), Ok(1));
    assert_eq!(File::open(&image, "a").get(&name(b"user.same")).unwrap(), b"new");
    assert_eq!(File::open(&image, "c").get(&name(b"user.same")).unwrap(), [b's'; 100]);
}
