//! Lists and files of orphans, against e2fsprogs and the kernel.

mod image;

use block_device::RamDevice;
use filesystem::engine::{Filesystem, Options};
use filesystem::journal::CommitTime;
use filesystem::layout::checksum::Seed;
use filesystem::layout::orphan::{file, list};
use filesystem::{BlockNumber, InodeNumber, Stop};
use image::{Image, Mount, run, u32_at};

/// The list in an image's bytes.
struct InImage {
    image: Image,
}

impl list::Links for InImage {
    fn first(&mut self) -> Result<InodeNumber, Stop> {
        Ok(InodeNumber(u32_at(&self.image.bytes(), 1024 + 0xe8)))
    }

    fn set_first(&mut self, first: InodeNumber) -> Result<(), Stop> {
        self.image.debugfs(&[format!("ssv last_orphan {first}")]);
        Ok(())
    }

    fn next(&mut self, orphan: InodeNumber) -> Result<InodeNumber, Stop> {
        Ok(InodeNumber(u32_at(&self.image.inode(orphan), 0x14)))
    }

    fn set_next(&mut self, orphan: InodeNumber, next: InodeNumber) -> Result<(), Stop> {
        let mut inode = self.image.inode(orphan);
        inode[0x14..0x18].copy_from_slice(&next.0.to_le_bytes());
        self.image.write_inode(orphan, inode);
        Ok(())
    }
}

const BOUNDS: list::Bounds = list::Bounds { first: InodeNumber(11), last: InodeNumber(64) };

/// Files that are open and have no name, in an image copied from under the kernel.
fn with_orphans(features: &str) -> (Image, Vec<InodeNumber>) {
    let image = Image::new(1024, 256, features);
    let copy = image.beside("copy");
    let mount = Mount::new(&image);
    let script = format!(
        "import shutil\nfiles = [open(f'f{{n}}', 'w') for n in range(5)]\n\
         for f in files: f.write('data'); f.flush(); os.fsync(f.fileno())\n\
         print(*[os.fstat(f.fileno()).st_ino for f in files])\n\
         for f in files: os.unlink(f.name)\n\
         os.sync()\nshutil.copyfile({:?}, {copy:?})",
        image.path()
    );
    let said = mount.python(&script);
    drop(mount);
    std::fs::rename(copy, image.path()).unwrap();
    // What the kernel wrote may still be in the journal only.
    image.debugfs(&["journal_run".to_owned()]);
    let orphans = said.split_whitespace().map(|word| InodeNumber(word.parse().unwrap())).collect();
    (image, orphans)
}

#[test]
fn the_kernels_list_is_read_which_needs_root_and_loop() {
    let (image, mut orphans) = with_orphans("metadata_csum,has_journal,^orphan_file");
    orphans.reverse();
    let mut links = InImage { image };
    assert_eq!(list::walk(&mut links, BOUNDS).unwrap(), orphans, "the newest first");
}

#[test]
fn e2fsck_clears_the_list_that_we_made() {
    let image = Image::new(1024, 256, "metadata_csum,^has_journal,^orphan_file");
    std::fs::write(image.beside("data"), [b'd'; 3000]).unwrap();
    let data = image.beside("data");
    image.debugfs(&(0..4).map(|n| format!("write {} f{n}", data.display())).collect::<Vec<_>>());
    let orphans: Vec<InodeNumber> = (0..4).map(|n| image.inode_of(&format!("f{n}"))).collect();
    let mut links = InImage { image };
    for (n, orphan) in orphans.iter().enumerate() {
        links.image.debugfs(&[format!("unlink f{n}"), format!("sif <{orphan}> links_count 0")]);
        list::add(&mut links, *orphan).unwrap();
    }
    assert!(list::remove(&mut links, orphans[2], BOUNDS).unwrap());
    list::add(&mut links, orphans[2]).unwrap();
    assert!(!list::remove(&mut links, InodeNumber(60), BOUNDS).unwrap());
    let expected = [orphans[2], orphans[3], orphans[1], orphans[0]];
    assert_eq!(list::walk(&mut links, BOUNDS).unwrap(), expected);
    let (status, said) = run("e2fsck", &["-p", &links.image.path_text()]);
    assert!(status <= 1, "{said}");
    let cleared: Vec<String> = said
        .lines()
        .filter_map(|line| line.split_once("orphaned inode ")?.1.split_whitespace().next())
        .map(str::to_owned)
        .collect();
    assert_eq!(cleared, expected.map(|orphan| orphan.to_string()), "{said}");
    links.image.assert_clean();
}

