//! Descriptor blocks: tags that say where the copies after them belong (ext4 on-disk format, "Journal", "Descriptor
//! Block").

use crate::units::{BlockNumber, TransactionId};

use super::format::{BlockHeader, BlockKind, Checksums, HEADER_BYTES, LogFormat, put};

/// The copy had the magic at its start.
const FLAG_ESCAPED: u32 = 1;
/// No UUID follows the tag.
const FLAG_SAME_UUID: u32 = 2;
/// The last tag of its block.
const FLAG_LAST: u32 = 8;

const UUID_BYTES: usize = 16;

/// Where one copy belongs.
///
/// The flag 4 ("deleted") is not looked at: nothing ever wrote it, and recovery elsewhere does not act on it either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// The block of the filesystem.
    pub home: BlockNumber,
    /// The copy had the magic at its start, which the log has as zeros.
    pub escaped: bool,
    /// Checksum of the copy: 32 bits in version 3, 16 bits in version 2, 0 otherwise.
    pub checksum: u32,
}

/// The tags of a descriptor block, in the order of the copies that follow it. Ends at the last tag or where the block
/// ends, whatever the bytes are.
pub fn tags<'a>(format: &LogFormat, block: &'a [u8]) -> Tags<'a> {
    let payload = block.get(..format.payload_end().min(block.len())).unwrap_or_default();
    Tags { format: *format, rest: payload.get(HEADER_BYTES..).unwrap_or_default() }
}

/// See [`tags`].
#[derive(Clone, Debug)]
pub struct Tags<'a> {
    format: LogFormat,
    rest: &'a [u8],
}

impl Iterator for Tags<'_> {
    type Item = Tag;

    fn next(&mut self) -> Option<Tag> {
        let tag_bytes = self.format.tag_bytes();
        let bytes = self.rest.get(..tag_bytes)?;
        let low = be32(bytes, 0)?;
        let (flags, checksum, high) = match self.format.checksums {
            Checksums::V3 => (be32(bytes, 4)?, be32(bytes, 12)?, be32(bytes, 8)?),
            Checksums::V2 => (be16(bytes, 6)?, be16(bytes, 4)?, be32(bytes, 8).unwrap_or(0)),
            Checksums::None | Checksums::V1 => (be16(bytes, 6)?, 0, be32(bytes, 8).unwrap_or(0)),
        };
        let high = if self.format.wide { high } else { 0 };
        let uuid_bytes = if flags & FLAG_SAME_UUID == 0 { UUID_BYTES } else { 0 };
        self.rest = match flags & FLAG_LAST {
            0 => self.rest.get(tag_bytes + uuid_bytes..).unwrap_or_default(),
            _ => &[],
        };
        Some(Tag {
            home: BlockNumber(u64::from(high) << 32 | u64::from(low)),
            escaped: flags & FLAG_ESCAPED != 0,
            checksum,
        })
    }
}

fn be32(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(offset..offset + 4)?.try_into().ok()?))
}

fn be16(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from(u16::from_be_bytes(bytes.get(offset..offset + 2)?.try_into().ok()?)))
}

/// True when the copy, as it is in the log, has the checksum that its tag says, or tags have none.
pub fn copy_is_right(format: &LogFormat, sequence: TransactionId, tag: &Tag, copy: &[u8]) -> bool {
    match format.checksums {
        Checksums::V3 => format.copy_checksum(sequence, copy) == tag.checksum,
        Checksums::V2 => format.copy_checksum(sequence, copy) & 0xffff == tag.checksum,
        Checksums::None | Checksums::V1 => true,
    }
}

/// How many tags a descriptor block has room for: one is followed by the UUID.
pub fn tags_per_block(format: &LogFormat) -> usize {
    format.payload_end().saturating_sub(HEADER_BYTES + UUID_BYTES) / format.tag_bytes()
}

