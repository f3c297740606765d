//! An image that mke2fs fills from a directory (`-d`), read back by our engine.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::engine::with_engine;
use super::image::{self, SHAPES, Shape};
use super::kernel::entry;
use super::operation::join;
use super::tree::{self, Content, Entry, Tree};
use super::{Finding, Tally};

/// The largest directory of the toolchain's documentation below `part`, else of the toolchain itself.
pub fn source(part: &str) -> Option<PathBuf> {
    let output = Command::new("rustc").args(["--print", "sysroot"]).output().ok()?;
    let root = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    let candidates = [root.join("share/doc/rust/html").join(part), root.join("share"), root.join("lib/rustlib/etc")];
    candidates.into_iter().find(|path| path.is_dir())
}

/// Fills an image from a directory and compares every file. Errors: the first finding.
pub fn read_back(source: &Path, home: &Path) -> Result<Tally, Finding> {
    let failed = |error: io::Error| Finding::Different(format!("{}: {error}", source.display()));
    let original = read(source).map_err(failed)?;
    let data: u64 = original.values().map(|entry| entry.size.next_multiple_of(4096) + 4096).sum();
    let bytes = (data + data / 10 + (64 << 20)).next_multiple_of(1 << 20);
    let inodes = (original.len() + 100).to_string();
    let text = source.to_str().unwrap_or_default();
    let more = ["-d", text, "-N", &inodes];
    let path = home.join("image");
    let shape: &Shape = &SHAPES[0];
    let arguments: Vec<&str> = shape.make.iter().copied().chain(more).collect();
    image::make_with(&path, &arguments, bytes)?;
    image::expect_clean(&path, "filled by mke2fs")?;
    let mut found = with_engine(&path, true, async |engine| engine.tree().await)?;
    found.remove(&b"lost+found"[..]);
    tree::expect(&original, &found, "filled by mke2fs", |original, found| {
        let content = match (&original.content, &found.content) {
            // Where the holes of the original are is its own filesystem's affair.
            (Content::File { hash, .. }, Content::File { hash: other, .. }) => hash == other,
            (original, found) => original == found,
        };
        let is_directory = original.mode & 0o170_000 == 0o040_000;
        let of = |entry: &Entry| (entry.mode, entry.user, entry.group, if is_directory { 0 } else { entry.size });
        content && of(original) == of(found)
    })?;
    Ok(Tally { files: original.len() as u64, ..Tally::default() })
}

fn read(root: &Path) -> io::Result<Tree> {
    let mut tree = Tree::from([(Vec::new(), entry(root)?)]);
    let mut waiting = vec![(Vec::new(), root.to_owned())];
    while let Some((path, directory)) = waiting.pop() {
        for name in fs::read_dir(&directory)? {
            let name = name?;
            let below = join(&path, &name.file_name().into_vec());
            let entry = entry(&name.path())?;
            if entry.mode & 0o170_000 == 0o040_000 {
                waiting.push((below.clone(), name.path()));
            }
            tree.insert(below, entry);
        }
    }
    Ok(tree)
}
