//! The shell on a filesystem in memory; e2fsck has the last word.

use std::sync::Arc;

use block_device::RamDevice;
use filesystem::engine::Options;
use filesystem::units::ROOT_INODE;

use super::*;
use crate::files::make::{Clearing, make};
use crate::files::mke2fs::{FreshImage, tool};
use crate::files::real_time;

const BYTES: u64 = 32 << 20;

/// Runs a test beside the engine's committer, closes, and has e2fsck look.
pub(in crate::files) fn with_engine(test: impl AsyncFnOnce(&Filesystem<RamDevice>)) {
    let home = tempfile::tempdir().expect("a directory");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let options = Options { cache_bytes_max: 1 << 20, data_bytes_max: 1 << 20, read_only: false, clock: real_time };
    let device = runtime.block_on(async {
        let image = Arc::new(FreshImage::make(home.path(), BYTES).expect("mke2fs (e2fsprogs) is installed"));
        let device = make(RamDevice::new(BYTES), image, Clearing::Discard, &options, &|_| ()).await;
        let (engine, _) = Filesystem::open(device.expect("it is made"), &options).await.expect("it opens");
        let work = async {
            test(&engine).await;
            engine.stop();
        };
        tokio::join!(engine.drive(), work);
        engine.close().await.expect("it closes");
        engine.into_device()
    });
    let path = home.path().join("image");
    std::fs::write(&path, device.to_vec()).expect("the image");
    let output = tool("e2fsck").arg("-fn").arg(&path).output().expect("e2fsck (e2fsprogs) is installed");
    let said = String::from_utf8_lossy(&output.stdout);
    let complains = ["Fix?", "Clear?", "Connect"].iter().any(|word| said.contains(word));
    assert!(output.status.success() && !complains, "{said}");
}

async fn names(engine: &Filesystem<RamDevice>, path: &[u8]) -> Vec<String> {
    let (mut names, mut after) = (Vec::new(), Cookie::START);
    loop {
        let (entries, next) = list(engine, path, after).await.expect("it is there");
        if next == after {
            names.sort();
            return names;
        }
        names.extend(entries.into_iter().map(|entry| String::from_utf8_lossy(&entry.name).into_owned()));
        after = next;
    }
}

/// Makes a symbolic link.
pub(in crate::files) async fn link(engine: &Filesystem<RamDevice>, path: &[u8], target: &[u8]) {
    let new = NewFile { target, ..fresh(FileKind::Symlink, 0o777) };
    let made = on_path(engine, path, |handle| match path::parent(handle, path)? {
        Ok((directory, name)) => handle.create(Place { directory, name: &name }, &new, now()).map(Ok),
        Err(problem) => Ok(Err(problem)),
    });
    made.await.expect("it is made");
}

