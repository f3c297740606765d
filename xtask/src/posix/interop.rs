//! The same tree through the engine and through the kernel: names, kinds, attributes, contents and extended attributes.
//!
//! Both are read by tar and find: equal archives are equal trees.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::shell;

/// Entries of a directory that needs an index of several blocks.
const ENTRIES: usize = 1500;
/// Bytes of a file of many extents, of which every second piece is a hole.
const SPARSE_PIECES: u64 = 40;
const PIECE_BYTES: u64 = 64 << 10;
/// What find tells of a name besides: inode, blocks of 512 bytes, links, times of content and inode.
const FORMAT: &str = "%P\t%y %m %U:%G %s %i %b %n %T@ %C@ %l\n";
/// Extended attributes and the lengths of their values.
const ATTRIBUTES: [(&str, usize); 3] = [("user.short", 5), ("user.of_a_block", 3000), ("trusted.own", 40)];

/// Puts files of every kind below a directory.
pub(super) fn grow_tree(root: &Path) -> Result<()> {
    let tree = root.join("tree");
    fs::create_dir(&tree)?;
    fs::create_dir_all(tree.join("deep/er/and/deeper"))?;
    fs::write(tree.join("deep/er/file"), vec![7; 3_000_001])?;
    fs::hard_link(tree.join("deep/er/file"), tree.join("another name of it"))?;
    fs::write(tree.join("empty"), "")?;
    symlink("deep/er/file", tree.join("short link"))?;
    symlink("x".repeat(2000), tree.join("long link"))?;
    let many = tree.join("many");
    fs::create_dir(&many)?;
    for index in 0..ENTRIES {
        fs::write(many.join(format!("an entry with a long name, number {index}")), format!("{index}"))?;
    }
    for index in (0..ENTRIES).step_by(3) {
        fs::remove_file(many.join(format!("an entry with a long name, number {index}")))?;
    }
    let sparse = fs::File::create(tree.join("sparse"))?;
    for piece in (0..SPARSE_PIECES).step_by(2) {
        std::os::unix::fs::FileExt::write_all_at(&sparse, &[piece as u8; PIECE_BYTES as usize], piece * PIECE_BYTES)?;
    }
    sparse.set_len(SPARSE_PIECES * PIECE_BYTES + 5)?;
    sparse.sync_all()?;
    let mut reserve = Command::new("fallocate");
    shell::output(reserve.args(["-l", "1000000"]).arg(tree.join("reserved")))?;
    for (name, kind) in [("fifo", "p"), ("characters", "c"), ("blocks", "b")] {
        let numbers: &[&str] = if kind == "p" { &[] } else { &["259", "70000"] };
        shell::output(Command::new("mknod").arg(tree.join(name)).arg(kind).args(numbers))?;
    }
    shell::output(Command::new("chown").arg("4000000000:70000").arg(tree.join("empty")))?;
    shell::output(Command::new("chmod").arg("6751").arg(tree.join("deep/er")))?;
    shell::output(Command::new("touch").args(["-d", "1969-01-02 03:04:05.5", "-h"]).arg(tree.join("short link")))?;
    shell::output(Command::new("touch").args(["-d", "2300-01-02 03:04:05.123456789"]).arg(tree.join("reserved")))?;
    for (name, length) in ATTRIBUTES {
        let mut set = Command::new("python3");
        set.args(["-c", "import os, sys; os.setxattr(sys.argv[1], sys.argv[2], sys.argv[3].encode())"]);
        shell::output(set.arg(tree.join("deep/er/file")).args([name, &"v".repeat(length)]))?;
    }
    Ok(())
}

