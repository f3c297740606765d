//! The verifier of an exclusive create, which tells a retry from somebody else's file: it is kept in the new file's times until
//! the client sets them (RFC 8881 §18.16.3, RFC 1813 §3.3.8).

use filesystem::engine::AttributeChanges;
use filesystem::layout::inode::Inode;
use filesystem::layout::timestamp::Timestamp;

/// Bits of a half of a verifier that a time's seconds can keep.
const VERIFIER_BITS: u32 = 0x7fff_ffff;

/// What is to be set of a file that was made with a verifier.
pub fn times_with(verifier: [u8; 8]) -> AttributeChanges {
    let (accessed, modified) = times_of(verifier);
    AttributeChanges { accessed: Some(accessed), modified: Some(modified), ..AttributeChanges::default() }
}

/// True for a file that was made with this verifier, as long as nobody has set its times.
pub fn keeps(inode: &Inode, verifier: [u8; 8]) -> bool {
    (inode.accessed, inode.modified) == times_of(verifier)
}

fn times_of(verifier: [u8; 8]) -> (Timestamp, Timestamp) {
    let half = |at: usize| {
        let bits = u32::from_be_bytes([verifier[at], verifier[at + 1], verifier[at + 2], verifier[at + 3]]);
        // The bit that is lost goes where nobody looks at it otherwise.
        Timestamp { seconds: i64::from(bits & VERIFIER_BITS), nanoseconds: bits >> 31 }
    };
    (half(0), half(4))
}
