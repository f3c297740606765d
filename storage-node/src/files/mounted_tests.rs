//! An engine as a task: first use, work from elsewhere, its two ends.

use std::sync::Arc;

use block_device::RamDevice;
use filesystem::directory::Cookie;
use filesystem::layout::file_kind::FileKind;
use filesystem::units::ROOT_INODE;
use tokio::task::LocalSet;

use super::*;
use crate::files::content::{NewContent, NewPart};
use crate::files::make::{Clearing, make};
use crate::files::mke2fs::FreshImage;
use crate::files::path::Follow;
use crate::files::{real_time, shell};

const BYTES: u64 = 32 << 20;

fn options() -> Options {
    Options { cache_bytes_max: 1 << 20, data_bytes_max: 1 << 20, read_only: false, clock: real_time }
}

async fn fresh() -> Rc<RamDevice> {
    let home = tempfile::tempdir().expect("a directory");
    let image = Arc::new(FreshImage::make(home.path(), BYTES).expect("mke2fs (e2fsprogs) is installed"));
    let device = make(RamDevice::new(BYTES), image, Clearing::Discard, &options(), &|_| ()).await;
    Rc::new(device.expect("it is made"))
}

fn on_shard<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, test)
}

/// Starts an engine, and waits until it is open.
async fn start(device: &Rc<RamDevice>, ended: &CancellationToken) -> (FilesHandle<Rc<RamDevice>>, Recovered) {
    let (handle, queue) = FilesHandle::new();
    let (opened, is_open) = oneshot::channel();
    let (device, ended) = (Rc::clone(device), ended.clone());
    tokio::task::spawn_local(async move { run("vol", device, options(), queue, opened, None, ended).await });
    let recovered = is_open.await.expect("it tells").expect("it opens");
    (handle, recovered)
}

#[test]
fn a_closed_engine_leaves_nothing_to_recover_and_takes_no_more_work() {
    on_shard(async {
        let (device, ended) = (fresh().await, CancellationToken::new());
        let (handle, _) = start(&device, &ended).await;
        handle.run(|engine| async move { shell::make_directory(&engine, b"/a/b", true).await }).await.expect("made");
        handle.close().await;
        assert!(matches!(handle.run(|_| async { Ok(()) }).await, Err(FilesError::Ended)));
        let (handle, recovered) = start(&device, &ended).await;
        assert_eq!(recovered, Recovered::default());
        let found = handle.run(|engine| async move { shell::stat(&engine, b"/a/b", Follow::Always).await }).await;
        assert_eq!(found.expect("it is there").kind, FileKind::Directory);
    });
}

#[test]
fn an_engine_that_lost_its_volume_ends_at_once_and_what_was_acknowledged_is_recovered() {
    on_shard(async {
        let (device, ended) = (fresh().await, CancellationToken::new());
        let (handle, _) = start(&device, &ended).await;
        handle.run(|engine| async move { shell::make_directory(&engine, b"/kept", false).await }).await.expect("made");
        let endless = handle.run(|_| std::future::pending::<Result<(), FilesError>>());
        let (lost, ()) = tokio::join!(endless, async { ended.cancel() });
        assert!(matches!(lost, Err(FilesError::Ended)));
        handle.ended().await;
        let (handle, recovered) = start(&device, &CancellationToken::new()).await;
        assert!(recovered.transactions > 0, "it was not closed");
        let found = handle.run(|engine| async move { shell::stat(&engine, b"/kept", Follow::Always).await }).await;
        assert!(found.is_ok(), "{found:?}");
    });
}

#[test]
fn a_volume_without_a_filesystem_says_so() {
    on_shard(async {
        let (_handle, queue) = FilesHandle::new();
        let (opened, is_open) = oneshot::channel();
        let device = Rc::new(RamDevice::new(BYTES));
        run("vol", device, options(), queue, opened, None, CancellationToken::new()).await;
        assert!(matches!(is_open.await.expect("it tells"), Err(FilesError::NoFilesystem)));
    });
}

/// What is in the directory at the root whose name this is.
async fn names_in(handle: &FilesHandle<Rc<RamDevice>>, name: &'static [u8]) -> Vec<Vec<u8>> {
    let listed = handle.run(move |engine| async move {
        let op = engine.run(|handle| {
            let directory = handle.lookup(ROOT_INODE, name)?;
            handle.read_directory(directory, Cookie::DOT_DOT, 100)
        });
        let batch = op.await.map_err(|why| FilesError::at(name, why))?.value;
        Ok(batch.entries.into_iter().map(|entry| entry.name).collect())
    });
    listed.await.expect("it is a directory")
}

#[test]
fn what_a_put_has_left_of_a_node_that_ended_is_gone_when_the_next_one_opens() {
    on_shard(async {
        let (device, ended) = (fresh().await, CancellationToken::new());
        let (handle, _) = start(&device, &ended).await;
        let free_before = free_blocks(&handle).await;
        let (parts, mut queue) = mpsc::channel(1);
        let endless = handle.run(|engine| async move {
            let path = b"/file".to_vec();
            let new = NewContent { path, name: Vec::new(), permissions: 0o600 };
            content::put(&engine, &new, &mut queue).await
        });
        let other = handle.clone();
        let feed = async {
            let data = |at: u64| NewPart::Data { offset: at << 20, data: vec![7; 1 << 20].into() };
            for at in 0..3 {
                parts.send(data(at)).await.expect("it is taken");
            }
            // The file was made before the first part was taken, so that it is durable with what is made after it.
            other
                .run(|engine| async move { shell::make_directory(&engine, b"/kept", false).await })
                .await
                .expect("made");
            let unfinished = names_in(&other, b".tandem-put").await;
            assert!(matches!(&unfinished[..], [name] if name.starts_with(b".tandem-put-")), "{unfinished:?}");
            ended.cancel();
        };
        let (lost, ()) = tokio::join!(endless, feed);
        assert!(matches!(lost, Err(FilesError::Ended)));
        handle.ended().await;
        let (handle, recovered) = start(&device, &CancellationToken::new()).await;
        assert!(recovered.transactions > 0, "it was not closed");
        assert!(names_in(&handle, b".tandem-put").await.is_empty());
        let listed = handle.run(|engine| async move { shell::list(&engine, b"/", Cookie::START).await }).await;
        let names: Vec<_> = listed.expect("listed").0.into_iter().map(|entry| entry.name).collect();
        assert_eq!(names.len(), 2, "lost+found and kept, and no trace of the put: {names:?}");
        handle.close().await;
        let (handle, _) = start(&device, &CancellationToken::new()).await;
        let free = free_blocks(&handle).await;
        assert!(free + 2 >= free_before, "two directories were made: {free} of {free_before} blocks are free");
    });
}

async fn free_blocks(handle: &FilesHandle<Rc<RamDevice>>) -> u64 {
    handle.run(|engine| async move { Ok(engine.statistics().blocks_free) }).await.expect("it is open")
}
