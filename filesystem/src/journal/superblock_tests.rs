//! Superblocks of journals: what is read, what is refused, and what is written.

use super::*;

fn raw(incompat: u32) -> RawSuperblock {
    let mut raw = RawSuperblock::new_zeroed();
    raw.header = BlockHeader { kind: BlockKind::SuperblockV2, sequence: TransactionId(0) }.raw();
    raw.block_bytes = U32::new(4096);
    raw.block_count = U32::new(1024);
    raw.first = U32::new(1);
    raw.sequence = U32::new(7);
    raw.incompat = U32::new(incompat);
    raw.uuid = [3; 16];
    raw.checksum_type = if incompat & (INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3) == 0 { 0 } else { 4 };
    raw
}

fn decode(mut raw: RawSuperblock) -> Result<JournalSuperblock, Refusal> {
    raw.checksum = U32::new(checksum(&raw));
    JournalSuperblock::decode(raw.as_bytes(), 4096, 1024)
}

#[test]
fn fields_and_unknown_bytes_come_back() {
    let mut with_more = raw(INCOMPAT_WRITTEN);
    with_more.user_ids = [0xab; 768];
    with_more.head = U32::new(99);
    let mut superblock = decode(with_more).unwrap();
    assert!(superblock.is_clean() && superblock.has_written_form());
    superblock.set_start(LogIndex(1023), TransactionId(u32::MAX));
    let again = JournalSuperblock::decode(&superblock.encode(), 4096, 1024).unwrap();
    assert_eq!((again.start(), again.sequence()), (Some(LogIndex(1023)), TransactionId(u32::MAX)));
    assert_eq!((again.raw.user_ids, again.raw.head.get()), ([0xab; 768], 99));
    assert_eq!(again.ring(), LogRing::new(LogIndex(1), LogIndex(1024)).unwrap());
}

#[test]
fn features_give_the_form() {
    let form = |incompat| decode(raw(incompat)).map(|it| (it.format().checksums, it.format().wide));
    assert_eq!(form(0), Ok((Checksums::None, false)));
    assert_eq!(form(INCOMPAT_REVOKE | INCOMPAT_64BIT), Ok((Checksums::None, true)));
    assert_eq!(form(INCOMPAT_CSUM_V2), Ok((Checksums::V2, false)));
    assert_eq!(form(INCOMPAT_WRITTEN), Ok((Checksums::V3, true)));
    assert!(form(INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3).is_err());
    assert!(form(0x40).is_err());
    let mut v1_sums = raw(0);
    v1_sums.compat = U32::new(COMPAT_CHECKSUM);
    assert_eq!(decode(v1_sums).unwrap().format().checksums, Checksums::V1);
}

#[test]
fn fast_and_asynchronous_commits_are_taken_only_clean() {
    for feature in [INCOMPAT_FAST_COMMIT, INCOMPAT_ASYNC_COMMIT] {
        let mut dirty = raw(INCOMPAT_WRITTEN | feature);
        let mut clean = decode(dirty).unwrap();
        let end = if feature == INCOMPAT_FAST_COMMIT { 768 } else { 1024 };
        assert_eq!(clean.ring().end(), LogIndex(end));
        clean.set_written_form();
        assert_eq!(clean.ring().end(), LogIndex(1024));
        let again = JournalSuperblock::decode(&clean.encode(), 4096, 1024).unwrap();
        assert!(again.has_written_form());
        dirty.start = U32::new(1);
        assert!(matches!(decode(dirty), Err(Refusal::Unsupported(_))));
    }
}

#[test]
fn version_1_is_read_and_becomes_what_we_write() {
    let mut old = raw(0);
    old.header = BlockHeader { kind: BlockKind::SuperblockV1, sequence: TransactionId(0) }.raw();
    // Bytes that have no meaning in version 1.
    old.incompat = U32::new(0xffff_ffff);
    old.start = U32::new(5);
    let mut superblock = JournalSuperblock::decode(old.as_bytes(), 4096, 1024).unwrap();
    assert_eq!((superblock.start(), superblock.format().tag_bytes()), (Some(LogIndex(5)), 8));
    superblock.set_empty(TransactionId(40));
    superblock.set_written_form();
    let again = JournalSuperblock::decode(&superblock.encode(), 4096, 1024).unwrap();
    assert!(again.has_written_form() && again.is_clean() && again.sequence() == TransactionId(40));
}

#[test]
fn what_cannot_be_is_refused() {
    let changed = |change: fn(&mut RawSuperblock)| {
        let mut raw = raw(INCOMPAT_WRITTEN);
        change(&mut raw);
        decode(raw).is_err()
    };
    assert!(changed(|raw| raw.block_bytes = U32::new(1024)));
    assert!(changed(|raw| raw.block_count = U32::new(1025)));
    assert!(changed(|raw| raw.block_count = U32::new(2)));
    assert!(changed(|raw| raw.first = U32::new(0)));
    assert!(changed(|raw| raw.first = U32::new(u32::MAX)));
    assert!(changed(|raw| raw.start = U32::new(1024)));
    assert!(changed(|raw| raw.checksum_type = 1));
    assert!(changed(|raw| raw.header.magic = U32::new(1)));
    assert!(changed(|raw| raw.header.kind = U32::new(1)));
    assert!(JournalSuperblock::decode(&[0; 100], 4096, 1024).is_err());
}

#[test]
fn every_byte_is_under_the_checksum() {
    let bytes = decode(raw(INCOMPAT_WRITTEN)).unwrap().encode();
    for at in 0..SUPERBLOCK_BYTES {
        let mut changed = bytes;
        changed[at] ^= 4;
        assert!(JournalSuperblock::decode(&changed, 4096, 1024).is_err(), "byte {at}");
    }
}

#[test]
fn the_error_of_an_abort_is_positive_either_way() {
    let mut failed = raw(0);
    failed.error = U32::new(5u32.wrapping_neg());
    assert_eq!(decode(failed).unwrap().error_number(), 5);
    failed.error = U32::new(117);
    let mut superblock = decode(failed).unwrap();
    assert_eq!(superblock.error_number(), 117);
    superblock.clear_error();
    assert_eq!(superblock.error_number(), 0);
}
