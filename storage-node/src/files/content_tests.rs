//! Files in and out of a filesystem in memory.

use filesystem::directory::Cookie;

use super::*;
use crate::files::shell::tests::{link, refusal, with_engine};
use crate::files::shell::{self, list, make_directory, stat};

/// Writes a file out of parts.
async fn put_parts<D: BlockDevice>(
    engine: &Filesystem<D>,
    path: &[u8],
    all: Vec<NewPart>,
) -> Result<Vec<u8>, FilesError> {
    let (sender, mut parts) = mpsc::channel(all.len().max(1));
    for part in all {
        sender.send(part).await.expect("there is room");
    }
    drop(sender);
    let new = NewContent { path: path.to_vec(), name: b"local".to_vec(), permissions: 0o640 };
    put(engine, &new, &mut parts).await
}

async fn put_bytes<D: BlockDevice>(engine: &Filesystem<D>, path: &[u8], bytes: &[u8]) -> Result<Vec<u8>, FilesError> {
    let data = NewPart::Data { offset: 0, data: Bytes::copy_from_slice(bytes) };
    put_parts(engine, path, vec![data, NewPart::End { size: bytes.len() as u64 }]).await
}

/// A file's parts, put together; and how many bytes of them were sent.
async fn get_bytes<D: BlockDevice>(engine: &Filesystem<D>, path: &[u8]) -> Result<(Vec<u8>, usize), FilesError> {
    let (sender, mut parts) = mpsc::channel::<Part>(PARTS_QUEUED_MAX);
    let collect = async {
        let first = parts.recv().await.map_or(0, |first| first.size);
        let (mut all, mut sent) = (vec![0; first as usize], 0);
        while let Some(Part { offset, data, .. }) = parts.recv().await {
            all[offset as usize..offset as usize + data.len()].copy_from_slice(&data);
            sent += data.len();
        }
        (all, sent)
    };
    let reading = async {
        let result = get(engine, path, &sender).await;
        drop(sender);
        result
    };
    let (result, collected) = tokio::join!(reading, collect);
    result.map(|()| collected)
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8 + 1).collect()
}

#[test]
fn what_is_put_is_got_and_a_replaced_file_keeps_its_mode() {
    with_engine(async |engine| {
        let large = pattern(5 * (1 << 20) + 77);
        for (path, bytes) in [(&b"/small"[..], &b"hello"[..]), (b"/empty", b""), (b"/large", &large)] {
            assert_eq!(put_bytes(engine, path, bytes).await.expect("it is put"), path);
            assert!(get_bytes(engine, path).await.expect("it is got").0 == bytes, "{path:?}");
        }
        let first = stat(engine, b"/small", Follow::Always).await.expect("it is there");
        assert_eq!((first.fields.size, first.fields.mode.permissions()), (5, 0o640));
        let set = filesystem::engine::AttributeChanges { mode: Some(0o4711), ..Default::default() };
        engine.run(|handle| handle.set_attributes(first.inode, &set, now())).await.expect("it is set");
        put_bytes(engine, b"/small", b"other").await.expect("it is put");
        let second = stat(engine, b"/small", Follow::Always).await.expect("it is there");
        assert_eq!(second.fields.mode.permissions(), 0o4711);
        assert_ne!(second.inode, first.inode, "it was replaced as a whole");
    });
}

#[test]
fn holes_stay_holes() {
    with_engine(async |engine| {
        let block = Bytes::from(pattern(4096));
        let parts = vec![
            NewPart::Data { offset: 8 << 20, data: block.clone() },
            NewPart::Data { offset: 100 << 20, data: block.clone() },
            NewPart::End { size: 300 << 20 },
        ];
        put_parts(engine, b"/sparse", parts).await.expect("it is put, in a volume of 32 MiB");
        let (bytes, sent) = get_bytes(engine, b"/sparse").await.expect("it is got");
        assert_eq!((bytes.len(), sent), (300 << 20, 8192));
        assert_eq!(bytes[100 << 20..(100 << 20) + 4096], block[..]);
        let fields = stat(engine, b"/sparse", Follow::Always).await.expect("it is there").fields;
        assert!(fields.sectors * 512 < 64 << 10, "{} sectors", fields.sectors);
    });
}

