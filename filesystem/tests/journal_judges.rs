//! Logs written by debugfs are recovered by ours as e2fsck recovers them, and e2fsck replays the logs that we write.

use std::fs;
use std::path::Path;
use std::process::Command;

use filesystem::journal::{
    CommitTime, JournalMap, JournalSuperblock, LogIndex, LogSpace, NewTransaction, Recovery, Step, writer,
};
use filesystem::{BlockNumber, BlockRun, TransactionId};

const BLOCK_BYTES: usize = 4096;

fn tool(name: &str, arguments: &[&str]) -> String {
    let path = format!("{}:/sbin:/usr/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(name).args(arguments).env("PATH", path).output();
    let output = output.unwrap_or_else(|error| panic!("{name} of e2fsprogs is needed by this test: {error}"));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn journal_blocks(image: &Path) -> Vec<u64> {
    let listed = tool("debugfs", &["-R", "blocks <8>", image.to_str().unwrap()]);
    listed.split_whitespace().map(|word| word.parse().unwrap()).collect()
}

/// Replays into the image; gives the number of revoke records.
fn replay(image: &mut [u8], blocks: &[u64]) -> u64 {
    let at = |block: u64| block as usize * BLOCK_BYTES..(block as usize + 1) * BLOCK_BYTES;
    let extents: Vec<_> =
        (0u32..).zip(blocks).map(|(log, block)| (LogIndex(log), BlockRun::new(BlockNumber(*block), 1))).collect();
    let map = JournalMap::new(&extents).unwrap();
    let superblock = JournalSuperblock::decode(&image[at(blocks[0])], 4096, map.block_count()).unwrap();
    let mut recovery = Recovery::new(superblock, map, (image.len() / BLOCK_BYTES) as u64);
    while let Step::Read { at: first, count } = recovery.step() {
        let run = first.0 as usize..(first.0 + count) as usize;
        let bytes: Vec<u8> = blocks[run].iter().flat_map(|block| image[at(*block)].to_vec()).collect();
        recovery.feed(&bytes).unwrap();
    }
    let outcome = recovery.finish().unwrap();
    for replay in &outcome.replays {
        let mut copy = image[at(blocks[replay.at.0 as usize])].to_vec();
        outcome.restore(replay, &mut copy).unwrap();
        image[at(replay.home.0)].copy_from_slice(&copy);
    }
    outcome.revoke_count
}

fn same_as_e2fsck(open: &str) {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    let name = image.to_str().unwrap();
    tool("mke2fs", &["-q", "-t", "ext4", "-b", "4096", "-J", "size=4", name, "32M"]);
    let file = |name: &str, bytes: Vec<u8>| {
        let path = directory.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let one = file("one", vec![0x31; BLOCK_BYTES]);
    let many = file("many", vec![0x32; 300 * BLOCK_BYTES]);
    let script = format!("{open}\njw -b 5000-5299 {many}\njw -b 5001 {one}\njw -r 5001,5002\njw -b 5002 {one}\njc\n");
    let script = file("script", script.into_bytes());
    tool("debugfs", &["-w", "-f", &script, name]);

    let blocks = journal_blocks(&image);
    assert_eq!(blocks.len(), 1024);
    let before = fs::read(&image).unwrap();
    let mut ours = before.clone();
    assert_eq!(replay(&mut ours, &blocks), 2, "{open}");
    assert!(ours != before, "{open}: something was replayed");
    tool("e2fsck", &["-fy", "-E", "journal_only", name]);
    let theirs = fs::read(&image).unwrap();
    for block in 1..ours.len() / BLOCK_BYTES {
        let range = block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES;
        let same = blocks.contains(&(block as u64)) || ours[range.clone()] == theirs[range];
        assert!(same, "{open}: block {block} differs");
    }
}

#[test]
fn logs_of_debugfs_in_every_form_are_recovered_as_e2fsck_does() {
    for open in ["jo", "jo -c -v 2", "jo -c -v 3"] {
        same_as_e2fsck(open);
    }
}

/// Writes three transactions around the log's end into the image; gives what blocks 5000 to 5299 then have to hold.
fn write_log(image: &mut [u8], blocks: &[u64]) -> Vec<Vec<u8>> {
    let at = |block: u64| block as usize * BLOCK_BYTES..(block as usize + 1) * BLOCK_BYTES;
    let mut superblock = JournalSuperblock::decode(&image[at(blocks[0])], 4096, blocks.len() as u32).unwrap();
    superblock.set_written_form();
    let (start, first) = (LogIndex(900), TransactionId(u32::MAX - 1));
    superblock.set_start(start, first);
    let mut space = LogSpace::empty(superblock.ring(), start).unwrap();
    let mut expected: Vec<Vec<u8>> = (5000..5300).map(|block| image[at(block)].to_vec()).collect();
    let before = expected.clone();
    // 300 blocks take two descriptor blocks; the second transaction revokes some of them; the third has one of those again.
    let changes: [(Vec<u64>, Vec<u64>); 3] =
        [((0..300).collect(), vec![]), ((100..200).collect(), vec![7, 8, 9]), (vec![8, 250], vec![])];
    let mut sequence = first;
    for (number, (homes, revokes)) in changes.iter().enumerate() {
        for &revoked in revokes {
            expected[revoked as usize].clone_from(&before[revoked as usize]);
        }
        for &home in homes {
            let mut content = vec![0x41 + number as u8; BLOCK_BYTES];
            if home % 50 == 0 {
                content[..4].copy_from_slice(&0xc03b_3998_u32.to_be_bytes());
            }
            expected[home as usize] = content;
        }
        let contents: Vec<_> =
            homes.iter().map(|home| (BlockNumber(5000 + home), &expected[*home as usize][..])).collect();
        let revokes: Vec<_> = revokes.iter().map(|home| BlockNumber(5000 + home)).collect();
        let time = CommitTime { seconds: 1_700_000_000 + number as u64, nanoseconds: 5 };
        let transaction = NewTransaction { sequence, time, blocks: &contents, revokes: &revokes };
        let written = writer::write(&superblock.format(), &superblock.uuid(), &mut space, &transaction).unwrap();
        for block in written.blocks.iter().chain([&written.commit]) {
            image[at(blocks[block.at.0 as usize])].copy_from_slice(block.content.bytes(&transaction));
        }
        sequence = sequence.next();
    }
    let bytes = superblock.encode();
    let place = at(blocks[0]).start;
    image[place..place + bytes.len()].copy_from_slice(&bytes);
    expected
}

#[test]
fn our_log_with_wraps_escapes_and_revokes_is_replayed_by_e2fsck() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    let name = image.to_str().unwrap();
    tool("mke2fs", &["-q", "-t", "ext4", "-b", "4096", "-J", "size=4", name, "32M"]);
    let blocks = journal_blocks(&image);
    let mut bytes = fs::read(&image).unwrap();
    let expected = write_log(&mut bytes, &blocks);
    fs::write(&image, bytes).unwrap();
    tool("debugfs", &["-w", "-R", "feature needs_recovery", name]);
    tool("e2fsck", &["-fy", "-E", "journal_only", name]);
    let after = fs::read(&image).unwrap();
    for (home, content) in expected.iter().enumerate() {
        let block = 5000 + home;
        assert!(after[block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES] == content[..], "block {block}");
    }
}
