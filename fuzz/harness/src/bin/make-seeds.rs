//! Makes the small images that the fuzzer damages, with mke2fs and debugfs, and stores what in them is not zero.
//!
//! Their checksums, places and names are what regression files mean, so they are made once and kept in `fuzz/seeds`. Run it
//! again only for another seed: `cargo run -p fuzz-harness --bin make-seeds -- fuzz/seeds NAME`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use fuzz_harness::seed;

/// The one of [`SERVED_BYTES`].
const SERVED: &str = "served";
/// The size of the others, in bytes: a journal has 1024 blocks at least.
const IMAGE_BYTES: u64 = 3 << 20;

/// The size of the one that the NFS service works on, whose ring wants blocks of 4 KiB.
const SERVED_BYTES: u64 = 12 << 20;

/// What mke2fs is told.
const PROFILES: &[(&str, &str)] = &[
    (
        SERVED,
        "-b 4096 -J size=4 -O none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,\
         huge_file,dir_nlink,extra_isize,metadata_csum,metadata_csum_seed -N 128 -I 256",
    ),
    (
        "ours",
        "-O none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,\
         extra_isize,metadata_csum,metadata_csum_seed -g 512 -N 96 -I 256",
    ),
    ("plain", "-O none,has_journal,filetype,sparse_super,large_file -g 1024 -N 64 -I 128"),
    (
        "crc16",
        "-O none,has_journal,ext_attr,dir_index,filetype,extent,sparse_super,uninit_bg,extra_isize -g 512 -N 96 -I 256",
    ),
    (
        "orphan-file",
        "-O none,has_journal,ext_attr,dir_index,filetype,extent,64bit,sparse_super,metadata_csum,orphan_file,extra_isize \
         -N 64 -I 256",
    ),
];

fn main() {
    let mut arguments = std::env::args().skip(1);
    let to = PathBuf::from(arguments.next().expect("a directory for the seeds"));
    let only: Vec<String> = arguments.collect();
    for (name, options) in PROFILES.iter().filter(|(name, _)| only.is_empty() || only.iter().any(|one| one == name)) {
        let bytes = if *name == SERVED { SERVED_BYTES } else { IMAGE_BYTES };
        let image = make(options, bytes);
        let packed = seed::pack(&image);
        println!("{name}: {} of {} bytes", packed.len(), image.len());
        fs::write(to.join(format!("{name}.sparse")), packed).expect("the seed is written");
    }
}

fn make(options: &str, bytes: u64) -> Vec<u8> {
    let directory = tempfile::tempdir().expect("a directory");
    let (tree, image) = (directory.path().join("tree"), directory.path().join("image"));
    plant(&tree);
    fs::File::create(&image).and_then(|file| file.set_len(bytes)).expect("a sparse file");
    let mut make = Command::new("/sbin/mke2fs");
    make.args(["-q", "-F", "-m", "0"]);
    if !options.contains("-b ") {
        make.args(["-b", "1024", "-J", "size=1"]);
    }
    make.args(["-U", "6f9d1c1e-2d1a-4e0b-9b7e-6a1f0a8f4c11", "-E", "hash_seed=3b0b8a0e-91d5-4a52-8f6f-6f8c8a1fb2aa"]);
    run(make.args(options.split_whitespace()).arg("-d").arg(&tree).arg(&image));
    let value = directory.path().join("value");
    fs::write(&value, [b'v'; 300]).expect("a file");
    let mut requests = vec!["ea_set file user.short value".to_owned()];
    requests.push(format!("ea_set -f {} file user.long", value.display()));
    requests.push(format!("ea_set -f {} large user.long", value.display()));
    requests.push("mknod pipe p".to_owned());
    for request in requests {
        run(Command::new("/sbin/debugfs").args(["-w", "-R", &request]).arg(&image));
    }
    // It gives a directory of several blocks its index.
    let status = Command::new("/sbin/e2fsck").args(["-fyD"]).arg(&image).status().expect("e2fsck runs");
    assert!(status.code().is_some_and(|code| code <= 1), "e2fsck: {status}");
    fs::read(&image).expect("the image")
}

/// Files and directories of every kind that has a form of its own on disk.
fn plant(tree: &Path) {
    let write = |name: &str, content: &[u8]| fs::write(tree.join(name), content).expect("a file");
    fs::create_dir_all(tree.join("directory/below")).expect("directories");
    write("file", b"content\n");
    write("directory/other", &[7; 5000]);
    fs::hard_link(tree.join("file"), tree.join("directory/link")).expect("a link");
    std::os::unix::fs::symlink("file", tree.join("symlink")).expect("a symbolic link");
    std::os::unix::fs::symlink("x".repeat(200), tree.join("long-symlink")).expect("a symbolic link");
    // Every second block is a hole: more extents than an inode holds, and an indirect block.
    let mut sparse = Vec::new();
    for _ in 0..24 {
        sparse.extend([5; 4096]);
        sparse.extend([0; 4096]);
    }
    let path = tree.join("large");
    let file = fs::File::create(&path).expect("a file");
    file.set_len(sparse.len() as u64).expect("a length");
    for index in 0..24 {
        std::os::unix::fs::FileExt::write_all_at(&file, &[5; 1024], index * 8192).expect("a part of it");
    }
    fs::create_dir(tree.join("many")).expect("a directory");
    for number in 0..90 {
        let name = format!("many/a-name-long-enough-to-fill-blocks-{number:03}");
        fs::hard_link(tree.join("directory/other"), tree.join(name)).expect("a link");
    }
}

fn run(command: &mut Command) {
    let output = command.env("MKE2FS_CONFIG", "/dev/null").output().expect("e2fsprogs is installed");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}