#[test]
fn a_broken_transfer_leaves_the_old_file_and_nothing_else() {
    with_engine(async |engine| {
        put_bytes(engine, b"/file", b"old").await.expect("it is put");
        let part = NewPart::Data { offset: 0, data: Bytes::from_static(b"new") };
        let broken = put_parts(engine, b"/file", vec![part]).await.expect_err("it has no end");
        assert!(broken.to_string().contains("still there"), "{broken}");
        let huge =
            vec![NewPart::Data { offset: 0, data: Bytes::from(vec![1; 64 << 20]) }, NewPart::End { size: 64 << 20 }];
        let full = put_parts(engine, b"/file", huge).await.expect_err("it does not fit");
        assert_eq!(full.to_string(), "/file: no space left on the volume");
        assert_eq!(get_bytes(engine, b"/file").await.expect("it is got").0, b"old");
        let (entries, _) = list(engine, b"/", Cookie::START).await.expect("it is there");
        assert_eq!(entries.len(), 2, "{entries:?}");
    });
}

#[test]
fn a_file_goes_into_a_directory_under_its_name_and_through_a_link_to_what_it_names() {
    with_engine(async |engine| {
        make_directory(engine, b"/dir", false).await.expect("made");
        link(engine, b"/to-dir", b"dir").await;
        link(engine, b"/dir/to-file", b"../target").await;
        assert_eq!(put_bytes(engine, b"/dir", b"1").await.expect("put"), b"/dir/local");
        assert_eq!(put_bytes(engine, b"/to-dir/", b"2").await.expect("put"), b"/to-dir/local");
        assert_eq!(put_bytes(engine, b"", b"3").await.expect("put"), b"local");
        put_bytes(engine, b"/to-dir/to-file", b"4").await.expect("put");
        assert_eq!(get_bytes(engine, b"/target").await.expect("got").0, b"4");
        assert_eq!(get_bytes(engine, b"/dir/local").await.expect("got").0, b"2");
        let own = stat(engine, b"/dir/to-file", Follow::NotLast).await.expect("it is there");
        assert_eq!(own.kind, FileKind::Symlink, "the link is still a link");
    });
}

#[test]
fn what_is_no_regular_file_is_neither_read_nor_replaced() {
    with_engine(async |engine| {
        make_directory(engine, b"/dir/local", true).await.expect("made");
        assert_eq!(refusal(get_bytes(engine, b"/dir").await), Refusal::IsDirectory);
        assert_eq!(refusal(put_bytes(engine, b"/dir", b"x").await), Refusal::IsDirectory);
        assert_eq!(refusal(put_bytes(engine, b"/no/such", b"x").await), Refusal::NotFound);
        assert_eq!(refusal(put_bytes(engine, b"/new/", b"x").await), Refusal::NotFound);
        assert!(matches!(put_bytes(engine, b"/.tandem", b"x").await, Err(FilesError::BadPath { .. })));
        link(engine, b"/circle", b"circle").await;
        assert!(matches!(put_bytes(engine, b"/circle", b"x").await, Err(FilesError::BadPath { .. })));
    });
}

#[test]
fn a_file_that_is_removed_while_it_is_read_is_read_to_its_end() {
    with_engine(async |engine| {
        let bytes = pattern(8 << 20);
        put_bytes(engine, b"/file", &bytes).await.expect("put");
        let (sender, mut parts) = mpsc::channel(1);
        let reading = get(engine, b"/file", &sender);
        let rest = async {
            let mut read = Vec::new();
            parts.recv().await.expect("the head");
            shell::remove(engine, b"/file", false, false).await.expect("removed");
            while read.len() < bytes.len() {
                read.extend_from_slice(&parts.recv().await.expect("it goes on").data);
            }
            read
        };
        let (result, read) = tokio::join!(reading, rest);
        result.expect("it is read");
        assert!(read == bytes);
    });
}