#[test]
fn our_engine_gives_back_what_the_kernel_left_in_the_file_which_needs_root_and_loop() {
    let (image, _) = with_orphans("metadata_csum,has_journal,orphan_file");
    let clock = || CommitTime { seconds: 1_700_000_000, nanoseconds: 0 };
    let options = Options { cache_bytes_max: 1 << 20, data_bytes_max: 1 << 20, read_only: false, clock };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let device = runtime.block_on(async {
        let device = RamDevice::from_image(&image.bytes());
        let (mounted, _) = Filesystem::open(device, &options).await.unwrap();
        // Five files, and nothing commits before it is driven.
        mounted.reclaim_orphans(&Default::default()).await.unwrap();
        mounted.close().await.unwrap();
        mounted.into_device()
    });
    image.write(&device.to_vec());
    image.assert_clean();
}

/// The file of orphans: its blocks, and the seed for them.
fn orphan_file(image: &Image) -> (Vec<BlockNumber>, Option<Seed>) {
    let number = InodeNumber(u32_at(&image.bytes(), 1024 + 0x280));
    let generation = u32_at(&image.inode(number), 0x64);
    let (_, said) = run("debugfs", &["-R", &format!("blocks <{number}>"), &image.path_text()]);
    let blocks: Vec<BlockNumber> =
        said.split_whitespace().filter_map(|word| word.parse().ok()).map(BlockNumber).collect();
    assert!(!blocks.is_empty(), "{said}");
    (blocks, image.seed().map(|seed| seed.of_inode(number, generation)))
}

#[test]
fn the_kernels_file_is_read_which_needs_root_and_loop() {
    let (image, orphans) = with_orphans("metadata_csum,has_journal,orphan_file");
    let (blocks, seed) = orphan_file(&image);
    let mut found = Vec::new();
    for at in blocks {
        let block = &image.bytes()[at.0 as usize * 1024..][..1024];
        file::check(block, at, seed).unwrap();
        found.extend(file::orphans(block).map(|(_, orphan)| orphan));
    }
    found.sort();
    assert_eq!(found, orphans);
}

#[test]
fn e2fsck_clears_the_file_that_we_filled() {
    let image = Image::new(1024, 256, "metadata_csum,has_journal,orphan_file");
    std::fs::write(image.beside("data"), [b'd'; 3000]).unwrap();
    image.debugfs(&[format!("write {} f", image.beside("data").display())]);
    let orphan = image.inode_of("f");
    let present = "feature orphan_present".to_owned();
    image.debugfs(&["unlink f".to_owned(), format!("sif <{orphan}> links_count 0"), present]);
    let (blocks, seed) = orphan_file(&image);
    let (at, mut bytes) = (*blocks.last().unwrap(), image.bytes());
    let block = &mut bytes[at.0 as usize * 1024..][..1024];
    file::check(block, at, seed).unwrap();
    let before = block.to_vec();
    let slot = file::free_slot(block).unwrap();
    file::put(block, slot, orphan, at, seed).unwrap();
    file::clear(block, slot, orphan, at, seed).unwrap();
    assert_eq!(block, before, "as mke2fs made it");
    file::put(block, file::Slot(33), orphan, at, seed).unwrap();
    image.write(&bytes);
    let (status, said) = run("e2fsck", &["-fp", &image.path_text()]);
    assert!(status <= 1 && said.contains(&format!("orphaned inode {orphan}")), "{said}");
    image.assert_clean();
}
