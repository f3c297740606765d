//! A fresh filesystem of our profile as `mke2fs` makes it, in a sparse file that has no name any more.
//!
//! Features are given one by one and the configuration of the box is not read: the same filesystem comes out everywhere,
//! but for its UUID and the seed of its hashes, which are drawn. It does not know the volume that the file is meant for.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use block_device::ByteRange;
use bytes::Bytes;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use thiserror::Error;

/// Smallest volume that takes a filesystem: below, there is no room for a journal.
pub const FILESYSTEM_BYTES_MIN: u64 = 16 << 20;

/// Features of our profile (docs/filesystem.md). Without `orphan_file`, which e2fsck up to 1.46 refuses.
pub const FEATURES: &str = "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,\
                            huge_file,dir_nlink,extra_isize,metadata_csum,metadata_csum_seed,resize_inode";

/// Where Debian has the tools of e2fsprogs; these are not on every user's path.
const SYSTEM_PATHS: &str = "/usr/sbin:/sbin:/usr/local/sbin";

/// From this size on mke2fs would make the journal larger than [`LARGE_JOURNAL`].
const LARGE_BYTES: u64 = 16 << 30;
/// As much as the engine fills between two checkpoints: a larger one only takes longer to recover.
const LARGE_JOURNAL: [&str; 2] = ["-J", "size=128"];

/// Stands in for `/etc/mke2fs.conf`, so that what comes out does not depend on the box. Half MD4 is the default of
/// hashes, periodic checks are off.
const CONFIGURATION: &str = "[defaults]
\tbase_features = none
\tdefault_mntopts = acl,user_xattr
\tenable_periodic_fsck = 0
[fs_types]
\text4 = {\n\t\tblocksize = 4096\n\t}
\tsmall = {\n\t\tblocksize = 4096\n\t}
\tfloppy = {\n\t\tblocksize = 4096\n\t}
\tbig = {\n\t\tblocksize = 4096\n\t}
\thuge = {\n\t\tblocksize = 4096\n\t}
";

/// Why a tool of e2fsprogs did not do its work.
#[derive(Debug, Error)]
pub enum ToolError {
    /// It is not there.
    #[error("{tool} is not installed on this node: install the package e2fsprogs (Debian: `apt install e2fsprogs`)")]
    Missing {
        /// Its name.
        tool: &'static str,
    },
    /// It ran and failed; the text is its own.
    #[error("{tool} failed ({status}): {said}")]
    Failed {
        /// Its name.
        tool: &'static str,
        /// How it ended.
        status: String,
        /// What it said to standard error.
        said: String,
    },
    /// The volume has no room for a filesystem with a journal.
    #[error(
        "a volume of {size} bytes is too small for a filesystem: at least {FILESYSTEM_BYTES_MIN} (16 MiB) are needed"
    )]
    TooSmall {
        /// Of the volume.
        size: u64,
    },
    /// The temporary file.
    #[error("the temporary image cannot be used: {0}")]
    Image(#[from] io::Error),
}

/// A tool of e2fsprogs, found where Debian has it, speaking English and asking nothing.
pub(super) fn tool(name: &str) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(name);
    command.env("PATH", format!("{path}:{SYSTEM_PATHS}")).env("LC_ALL", "C").stdin(Stdio::null());
    command
}

