//! The metadata of filesystems is enough for e2fsck: it says of it what it says of the whole.

use std::sync::Arc;

use block_device::RamDevice;
use filesystem::engine::{Filesystem, Options};

use super::*;
use crate::files::content::{NewContent, NewPart, put};
use crate::files::make::{Clearing, make};
use crate::files::mke2fs::FreshImage;
use crate::files::{real_time, shell};

const BYTES: u64 = 64 << 20;

fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

async fn put_file(engine: &Filesystem<RamDevice>, path: &[u8], all: Vec<NewPart>) {
    let (sender, mut parts) = mpsc::channel(all.len());
    for part in all {
        sender.send(part).await.expect("there is room");
    }
    let new = NewContent { path: path.to_vec(), name: Vec::new(), permissions: 0o600 };
    put(engine, &new, &mut parts).await.expect("it is put");
}

/// A filesystem with a tree of directories, one of them large, data, and a file of many extents.
fn used() -> RamDevice {
    let home = tempfile::tempdir().expect("a directory");
    let options = Options { cache_bytes_max: 4 << 20, data_bytes_max: 4 << 20, read_only: false, clock: real_time };
    wait(async {
        let image = Arc::new(FreshImage::make(home.path(), BYTES).expect("mke2fs (e2fsprogs) is installed"));
        let device = make(RamDevice::new(BYTES), image, Clearing::Discard, &options, &|_| ()).await;
        let (engine, _) = Filesystem::open(device.expect("it is made"), &options).await.expect("it opens");
        let work = async {
            for number in 0..400 {
                let path = format!("/many/with a name of some length {number}");
                shell::make_directory(&engine, path.as_bytes(), true).await.expect("made");
            }
            let data = |offset, byte: u8| NewPart::Data { offset, data: vec![byte; 8192].into() };
            put_file(&engine, b"/data", vec![NewPart::Data { offset: 0, data: vec![7; 9 << 20].into() }, end(9 << 20)])
                .await;
            let parts = (0..40).map(|at| data(at << 20, 1)).chain([end(40 << 20)]);
            put_file(&engine, b"/extents", parts.collect()).await;
            engine.stop();
        };
        tokio::join!(engine.drive(), work);
        engine.close().await.expect("it closes");
        engine.into_device()
    })
}

fn end(size: u64) -> NewPart {
    NewPart::End { size }
}

fn check(device: &RamDevice) -> Verdict {
    let home = tempfile::tempdir().expect("a directory");
    let (image, bytes) = wait(collect(device, home.path().to_owned())).expect("it is collected");
    judge(&image, bytes).expect("e2fsck (e2fsprogs) is installed")
}

#[test]
fn a_sound_filesystem_is_clean_and_its_data_is_not_read() {
    let device = used();
    let verdict = check(&device);
    assert!(verdict.clean, "{verdict:?}");
    assert_eq!(verdict.problems, Vec::<String>::new());
    assert!(verdict.summary.contains(" files ("), "{verdict:?}");
    assert!(verdict.looked_at_bytes < 8 << 20, "{} bytes", verdict.looked_at_bytes);
}

#[test]
fn damage_is_found_and_told() {
    let device = used();
    let bytes = device.to_vec();
    // Copies of the directory's blocks are in the log, too, where nobody looks any more.
    for (number, block) in bytes.chunks(4096).enumerate() {
        if let Some(at) = block.windows(18).position(|window| window == b"with a name of som") {
            let mut block = block.to_vec();
            block[at] = b'X';
            wait(device.write(number as u64 * 4096, block.into(), false)).expect("it writes");
        }
    }
    let verdict = check(&device);
    assert!(!verdict.clean);
    assert!(verdict.problems.iter().any(|problem| problem.contains("checksum")), "{verdict:?}");
}

#[test]
fn wrong_counts_are_no_clean_filesystem_although_e2fsck_ends_with_0() {
    use std::os::unix::process::ExitStatusExt;
    let output = |status: i32, said: &str| Output {
        status: std::process::ExitStatus::from_raw(status << 8),
        stdout: said.as_bytes().to_vec(),
        stderr: Vec::new(),
    };
    let path = Path::new("/d/image");
    let said = "Pass 1: Checking\nFree blocks count wrong (1, counted=2).\nFix? no\n\n/d/image: 11/64 files (0.0% \
                non-contiguous), 9/99 blocks\n";
    let wrong = verdict(&output(0, said), path, 0).expect("it worked");
    assert_eq!(wrong.problems, ["Free blocks count wrong (1, counted=2).", "Fix? no"]);
    assert_eq!(wrong.summary, "11/64 files (0.0% non-contiguous), 9/99 blocks");
    assert!(matches!(verdict(&output(8, "no"), path, 0), Err(ToolError::Failed { .. })));
}