/// A tree as it was read.
pub(super) struct Seen {
    archive: PathBuf,
    /// Lines of find by their names.
    names: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Seen {
    /// Reads a tree, its contents into an archive.
    pub(super) fn of(root: &Path, archive: &Path) -> Result<Self> {
        let mut find = Command::new("find");
        let listing = shell::output(find.arg(root).args(["-mindepth", "1", "-printf", FORMAT]))?.stdout;
        let mut tar = Command::new("tar");
        tar.args(["--create", "--sort=name", "--numeric-owner", "--format=posix", "--xattrs", "--xattrs-include=*"]);
        tar.args(["--pax-option=delete=atime,delete=ctime,exthdr.name=%f", "--warning=no-file-ignored", "--file"]);
        shell::output(tar.arg(archive).arg("--directory").arg(root).arg("."))?;
        let named = |line: &[u8]| Some((line.split(|byte| *byte == b'\t').next()?.to_vec(), line.to_vec()));
        let names = listing.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).filter_map(named).collect();
        Ok(Self { archive: archive.to_owned(), names })
    }

    /// How many names there are.
    pub(super) fn names(&self) -> usize {
        self.names.len()
    }
}

/// Mounts the image with the kernel, read-only, and tells what it sees otherwise; None when it cannot be mounted here.
pub(super) fn differences(image: &Path, mount_point: &Path, engine: &Seen) -> Result<Option<Vec<String>>> {
    fs::create_dir_all(mount_point)?;
    let mut mount = Command::new("mount");
    if let Err(error) = shell::output(mount.args(["-t", "ext4", "-o", "ro,loop"]).arg(image).arg(mount_point)) {
        println!("{error:#}");
        return Ok(None);
    }
    let kernel = Seen::of(mount_point, &engine.archive.with_file_name("kernel.tar"));
    let unmounted = shell::output(Command::new("umount").arg(mount_point));
    let kernel = kernel?;
    unmounted?;
    let mut all = lines_that_differ(&engine.names, &kernel.names);
    let read = |seen: &Seen| fs::read(&seen.archive).with_context(|| seen.archive.display().to_string());
    if all.is_empty() && read(engine)? != read(&kernel)? {
        all.push("contents or extended attributes differ: the archives are not equal".to_owned());
    }
    Ok(Some(all))
}

fn lines_that_differ(engine: &BTreeMap<Vec<u8>, Vec<u8>>, kernel: &BTreeMap<Vec<u8>, Vec<u8>>) -> Vec<String> {
    let shown =
        |line: Option<&Vec<u8>>| line.map_or("nothing".into(), |line| String::from_utf8_lossy(line).into_owned());
    let names = engine.keys().chain(kernel.keys().filter(|name| !engine.contains_key(*name)));
    let differ = names.filter(|name| engine.get(*name) != kernel.get(*name));
    differ.map(|name| format!("engine: {}\nkernel: {}", shown(engine.get(name)), shown(kernel.get(name)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_either_side_are_missed() {
        let lines =
            |all: &[&str]| all.iter().map(|line| (line.as_bytes()[..1].to_vec(), line.as_bytes().to_vec())).collect();
        let found = lines_that_differ(&lines(&["a1", "b1", "c1"]), &lines(&["a1", "b2", "d1"]));
        assert_eq!(found, ["engine: b1\nkernel: b2", "engine: c1\nkernel: nothing", "engine: nothing\nkernel: d1"]);
    }

    #[test]
    fn a_tree_equals_itself_and_not_a_changed_one() {
        let home = tempfile::tempdir().expect("a directory");
        let tree = home.path().join("tree");
        fs::create_dir(&tree).and_then(|()| fs::write(tree.join("file"), "one")).expect("a file");
        let seen = |archive| Seen::of(&tree, &home.path().join(archive)).expect("find and tar run");
        let (one, other) = (seen("one.tar"), seen("other.tar"));
        assert_eq!((one.names(), one.names == other.names), (1, true));
        assert_eq!(fs::read(&one.archive).expect("it is there"), fs::read(&other.archive).expect("it is there"));
        fs::write(tree.join("file"), "two").expect("a file");
        assert_eq!(lines_that_differ(&one.names, &seen("third.tar").names).len(), 1);
    }
}
