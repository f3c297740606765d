//! Inodes taken and freed by operations, on a filesystem that mke2fs made.

use std::collections::BTreeSet;

use super::super::test_image::{FEATURES, Image};
use super::*;

fn counts(image: &mut Image) -> (u32, u32) {
    let groups = image.geometry.group_count;
    let sum = |handle: &mut Handle<'_>| {
        let mut counts = (0, 0);
        for group in 0..groups {
            let descriptor = handle.descriptor(GroupNumber(group))?;
            counts = (counts.0 + descriptor.free_inodes, counts.1 + descriptor.directories);
        }
        Ok(counts)
    };
    image.run(sum).expect("all descriptors are here")
}

#[test]
fn every_free_inode_is_taken_once_zeroed_and_can_be_given_back() {
    for features in FEATURES {
        let mut image = Image::make(features);
        let before = counts(&mut image);
        let mut taken = BTreeSet::new();
        let stop = loop {
            let directory = taken.len() % 3 == 0;
            match image.run(|handle| handle.allocate_inode(ROOT_INODE, directory)) {
                Ok(new) => {
                    assert!(new.number >= image.geometry.first_inode && taken.insert((new.number, directory)));
                    let length = image.geometry.inode_size as usize;
                    let bytes = image.run(|handle| Ok(handle.block(new.place.block)?.to_vec())).expect("here");
                    assert!(bytes[new.place.offset as usize..][..length].iter().all(|byte| *byte == 0));
                }
                Err(stop) => break stop,
            }
        };
        assert_eq!(stop, Stop::NoSpace);
        let numbers: BTreeSet<InodeNumber> = taken.iter().map(|(number, _)| *number).collect();
        assert_eq!((numbers.len(), counts(&mut image).0), (before.0 as usize, 0));
        for (number, directory) in taken {
            image.run(|handle| handle.free_inode(number, directory)).expect("it was taken");
        }
        assert_eq!(counts(&mut image), before);
    }
}

#[test]
fn files_lie_beside_their_directory_and_directories_of_the_root_apart() {
    let mut image = Image::make(FEATURES[0]);
    let mut groups = BTreeSet::new();
    for _ in 0..image.geometry.group_count {
        let directory = image.run(|handle| handle.allocate_inode(ROOT_INODE, true)).expect("free").number;
        let home = image.geometry.group_of_inode(directory).expect("inside").0;
        groups.insert(home);
        let file = image.run(|handle| handle.allocate_inode(directory, false)).expect("free").number;
        let below = image.run(|handle| handle.allocate_inode(directory, true)).expect("free").number;
        for inode in [file, below] {
            assert_eq!(image.geometry.group_of_inode(inode).expect("inside").0, home);
        }
    }
    assert!(groups.len() > 1, "{groups:?}");
}

#[test]
fn what_is_no_files_inode_is_not_freed() {
    let mut image = Image::make(FEATURES[0]);
    for inode in [0, 2, 8, u32::MAX, 500] {
        let freed = image.run(|handle| handle.free_inode(InodeNumber(inode), false));
        assert!(matches!(freed, Err(Stop::Corrupt(_))), "{inode}: {freed:?}");
    }
}
