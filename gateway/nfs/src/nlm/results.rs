//! What hosts are answered, and the one call that goes to them.

use bytes::Bytes;

use super::Stat;
use crate::state::holder::{Holder, OWNER_BYTES_MAX};
use crate::state::ranges::LockKind;
use crate::state::refusal::Denied;
use crate::state::waiters::Wanted;
use crate::v4::file_handle::FileHandle;
use crate::xdr::{Decoder, Encoder, XdrError};

/// What a request came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing is told: NULL and FREE_ALL.
    Nothing,
    /// LOCK, CANCEL, UNLOCK.
    Stat(Stat),
    /// TEST: the lock that is in the way.
    Tested(Result<(), Tested>),
    /// SHARE and UNSHARE.
    Shared(Stat),
}

/// What a test found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tested {
    /// This is in the way.
    Denied(Denied),
    /// It cannot be said.
    Stat(Stat),
}

impl Outcome {
    /// Puts the whole result.
    pub fn encode(&self, cookie: &Bytes, out: &mut Encoder) {
        if *self != Self::Nothing {
            out.opaque(cookie);
        }
        match self {
            Self::Nothing => {}
            Self::Stat(stat) => out.u32(*stat as u32),
            Self::Tested(Ok(())) => out.u32(Stat::Granted as u32),
            Self::Tested(Err(Tested::Stat(stat))) => out.u32(*stat as u32),
            Self::Tested(Err(Tested::Denied(denied))) => put_denied(out, denied),
            Self::Shared(stat) => {
                out.u32(*stat as u32);
                // The sequence, which nobody looks at.
                out.u32(0);
            }
        }
    }
}

/// `nlm4_holder`. One of NFSv4 has no process that this protocol could name.
fn put_denied(out: &mut Encoder, denied: &Denied) {
    out.u32(Stat::Denied as u32);
    out.bool(denied.held.kind == LockKind::Exclusive);
    match &denied.by {
        Holder::Nlm { svid, handle, .. } => {
            out.u32(*svid);
            out.opaque(handle);
        }
        Holder::V4 { owner, .. } => {
            out.u32(0);
            out.opaque(owner);
        }
    }
    out.u64(denied.held.range.first());
    out.u64(denied.held.range.nlm_length());
}

/// The arguments of NLM_GRANTED: a lock that a host waited for is taken for it. None for a holder of another protocol.
pub fn granted(volume: u64, cookie: u64, wanted: &Wanted) -> Option<Encoder> {
    let Holder::Nlm { host, svid, handle } = &wanted.holder else { return None };
    let mut out = Encoder::new();
    out.opaque(&cookie.to_be_bytes());
    out.bool(wanted.kind == LockKind::Exclusive);
    out.opaque(host.name());
    out.opaque(&FileHandle::File(volume, wanted.file).to_bytes());
    out.opaque(handle);
    out.u32(*svid);
    out.u64(wanted.range.first());
    out.u64(wanted.range.nlm_length());
    Some(out)
}

/// The host's answer to it: true if it takes the lock. Errors: bytes that are no answer.
pub fn is_taken(from: &mut Decoder) -> Result<bool, XdrError> {
    let _cookie = from.opaque(OWNER_BYTES_MAX)?;
    Ok(from.u32()? == Stat::Granted as u32)
}

#[cfg(test)]
mod tests {
    use filesystem::InodeNumber;

    use super::*;
    use crate::ids::{ClientId, FileId};
    use crate::state::holder::Host;
    use crate::state::ranges::{ByteRange, HeldRange};

    fn encoded(outcome: &Outcome) -> Vec<u8> {
        let mut out = Encoder::new();
        outcome.encode(&Bytes::from_static(b"ck"), &mut out);
        out.to_bytes().to_vec()
    }

    #[test]
    fn results_are_as_the_protocol_has_them() {
        assert!(encoded(&Outcome::Nothing).is_empty());
        assert_eq!(encoded(&Outcome::Stat(Stat::Blocked)), b"\0\0\0\x02ck\0\0\0\0\0\x03");
        assert_eq!(encoded(&Outcome::Shared(Stat::Denied)), b"\0\0\0\x02ck\0\0\0\0\0\x01\0\0\0\0");
        assert_eq!(encoded(&Outcome::Tested(Ok(()))), b"\0\0\0\x02ck\0\0\0\0\0\0");
        let held = HeldRange { range: ByteRange::of_nlm(3, 0), kind: LockKind::Exclusive };
        let by = Holder::v4(ClientId(1), b"me").unwrap();
        let denied = encoded(&Outcome::Tested(Err(Tested::Denied(Denied { held, by }))));
        let expected: &[&[u8]] =
            &[b"\0\0\0\x02ck\0\0\0\0\0\x01\0\0\0\x01\0\0\0\0\0\0\0\x02me\0\0", &[0, 0, 0, 0, 0, 0, 0, 3], &[0; 8]];
        assert_eq!(denied, expected.concat());
    }

    #[test]
    fn a_callback_names_the_lock_as_its_host_did() {
        let host = Host::new(b"h", "192.0.2.1".parse().unwrap()).unwrap();
        let wanted = Wanted {
            file: FileId { inode: InodeNumber(12), generation: 3 },
            holder: Holder::nlm(&host, 7, b"7@h").unwrap(),
            range: ByteRange::of_nlm(1, 2),
            kind: LockKind::Shared,
        };
        let mut call = Decoder::new(granted(5, 9, &wanted).unwrap().to_bytes());
        assert_eq!(call.opaque(8).unwrap(), &9_u64.to_be_bytes()[..]);
        assert_eq!((call.bool(), call.opaque(8).unwrap()), (Ok(false), "h".into()));
        let handle = call.opaque(64).unwrap();
        assert_eq!(FileHandle::from_bytes(&handle), Some(FileHandle::File(5, wanted.file)));
        assert_eq!((call.opaque(8).unwrap(), call.u32()), ("7@h".into(), Ok(7)));
        assert_eq!((call.u64(), call.u64(), call.finish()), (Ok(1), Ok(2), Ok(())));
        let other = Wanted { holder: Holder::v4(ClientId(1), b"o").unwrap(), ..wanted };
        assert!(granted(5, 9, &other).is_none());
    }

    #[test]
    fn only_granted_is_an_acceptance() {
        let answer = |bytes: &'static [u8]| is_taken(&mut Decoder::new(Bytes::from_static(bytes)));
        assert_eq!(answer(b"\0\0\0\0\0\0\0\0"), Ok(true));
        assert_eq!(answer(b"\0\0\0\0\0\0\0\x01"), Ok(false));
        assert!(answer(b"\0\0\0\0\0\0").is_err() && answer(b"\xff\0\0\0\0\0\0\0").is_err());
    }
}
