//! A file system that is full.

use super::*;

const MIB: u64 = 1 << 20;

/// A small file system of its own; `None` where it cannot be mounted.
struct SmallDisk {
    _directory: TempDir,
    mounted: std::path::PathBuf,
}

impl SmallDisk {
    fn new(size_bytes: u64) -> Option<SmallDisk> {
        let directory = tempfile::tempdir().unwrap();
        let (image, mounted) = (directory.path().join("image"), directory.path().join("mounted"));
        std::fs::create_dir(&mounted).unwrap();
        std::fs::File::create(&image).unwrap().set_len(size_bytes).unwrap();
        run_program("mkfs.ext4", &["-q", "-m", "0", image.to_str().unwrap()])?;
        run_program("mount", &["-o", "loop", image.to_str().unwrap(), mounted.to_str().unwrap()])?;
        Some(SmallDisk { _directory: directory, mounted })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = run_program("umount", &[self.mounted.to_str().unwrap()]);
        assert!(unmounted.is_some() || std::thread::panicking(), "unmounted");
    }
}

#[test]
fn extents_are_refused_before_they_are_written_when_the_file_system_is_full() {
    let Some(disk) = SmallDisk::new(24 * MIB) else { return skipped("mounting needs root and loop devices") };
    let pool = StorePool::new(&disk.mounted, &[]).unwrap();
    let refusal = pool.create(&StoreSpec { preallocate: true, ..spec(64 * MIB) }, &|_, _| {}).unwrap_err();
    assert!(refusal.to_string().contains("not enough space"), "{refusal}");
    let found = pool.create(&spec(64 * MIB), &|_, _| {}).unwrap();
    on_shard(async {
        let client = Client::open_at(&found, BOOT).await.unwrap();
        let mut hot = 0;
        while hot < 16 {
            match client.run(DiskOp::Heat { extents: vec![hot] }).await {
                Ok(_) => hot += 1,
                Err(error) => {
                    assert_eq!(error, DiskError::OutOfSpace);
                    break;
                }
            }
        }
        assert!((1..16).contains(&hot), "{hot} extents fit");
        assert_eq!(client.store.hot_extents(), hot);
        // What is hot has its space: none of these writes, nor the checksums, can run out of it.
        for extent in 0..hot {
            client.write(extent * 1024, blocks(1 + extent as u8, 1024)).await.unwrap();
        }
        client.run(DiskOp::Cool { extents: (0..hot).collect(), bitmaps: vec![] }).await.unwrap();
        for extent in 0..hot {
            assert_eq!(client.read(extent * 1024, 1024).await, blocks(1 + extent as u8, 1024));
        }
        // Space that is given back can be used elsewhere.
        client.run(DiskOp::Heat { extents: vec![0] }).await.unwrap();
        client.run(erase(WriteKind::Discard, BlockRange::new(0, 1024), true)).await.unwrap();
        client.run(DiskOp::Heat { extents: vec![hot] }).await.unwrap();
        client.write(hot * 1024, blocks(9, 1024)).await.unwrap();
        // The discarded extent is still hot, and finds no space any more: told apart from a bad disk.
        assert_eq!(client.write(0, blocks(7, 1024)).await, Err(DiskError::OutOfSpace));
        assert_eq!(client.read(hot * 1024, 1024).await, blocks(9, 1024));
        client.store.close(true).await.unwrap();
    });
    drop(disk);
}
