//! Revoke blocks: blocks whose copies in this transaction and in those before it are not replayed (ext4 on-disk format,
//! "Journal", "Revocation Block").

use crate::layout::{Corrupt, Structure};
use crate::units::{BlockNumber, TransactionId};

use super::format::{BlockHeader, BlockKind, HEADER_BYTES, LogFormat, put};

/// Bytes before the first record: the header, and how many bytes of the block are used.
const RECORDS_START: usize = HEADER_BYTES + 4;

fn record_bytes(format: &LogFormat) -> usize {
    if format.wide { 8 } else { 4 }
}

/// The blocks that a revoke block names. `at` is its place in the log, for the error: a count beyond the block.
pub fn records<'a>(
    format: &LogFormat,
    at: u64,
    block: &'a [u8],
) -> Result<impl Iterator<Item = BlockNumber> + 'a, Corrupt> {
    let corrupt = || Corrupt::new(Structure::JournalBlock, at, "revoke records reach past their block");
    let used = block.get(HEADER_BYTES..RECORDS_START).and_then(|bytes| bytes.try_into().ok()).ok_or_else(corrupt)?;
    let used = u32::from_be_bytes(used) as usize;
    if used > format.payload_end() {
        return Err(corrupt());
    }
    // A count below that of an empty block has no records.
    let records = block.get(RECORDS_START..used.max(RECORDS_START)).ok_or_else(corrupt)?;
    Ok(records
        .chunks_exact(record_bytes(format))
        .map(|record| BlockNumber(record.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))))
}

/// How many records a revoke block has room for.
pub fn records_per_block(format: &LogFormat) -> usize {
    format.payload_end().saturating_sub(RECORDS_START) / record_bytes(format)
}

/// A revoke block of `blocks`, at most [`records_per_block`]; further ones are left out.
pub fn encode(format: &LogFormat, sequence: TransactionId, blocks: &[BlockNumber]) -> Vec<u8> {
    let mut block = BlockHeader { kind: BlockKind::Revoke, sequence }.start_block(format.block_bytes as usize);
    let mut offset = RECORDS_START;
    for number in blocks.iter().take(records_per_block(format)) {
        match format.wide {
            true => put(&mut block, offset, &number.0.to_be_bytes()),
            false => put(&mut block, offset, &(number.0 as u32).to_be_bytes()),
        }
        offset += record_bytes(format);
    }
    put(&mut block, HEADER_BYTES, &(offset as u32).to_be_bytes());
    format.set_tail(&mut block);
    block
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::format::Checksums;
    use crate::layout::checksum::Seed;

    #[test]
    fn records_of_both_widths_and_every_number_come_back() {
        for checksums in [Checksums::None, Checksums::V3] {
            for wide in [false, true] {
                let format = LogFormat { block_bytes: 1024, checksums, wide, seed: Seed::START };
                for count in 0..=records_per_block(&format) as u64 {
                    let blocks: Vec<_> =
                        (0..count).map(|at| BlockNumber(if wide { at << 34 | 5 } else { at * 3 })).collect();
                    let block = encode(&format, TransactionId(1), &blocks);
                    assert!(format.tail_is_right(&block));
                    assert_eq!(records(&format, 0, &block).unwrap().collect::<Vec<_>>(), blocks);
                }
            }
        }
    }

    #[test]
    fn a_count_beyond_the_block_is_corrupt_and_one_below_its_start_is_empty() {
        let format = LogFormat { block_bytes: 1024, checksums: Checksums::V3, wide: true, seed: Seed::START };
        let mut block = encode(&format, TransactionId(1), &[BlockNumber(1)]);
        block[12..16].copy_from_slice(&1021u32.to_be_bytes());
        assert!(records(&format, 0, &block).is_err());
        block[12..16].copy_from_slice(&3u32.to_be_bytes());
        assert_eq!(records(&format, 0, &block).unwrap().count(), 0);
        assert!(records(&format, 0, &block[..14]).is_err());
        assert!(records(&format, 0, &[]).is_err());
    }
}
