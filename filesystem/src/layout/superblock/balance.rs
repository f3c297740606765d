//! A superblock whose checksum stays the same while its content changes.
//!
//! A CRC is linear: of 32 bits somewhere in what it covers, each value gives another checksum, and every checksum has its
//! value. `s_snapshot_id` serves for these bits. It means nothing as long as `s_snapshot_inum` is 0, and no released tool
//! has ever set either.

use super::RawSuperblock;

/// Bits of the field, and of a checksum.
const BITS: usize = 32;

/// Sets the field so that the checksum that is there is right. False, and nothing is changed, when the field is in use.
pub(super) fn keep_checksum(raw: &mut RawSuperblock) -> bool {
    if raw.snapshot_inum.get() != 0 {
        return false;
    }
    let mut probe = raw.clone();
    let mut sum_with = |field: u32| {
        probe.snapshot_id.set(field);
        probe.sum()
    };
    let base = sum_with(0);
    // What each bit of the field changes in the checksum.
    let effects: [u32; BITS] = std::array::from_fn(|bit| sum_with(1 << bit) ^ base);
    let Some(field) = solve(effects, raw.checksum.get() ^ base) else { return false };
    raw.snapshot_id.set(field);
    true
}

/// Which of the effects add up to `wanted`, as a bit for each (Gauss, over two elements).
fn solve(effects: [u32; BITS], wanted: u32) -> Option<u32> {
    let mut rows: Vec<(u32, u32)> = effects.iter().enumerate().map(|(bit, effect)| (*effect, 1 << bit)).collect();
    let (mut left, mut chosen) = (wanted, 0);
    for bit in (0..BITS).map(|bit| 1_u32 << bit) {
        let Some(at) = rows.iter().position(|(effect, _)| effect & bit != 0) else {
            if left & bit != 0 {
                return None;
            }
            continue;
        };
        let (effect, fields) = rows.swap_remove(at);
        for row in rows.iter_mut().filter(|(other, _)| other & bit != 0) {
            *row = (row.0 ^ effect, row.1 ^ fields);
        }
        if left & bit != 0 {
            left ^= effect;
            chosen ^= fields;
        }
    }
    (left == 0).then_some(chosen)
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    #[test]
    fn any_content_gets_the_checksum_that_is_there() {
        let mut raw = RawSuperblock::new_zeroed();
        raw.checksum.set(0x1234_5678);
        for count in [0, 1, 7, 0xffff_ffff, 123_456] {
            raw.free_inodes_count.set(count);
            assert!(keep_checksum(&mut raw));
            assert_eq!(raw.sum(), 0x1234_5678);
        }
    }

    #[test]
    fn a_field_in_use_is_left_alone() {
        let mut raw = RawSuperblock::new_zeroed();
        raw.snapshot_inum.set(5);
        assert!(!keep_checksum(&mut raw));
        assert_eq!(raw.snapshot_id.get(), 0);
    }
}
