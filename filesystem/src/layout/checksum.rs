//! CRC32C as ext4 uses it: started from a seed, and not inverted at its end (ext4 on-disk format, "Checksums").

use crate::units::InodeNumber;

/// What a checksum goes on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed(pub u32);

impl Seed {
    /// Where nothing came before.
    pub const START: Seed = Seed(!0);

    /// That of a filesystem without `metadata_csum_seed`: its UUID's.
    pub fn of_uuid(uuid: &[u8; 16]) -> Self {
        Seed(Self::START.sum(uuid))
    }

    /// That of what belongs to an inode: its directory blocks, extent blocks, and the inode itself.
    pub fn of_inode(self, inode: InodeNumber, generation: u32) -> Self {
        let number = Seed(self.sum(&inode.0.to_le_bytes()));
        Seed(number.sum(&generation.to_le_bytes()))
    }

    /// The checksum of `bytes` after what made this seed.
    pub fn sum(self, bytes: &[u8]) -> u32 {
        !crc32c::crc32c_append(!self.0, bytes)
    }

    /// The seed for what follows `bytes`.
    pub fn then(self, bytes: &[u8]) -> Self {
        Seed(self.sum(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_castagnoli_without_the_final_inversion() {
        // RFC 3720 §B.4: CRC32C of 32 zero bytes is 0x8a9136aa.
        assert_eq!(!Seed::START.sum(&[0; 32]), 0x8a91_36aa);
        assert_eq!(Seed::START.then(b"1234").sum(b"56789"), !0xe306_9283);
    }
}
