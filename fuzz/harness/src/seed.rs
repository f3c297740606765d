//! The seeds: small valid images, of which only what is not zero is stored.
//!
//! A stored image is its length, and then sectors that are not all zeros, each after its number: 64 and 32 bits, little-endian.

use std::sync::OnceLock;

use bytes::Bytes;

use crate::survey::Survey;

const SECTOR_BYTES: usize = 512;

/// The stored images by name.
const STORED: [(&str, &[u8]); 4] = [
    ("ours", include_bytes!("../../seeds/ours.sparse")),
    ("plain", include_bytes!("../../seeds/plain.sparse")),
    ("crc16", include_bytes!("../../seeds/crc16.sparse")),
    ("orphan-file", include_bytes!("../../seeds/orphan-file.sparse")),
];

/// A valid image, and what is where in it.
pub struct Seed {
    /// Its profile.
    pub name: &'static str,
    /// All of it.
    pub image: Bytes,
    pub(crate) survey: Survey,
}

/// The valid image that the NFS service works on.
pub fn served() -> Bytes {
    unpack(include_bytes!("../../seeds/served.sparse")).into()
}

/// All seeds; surveyed once.
pub fn seeds() -> &'static [Seed] {
    static SEEDS: OnceLock<Vec<Seed>> = OnceLock::new();
    SEEDS.get_or_init(|| {
        let load = |(name, stored): &(&'static str, &[u8])| {
            let image = Bytes::from(unpack(stored));
            Seed { name, survey: Survey::of(&image), image }
        };
        STORED.iter().map(load).collect()
    })
}

/// An image as it is stored.
pub fn pack(image: &[u8]) -> Vec<u8> {
    let mut out = (image.len() as u64).to_le_bytes().to_vec();
    for (number, sector) in image.chunks(SECTOR_BYTES).enumerate() {
        if sector.iter().any(|byte| *byte != 0) {
            out.extend((number as u32).to_le_bytes());
            out.extend(sector);
        }
    }
    out
}

/// The image that was stored.
fn unpack(stored: &[u8]) -> Vec<u8> {
    let (length, sectors) = stored.split_at(8);
    let mut image = vec![0; u64::from_le_bytes(length.try_into().expect("8 bytes")) as usize];
    for sector in sectors.chunks_exact(4 + SECTOR_BYTES) {
        let (number, bytes) = sector.split_at(4);
        let at = u32::from_le_bytes(number.try_into().expect("4 bytes")) as usize * SECTOR_BYTES;
        image[at..at + SECTOR_BYTES].copy_from_slice(bytes);
    }
    image
}