/// True if a filesystem can be made on this machine.
pub fn is_installed() -> bool {
    tool("mke2fs").arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// A filesystem in a sparse file without a name.
#[derive(Debug)]
pub struct FreshImage {
    file: File,
    data: Vec<ByteRange>,
}

impl FreshImage {
    /// Makes a filesystem of `size_bytes` in a file below `directory`. It blocks: a few hundredths of a second for 100 GB.
    pub fn make(directory: &Path, size_bytes: u64) -> Result<Self, ToolError> {
        Self::make_by("mke2fs", directory, size_bytes)
    }

    fn make_by(program: &'static str, directory: &Path, size_bytes: u64) -> Result<Self, ToolError> {
        if size_bytes < FILESYSTEM_BYTES_MIN {
            return Err(ToolError::TooSmall { size: size_bytes });
        }
        let home = tempfile::Builder::new().prefix("mke2fs-").tempdir_in(directory)?;
        let (path, configuration) = (home.path().join("image"), home.path().join("mke2fs.conf"));
        std::fs::write(&configuration, CONFIGURATION)?;
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        file.set_len(size_bytes)?;
        let mut command = tool(program);
        command.env("MKE2FS_CONFIG", &configuration).args(arguments(size_bytes)).arg(&path).stdout(Stdio::null());
        let output = match command.output() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ToolError::Missing { tool: program }),
            output => output?,
        };
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(ToolError::Failed { tool: program, status: output.status.to_string(), said });
        }
        let data = data_ranges(&file, size_bytes)?;
        Ok(Self { file, data })
    }

    /// What mke2fs has written, in order; everything else is to read as zeros.
    pub fn data(&self) -> &[ByteRange] {
        &self.data
    }

    /// Reads a range of it; blocks.
    pub fn read(&self, range: ByteRange) -> io::Result<Bytes> {
        let mut bytes = vec![0; usize::try_from(range.length).map_err(io::Error::other)?];
        self.file.read_exact_at(&mut bytes, range.offset)?;
        Ok(bytes.into())
    }
}

/// Blocks of 4 KiB, inodes of 256 bytes, one for each 16 KiB. No blocks are kept for root: there is no root here who would
/// need them, and the engine keeps its own reserve. Inode tables and the journal are left as they are, which has to be
/// zeros: that is what makes it quick.
fn arguments(size_bytes: u64) -> Vec<&'static str> {
    let mut arguments = vec![
        "-q",
        "-F",
        "-t",
        "ext4",
        "-b",
        "4096",
        "-I",
        "256",
        "-i",
        "16384",
        "-m",
        "0",
        "-U",
        "random",
        "-O",
        FEATURES,
        "-E",
        "lazy_itable_init=1,lazy_journal_init=1,nodiscard",
    ];
    if size_bytes >= LARGE_BYTES {
        arguments.extend(LARGE_JOURNAL);
    }
    arguments
}

/// The ranges of a sparse file that hold data.
fn data_ranges(file: &File, size: u64) -> io::Result<Vec<ByteRange>> {
    let seek = |from: u64, whence| match lseek(file, from as i64, whence) {
        Ok(at) => Ok(Some(at as u64)),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(io::Error::from(errno)),
    };
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < size
        && let Some(start) = seek(at, Whence::SeekData)?
    {
        let end = seek(start, Whence::SeekHole)?.unwrap_or(size).min(size);
        ranges.push(ByteRange { offset: start, length: end - start });
        at = end;
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tool_is_named_with_its_package() {
        let home = tempfile::tempdir().expect("a directory");
        let missing = FreshImage::make_by("mke2fs-that-is-not-there", home.path(), 1 << 30).expect_err("it is missing");
        assert!(missing.to_string().contains("e2fsprogs"), "{missing}");
    }

    #[test]
    fn what_the_tool_says_is_passed_on() {
        let home = tempfile::tempdir().expect("a directory");
        // debugfs takes none of these arguments, and says so.
        let failed = FreshImage::make_by("debugfs", home.path(), 1 << 30).expect_err("it is no mke2fs");
        assert!(failed.to_string().contains("debugfs: invalid option"), "{failed}");
    }

    #[test]
    fn a_volume_without_room_for_a_journal_is_refused() {
        let home = tempfile::tempdir().expect("a directory");
        let refused = FreshImage::make(home.path(), 8 << 20);
        assert!(matches!(refused, Err(ToolError::TooSmall { .. })), "{refused:?}");
    }

    #[test]
    fn only_little_of_a_large_filesystem_is_written() {
        let home = tempfile::tempdir().expect("a directory");
        let image = FreshImage::make(home.path(), 100 << 30).expect("mke2fs (e2fsprogs) is installed");
        let bytes: u64 = image.data().iter().map(|range| range.length).sum();
        assert!((1 << 20..64 << 20).contains(&bytes), "{bytes} bytes of 100 GiB");
        assert_eq!(image.data().first().map(|first| first.offset), Some(0));
        assert_eq!(std::fs::read_dir(home.path()).expect("the directory").count(), 0, "nothing is left behind");
    }
}