/// A descriptor block of `tags`, at least one and at most [`tags_per_block`]; further ones are left out.
pub fn encode(format: &LogFormat, sequence: TransactionId, uuid: &[u8; UUID_BYTES], tags: &[Tag]) -> Vec<u8> {
    let mut block = BlockHeader { kind: BlockKind::Descriptor, sequence }.start_block(format.block_bytes as usize);
    let count = tags.len().min(tags_per_block(format));
    let mut offset = HEADER_BYTES;
    for (position, tag) in tags.iter().take(count).enumerate() {
        let mut flags = if tag.escaped { FLAG_ESCAPED } else { 0 };
        if position > 0 {
            flags |= FLAG_SAME_UUID;
        }
        if position + 1 == count {
            flags |= FLAG_LAST;
        }
        put_tag(format, &mut block, offset, tag, flags);
        offset += format.tag_bytes();
        if position == 0 {
            put(&mut block, offset, uuid);
            offset += UUID_BYTES;
        }
    }
    format.set_tail(&mut block);
    block
}

fn put_tag(format: &LogFormat, block: &mut [u8], offset: usize, tag: &Tag, flags: u32) {
    let high = ((tag.home.0 >> 32) as u32).to_be_bytes();
    put(block, offset, &(tag.home.0 as u32).to_be_bytes());
    match format.checksums {
        Checksums::V3 => {
            put(block, offset + 4, &flags.to_be_bytes());
            put(block, offset + 8, &high);
            put(block, offset + 12, &tag.checksum.to_be_bytes());
        }
        Checksums::None | Checksums::V1 | Checksums::V2 => {
            put(block, offset + 4, &(tag.checksum as u16).to_be_bytes());
            put(block, offset + 6, &(flags as u16).to_be_bytes());
            if format.wide {
                put(block, offset + 8, &high);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::checksum::Seed;

    fn formats() -> Vec<LogFormat> {
        let mut formats = Vec::new();
        for checksums in [Checksums::None, Checksums::V1, Checksums::V2, Checksums::V3] {
            for wide in [false, true] {
                for block_bytes in [1024, 2048, 4096] {
                    formats.push(LogFormat { block_bytes, checksums, wide, seed: Seed::of_uuid(&[9; 16]) });
                }
            }
        }
        formats
    }

    #[test]
    fn tags_of_every_form_and_number_come_back() {
        for format in formats() {
            for count in 1..=tags_per_block(&format) {
                let tags: Vec<Tag> = (0..count as u64)
                    .map(|at| Tag {
                        home: BlockNumber(if format.wide { at << 33 | at } else { at * 77 }),
                        escaped: at % 3 == 1,
                        checksum: match format.checksums {
                            Checksums::V3 => 0xfedc_0000 + at as u32,
                            Checksums::V2 => 0xa000 + at as u32,
                            Checksums::None | Checksums::V1 => 0,
                        },
                    })
                    .collect();
                let block = encode(&format, TransactionId(3), &[1; 16], &tags);
                assert!(format.tail_is_right(&block));
                assert_eq!(super::tags(&format, &block).collect::<Vec<_>>(), tags);
            }
        }
    }

    #[test]
    fn a_block_of_any_bytes_has_a_bounded_number_of_tags() {
        for format in formats() {
            for byte in 0..=255 {
                let block = vec![byte; format.block_bytes as usize];
                assert!(tags(&format, &block).count() <= format.block_bytes as usize / format.tag_bytes());
                assert!(tags(&format, &block[..usize::from(byte)]).count() < 32);
            }
        }
    }

    #[test]
    fn the_layout_of_version_3_is_the_documented_one() {
        let format = LogFormat { block_bytes: 1024, checksums: Checksums::V3, wide: true, seed: Seed::START };
        let tag = Tag { home: BlockNumber(0x0000_0002_0000_0001), escaped: true, checksum: 0x0a0b_0c0d };
        let block = encode(&format, TransactionId(5), &[0xee; 16], &[tag, tag]);
        assert_eq!(block[12..28], [0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2, 0x0a, 0x0b, 0x0c, 0x0d]);
        assert_eq!(block[28..44], [0xee; 16]);
        assert_eq!(block[44..60], [0, 0, 0, 1, 0, 0, 0, 0x0b, 0, 0, 0, 2, 0x0a, 0x0b, 0x0c, 0x0d]);
    }
}
