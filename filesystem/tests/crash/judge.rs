//! What a power loss left is judged: by our recovery, and by e2fsck.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use block_device::RamDevice;
use filesystem::engine::Filesystem;
use tokio::task::LocalSet;

use crate::model::Tree;
use crate::work::{Run, options};

/// Our recovery brings back a state that was there, no older than the last acknowledged one, and nothing is wrong after it.
pub(crate) fn recovered(run: &Run, image: &RamDevice, position: usize, what: &str) {
    let (tree, closed) = {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        LocalSet::new().block_on(&runtime, recover(image.clone(), what))
    };
    let least = run.acknowledged.iter().rev().find(|(moment, _)| *moment <= position).map_or(1, |(_, states)| *states);
    let possible = run.states.iter().enumerate().skip(least - 1);
    // Of a transaction all operations are there, or none.
    let ends = |at: usize| run.states.get(at + 1).is_none_or(|next| next.0 != run.states[at].0);
    let found = possible.clone().find(|(at, (_, state))| (*at == least - 1 || ends(*at)) && *state == tree);
    if found.is_none() {
        let any = run.states.iter().position(|(_, state)| *state == tree);
        panic!(
            "{what}: the tree is none of those from state {least} on (of {}); it is state {any:?}",
            run.states.len()
        );
    }
    assert_clean(&closed, &["-fn"], what);
}

async fn recover(image: RamDevice, what: &str) -> (Tree, RamDevice) {
    let (mounted, _) = Filesystem::open(image, &options(false)).await.unwrap_or_else(|error| panic!("{what}: {error}"));
    let gone = mounted.reclaim_orphans(&BTreeSet::new()).await;
    gone.unwrap_or_else(|failure| panic!("{what}: {failure}"));
    let tree = Tree::read(&mounted).await;
    mounted.stop();
    mounted.drive().await;
    mounted.close().await.unwrap_or_else(|failure| panic!("{what}: {failure}"));
    (tree, mounted.into_device())
}

/// e2fsck's own recovery leaves nothing to mend.
pub(crate) fn by_e2fsck(image: &RamDevice, what: &str) {
    assert_clean(image, &["-p"], what);
}

fn assert_clean(image: &RamDevice, arguments: &[&str], what: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("image");
    fs::write(&path, image.to_vec()).expect("the image is written");
    let check = |arguments: &[&str]| {
        let output = Command::new("/sbin/e2fsck").args(arguments).arg(&path).output().expect("e2fsck runs");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    if arguments == ["-p"] {
        let (code, said) = check(arguments);
        assert!(matches!(code, Some(0 | 1)), "{what}: e2fsck -p: {code:?}: {said}");
    }
    let (code, said) = check(&["-fn"]);
    let suspicious = ["Fix?", "Clear?", "Connect"].iter().any(|word| said.contains(word));
    if code != Some(0) || suspicious {
        let kept = std::env::temp_dir().join("crash-image");
        fs::copy(&path, &kept).expect("the image is kept");
        panic!("{what}: e2fsck -fn: {code:?}, image in {}: {said}", kept.display());
    }
}
