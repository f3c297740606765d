//! Images of several shapes, and e2fsck's word on them.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use super::Finding;

/// A filesystem as mke2fs makes it, and how the kernel mounts it.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// For people.
    pub name: &'static str,
    /// Arguments of mke2fs.
    pub make: &'static [&'static str],
    /// What debugfs is told before the filesystem is used.
    pub debugfs: &'static [&'static str],
    /// Options of the kernel's mount.
    pub mount: &'static str,
    /// Bytes of a block.
    pub block_bytes: u64,
    /// Files have extents, and so can have room that is allocated and not written.
    pub extents: bool,
    /// Inodes are large enough for nanoseconds.
    pub wide_inodes: bool,
}

const OURS: &str = "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum,metadata_csum_seed,resize_inode";
const OLD: &str = "none,has_journal,ext_attr,dir_index,filetype,sparse_super,large_file,resize_inode";

const fn shape(name: &'static str, block_bytes: u64, make: &'static [&'static str], mount: &'static str) -> Shape {
    Shape { name, make, debugfs: &[], mount, block_bytes, extents: true, wide_inodes: true }
}

/// All shapes.
pub const SHAPES: [Shape; 14] = [
    shape("ours", 4096, &["-b", "4096", "-I", "256", "-J", "size=4", "-O", OURS], ""),
    shape("ours, data in the log", 4096, &["-b", "4096", "-I", "256", "-J", "size=4", "-O", OURS], "data=journal"),
    shape("blocks of 1 KiB", 1024, &["-b", "1024", "-J", "size=1", "-O", "^orphan_file"], "dioread_nolock"),
    shape("blocks of 2 KiB without flex_bg", 2048, &["-b", "2048", "-J", "size=2", "-O", "^flex_bg,^orphan_file"], ""),
    Shape {
        extents: false,
        wide_inodes: false,
        ..shape(
            "no checksums, extents or wide inodes",
            1024,
            &["-b", "1024", "-I", "128", "-J", "size=1", "-O", OLD],
            "",
        )
    },
    Shape {
        extents: false,
        wide_inodes: false,
        ..shape(
            "the same with a checksum in the log, and data",
            4096,
            &["-b", "4096", "-I", "128", "-J", "size=4", "-O", OLD],
            "journal_checksum,data=journal",
        )
    },
    shape(
        "uninit_bg",
        1024,
        &["-b", "1024", "-g", "4096", "-J", "size=1", "-O", "^metadata_csum,uninit_bg,^orphan_file"],
        "journal_checksum",
    ),
    shape("a file of orphans", 4096, &["-b", "4096", "-J", "size=4", "-O", "orphan_file"], ""),
    shape(
        "a file of orphans, blocks of 1 KiB",
        1024,
        &["-b", "1024", "-J", "size=1", "-O", "orphan_file"],
        "dioread_lock",
    ),
    shape("no checksums", 2048, &["-b", "2048", "-J", "size=2", "-O", "^metadata_csum,^orphan_file"], "data=journal"),
    shape(
        "32-bit, data written back",
        4096,
        &["-b", "4096", "-J", "size=4", "-O", "^64bit,^orphan_file"],
        "data=writeback",
    ),
    shape(
        "wide inodes, no delayed allocation",
        1024,
        &["-b", "1024", "-I", "512", "-J", "size=1", "-O", "^orphan_file"],
        "nodelalloc",
    ),
    Shape {
        debugfs: &["ssv flags 2", "ssv def_hash_version tea"],
        ..shape("unsigned hashes by TEA", 1024, &["-b", "1024", "-J", "size=1", "-O", "^orphan_file"], "")
    },
    Shape {
        debugfs: &["ssv flags 2", "ssv def_hash_version legacy"],
        ..shape("unsigned hashes of the first kind", 2048, &["-b", "2048", "-J", "size=2", "-O", "^orphan_file"], "")
    },
];

/// Makes an empty filesystem. Errors: mke2fs says no.
pub fn make(path: &Path, shape: &Shape, bytes: u64) -> Result<(), Finding> {
    make_with(path, shape.make, bytes)?;
    for line in shape.debugfs {
        run(Command::new("/sbin/debugfs").args(["-w", "-R", line]).arg(path), &[0])?;
    }
    Ok(())
}

/// The same with arguments of mke2fs.
pub fn make_with(path: &Path, arguments: &[&str], bytes: u64) -> Result<(), Finding> {
    let made = File::create(path).and_then(|file| file.set_len(bytes));
    made.map_err(|error| Finding::Unclean(format!("an image: {error}")))?;
    let mut command = Command::new("/sbin/mke2fs");
    command.args(["-q", "-F", "-t", "ext4", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1"]);
    run(command.args(arguments).arg(path), &[0])
}

/// Nothing is wrong with an image: status 0, and nothing that e2fsck would have mended. Errors: what it says.
pub fn expect_clean(path: &Path, what: &str) -> Result<(), Finding> {
    let output = Command::new("/sbin/e2fsck").arg("-fn").arg(path).output();
    let output = output.map_err(|error| Finding::Unclean(format!("e2fsck: {error}")))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let suspicious = ["Fix?", "Clear?", "Connect"].iter().any(|word| said.contains(word));
    if output.status.code() == Some(0) && !suspicious {
        return Ok(());
    }
    Err(Finding::Unclean(format!("{what}: e2fsck -fn, {}: {said}", output.status)))
}

/// Lets e2fsck replay the log and see to orphans; without `-f` version 1.47.0 leaves a file of orphans as it is. Errors: it
/// found more than it mends unasked.
pub fn recover(path: &Path) -> Result<(), Finding> {
    run(Command::new("/sbin/e2fsck").arg("-fp").arg(path), &[0, 1])
}

fn run(command: &mut Command, fine: &[i32]) -> Result<(), Finding> {
    let output = command.output().map_err(|error| Finding::Unclean(format!("{command:?}: {error}")))?;
    if output.status.code().is_some_and(|code| fine.contains(&code)) {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(Finding::Unclean(format!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&said))))
}
