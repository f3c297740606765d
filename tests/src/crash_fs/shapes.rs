//! Filesystems that runs begin with: fresh ones, of several profiles, made by mke2fs, the same bytes every time.

use std::fs::{self, File};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use block_device::{BlockDevice, RamDevice};
use bytes::Bytes;

use super::schedule::run_alone;

/// Bytes of a volume.
pub(super) const VOLUME_BYTES: u64 = 16 << 20;

/// Unit in which a volume is sparse, in bytes.
const PAGE_BYTES: usize = 4096;

/// The features of our own profile, by name.
const PROFILE: &str = "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,\
    huge_file,dir_nlink,extra_isize,metadata_csum,metadata_csum_seed,resize_inode";

/// A profile, and what mke2fs has to be told for it.
pub(super) struct Shape {
    pub(super) name: &'static str,
    arguments: &'static [&'static str],
}

/// All of them have the smallest journal there is for their blocks (1024 blocks).
pub(super) const SHAPES: [Shape; 5] = [
    Shape {
        name: "4 KiB blocks, our profile",
        arguments: &["-b", "4096", "-J", "size=4", "-N", "2048", "-O", PROFILE],
    },
    Shape {
        name: "1 KiB blocks, a journal of 1 MiB",
        arguments: &["-b", "1024", "-J", "size=1", "-N", "2048", "-O", PROFILE],
    },
    Shape {
        name: "2 KiB blocks, ^flex_bg, groups of 4 MiB",
        arguments: &["-b", "2048", "-J", "size=2", "-g", "2048", "-N", "1024", "-O", "^flex_bg"],
    },
    Shape {
        name: "1 KiB blocks, no checksums, no extents, inodes of 128 bytes",
        arguments: &[
            "-b",
            "1024",
            "-J",
            "size=1",
            "-I",
            "128",
            "-N",
            "512",
            "-O",
            "^metadata_csum,uninit_bg,^flex_bg,^64bit,^extent",
        ],
    },
    Shape {
        name: "4 KiB blocks, our profile, groups of 4 MiB",
        arguments: &["-b", "4096", "-J", "size=4", "-g", "1024", "-N", "1024", "-O", PROFILE],
    },
];

impl Shape {
    /// A fresh filesystem. Errors: mke2fs (e2fsprogs) is not there, or does not like it.
    pub(super) fn make(&self) -> Result<RamDevice> {
        let directory = tempfile::tempdir().context("a temporary directory")?;
        let path = directory.path().join("image");
        File::create(&path).and_then(|file| file.set_len(VOLUME_BYTES)).context("a sparse file")?;
        let mut make = Command::new(super::tools::program("mke2fs"));
        make.args(["-q", "-F", "-t", "ext4", "-U", "6a3f0c52-8d1e-4b07-9c55-2f4be18d7a90"]);
        make.args(["-E", "lazy_itable_init=1,hash_seed=d4c1b2a0-3e5f-4a69-8b7c-1d2e3f405162"]);
        make.args(self.arguments).arg(&path).env("E2FSPROGS_FAKE_TIME", "1700000000");
        let output = make.output().context("mke2fs (e2fsprogs) does not start")?;
        ensure!(output.status.success(), "mke2fs: {}", String::from_utf8_lossy(&output.stderr));
        let image = RamDevice::new(VOLUME_BYTES);
        // What is zero stays a hole: images are written to files by the thousand.
        for (number, page) in fs::read(&path)?.chunks(PAGE_BYTES).enumerate() {
            if page.iter().any(|byte| *byte != 0) {
                run_alone(image.write((number * PAGE_BYTES) as u64, Bytes::copy_from_slice(page), false))??;
            }
        }
        Ok(image)
    }
}