pub(in crate::files) fn refusal<T: std::fmt::Debug>(result: Result<T, FilesError>) -> Refusal {
    match result {
        Err(FilesError::Refused { why, .. }) => why,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn directories_are_made_listed_and_removed() {
    with_engine(async |engine| {
        make_directory(engine, b"/a", false).await.expect("made");
        assert_eq!(refusal(make_directory(engine, b"/a", false).await), Refusal::Exists);
        assert_eq!(refusal(make_directory(engine, b"/b/c", false).await), Refusal::NotFound);
        make_directory(engine, b"/a/b/c/", true).await.expect("made");
        make_directory(engine, b"/a/b/c", true).await.expect("it is there already");
        assert_eq!(names(engine, b"").await, ["a", "lost+found"]);
        assert_eq!(names(engine, b"/a/b/../").await, ["b"]);
        assert_eq!(refusal(remove(engine, b"/a", false, false).await), Refusal::IsDirectory);
        assert_eq!(refusal(remove(engine, b"/a", false, true).await), Refusal::NotEmpty);
        let removed = remove(engine, b"/a", true, false).await.expect("removed");
        assert_eq!(removed, Removed { files: 0, directories: 3 });
        assert_eq!(names(engine, b"/").await, ["lost+found"]);
        assert_eq!(refusal(remove(engine, b"/a", true, false).await), Refusal::NotFound);
    });
}

#[test]
fn a_large_tree_goes_as_a_whole_and_gives_all_its_space_back() {
    with_engine(async |engine| {
        // A directory keeps its blocks when names go, so the comparison needs the root as it will be.
        let before = engine.statistics();
        for outer in 0..3 {
            for inner in 0..300 {
                let path = format!("/tree/{outer}/a directory with a name of some length {inner}");
                make_directory(engine, path.as_bytes(), true).await.expect("made");
            }
        }
        let removed = remove(engine, b"/tree", true, false).await.expect("removed");
        assert_eq!(removed, Removed { files: 0, directories: 904 });
        // That is done beside other work, a step after the other.
        for _ in 0..100_000 {
            if engine.statistics() == before {
                break;
            }
            tokio::task::yield_now().await;
        }
        assert_eq!(engine.statistics(), before);
    });
}

#[test]
fn symbolic_links_are_followed_on_the_way_and_never_lead_out() {
    with_engine(async |engine| {
        make_directory(engine, b"/real/inside", true).await.expect("made");
        link(engine, b"/real/up", b"../../../real/inside").await;
        link(engine, b"/absolute", b"/real").await;
        link(engine, b"/long", format!("/real/{}inside", "./".repeat(100)).as_bytes()).await;
        let inside = stat(engine, b"/real/inside", Follow::Always).await.expect("there").inode;
        for path in [&b"/absolute/up"[..], b"/absolute/inside", b"/long", b"/long/", b"/../../absolute/../real/up/."] {
            assert_eq!(stat(engine, path, Follow::Always).await.expect("there").inode, inside, "{path:?}");
        }
        let own = stat(engine, b"/absolute", Follow::NotLast).await.expect("there");
        assert_eq!((own.kind, own.target), (FileKind::Symlink, b"/real".to_vec()));
        assert_eq!(stat(engine, b"/absolute/", Follow::NotLast).await.expect("there").kind, FileKind::Directory);
        let removed = remove(engine, b"/absolute", true, false).await.expect("removed");
        assert_eq!(removed, Removed { files: 1, directories: 0 }, "the link goes, not what it names");
        assert!(stat(engine, b"/real/inside", Follow::Always).await.is_ok());
    });
}

#[test]
fn links_in_a_circle_and_too_many_of_them_are_refused() {
    with_engine(async |engine| {
        link(engine, b"/circle", b"circle").await;
        link(engine, b"/link-0", b"/").await;
        for number in 1..=40 {
            link(engine, format!("/link-{number}").as_bytes(), format!("link-{}", number - 1).as_bytes()).await;
        }
        assert!(stat(engine, b"/link-39", Follow::Always).await.is_ok(), "40 links are followed");
        for path in [&b"/circle"[..], b"/link-40"] {
            let refused = stat(engine, path, Follow::Always).await.expect_err("too many");
            assert!(refused.to_string().contains("40 symbolic links"), "{refused}");
        }
    });
}

#[test]
fn errors_name_the_path_and_nothing_is_removed_that_has_no_name() {
    with_engine(async |engine| {
        let missing = stat(engine, b"/no/such", Follow::Always).await.expect_err("it is not there");
        assert_eq!(missing.to_string(), "/no/such: no such file or directory");
        for path in [&b"/"[..], b"", b"/lost+found/..", b"/lost+found/."] {
            let refused = remove(engine, path, true, false).await;
            assert!(matches!(refused, Err(FilesError::BadPath { .. })), "{refused:?}");
        }
        let long = vec![b'x'; path::PATH_BYTES_MAX + 1];
        assert!(matches!(stat(engine, &long, Follow::Always).await, Err(FilesError::BadPath { .. })));
        link(engine, b"/file", b"nowhere").await;
        assert_eq!(refusal(stat(engine, b"/file/x", Follow::Always).await), Refusal::NotFound);
    });
}

#[test]
fn the_nodes_own_directory_is_not_there() {
    with_engine(async |engine| {
        let hidden = Place { directory: ROOT_INODE, name: b".tandem" };
        engine.run(|handle| handle.create(hidden, &fresh(FileKind::Directory, 0o700), now())).await.expect("made");
        assert_eq!(names(engine, b"/").await, ["lost+found"]);
        assert_eq!(refusal(stat(engine, b"/.tandem", Follow::Always).await), Refusal::NotFound);
        assert_eq!(refusal(stat(engine, b"/.tandem/..", Follow::Always).await), Refusal::NotFound);
        assert!(matches!(remove(engine, b"/.tandem", true, false).await, Err(FilesError::BadPath { .. })));
        assert!(matches!(make_directory(engine, b"/.tandem", false).await, Err(FilesError::BadPath { .. })));
    });
}
