//! What hosts ask for, from the wire. All lengths are bounded, nothing may follow.

use bytes::Bytes;

use crate::state::holder::{HOST_BYTES_MAX, OWNER_BYTES_MAX};
use crate::state::ranges::{ByteRange, LockKind};
use crate::state::share::{ShareBits, ShareMode};
use crate::xdr::{Decoder, XdrError};

/// The longest cookie and file handle (`MAXNETOBJ_SZ`).
const OBJECT_BYTES_MAX: usize = 1024;

/// A lock as a host tells of it (`nlm4_lock`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    /// What the host calls itself.
    pub host: Bytes,
    /// The file's handle.
    pub handle: Bytes,
    /// Whose.
    pub owner: Bytes,
    /// The process.
    pub svid: u32,
    /// Which bytes.
    pub range: ByteRange,
}

/// TEST and CANCEL, and the lock part of LOCK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// How.
    pub kind: LockKind,
    /// What.
    pub lock: Lock,
}

/// SHARE and UNSHARE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// What the host calls itself.
    pub host: Bytes,
    /// The file's handle.
    pub handle: Bytes,
    /// Whose.
    pub owner: Bytes,
    /// What for, and what is denied.
    pub mode: ShareMode,
    /// It was held before the service lost its state.
    pub reclaims: bool,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Nothing is asked.
    Null,
    /// Is something in the way?
    Test(Asked),
    /// Take a lock. `NLM_NM_LOCK`, of hosts that watch nobody, is the same here: to be watched does such a host no harm.
    Lock {
        /// Which.
        asked: Asked,
        /// The host waits for it.
        waits: bool,
        /// It was held before the service lost its state.
        reclaims: bool,
        /// How often the host has restarted, as it counts.
        state: u32,
    },
    /// Wait no more.
    Cancel(Asked),
    /// Give a lock back.
    Unlock(Lock),
    /// Reserve.
    Share(Share),
    /// Give a reservation back.
    Unshare(Share),
    /// The host has nothing any more.
    FreeAll(Bytes),
}

/// A request and what its answer is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// To be given back as it is.
    pub cookie: Bytes,
    /// What is asked.
    pub request: Request,
}

impl Arguments {
    /// From the wire. None for procedures that are not here. Errors: bytes that are no arguments.
    pub fn decode(procedure: u32, from: &mut Decoder) -> Result<Option<Self>, XdrError> {
        let (cookie, request) = match procedure {
            0 => (Bytes::new(), Request::Null),
            1 => (cookie(from)?, Request::Test(Asked::decode(from)?)),
            2 | 22 => {
                let (cookie, waits) = (cookie(from)?, from.bool()?);
                let asked = Asked::decode(from)?;
                let (reclaims, state) = (from.bool()?, from.u32()?);
                (cookie, Request::Lock { asked, waits, reclaims, state })
            }
            3 => {
                let (cookie, _waits) = (cookie(from)?, from.bool()?);
                (cookie, Request::Cancel(Asked::decode(from)?))
            }
            4 => (cookie(from)?, Request::Unlock(Lock::decode(from)?)),
            20 => (cookie(from)?, Request::Share(Share::decode(from)?)),
            21 => (cookie(from)?, Request::Unshare(Share::decode(from)?)),
            23 => {
                let (host, _state) = (from.opaque(HOST_BYTES_MAX)?, from.u32()?);
                (Bytes::new(), Request::FreeAll(host))
            }
            _ => return Ok(None),
        };
        from.finish()?;
        Ok(Some(Self { cookie, request }))
    }
}

impl Request {
    /// What the host calls itself; nothing is asked by nobody.
    pub fn host(&self) -> Option<&Bytes> {
        match self {
            Self::Null => None,
            Self::Test(asked) | Self::Cancel(asked) | Self::Lock { asked, .. } => Some(&asked.lock.host),
            Self::Unlock(lock) => Some(&lock.host),
            Self::Share(share) | Self::Unshare(share) => Some(&share.host),
            Self::FreeAll(host) => Some(host),
        }
    }
}

fn cookie(from: &mut Decoder) -> Result<Bytes, XdrError> {
    from.opaque(OBJECT_BYTES_MAX)
}

impl Lock {
    fn decode(from: &mut Decoder) -> Result<Self, XdrError> {
        let (host, handle) = (from.opaque(HOST_BYTES_MAX)?, from.opaque(OBJECT_BYTES_MAX)?);
        let (owner, svid) = (from.opaque(OWNER_BYTES_MAX)?, from.u32()?);
        let range = ByteRange::of_nlm(from.u64()?, from.u64()?);
        Ok(Self { host, handle, owner, svid, range })
    }
}

impl Asked {
    fn decode(from: &mut Decoder) -> Result<Self, XdrError> {
        let kind = if from.bool()? { LockKind::Exclusive } else { LockKind::Shared };
        Ok(Self { kind, lock: Lock::decode(from)? })
    }
}

impl Share {
    fn decode(from: &mut Decoder) -> Result<Self, XdrError> {
        let (host, handle) = (from.opaque(HOST_BYTES_MAX)?, from.opaque(OBJECT_BYTES_MAX)?);
        let owner = from.opaque(OWNER_BYTES_MAX)?;
        let deny = share_bits(from, "fsh4_mode")?;
        let access = share_bits(from, "fsh4_access")?;
        Ok(Self { host, handle, owner, mode: ShareMode { access, deny }, reclaims: from.bool()? })
    }
}

fn share_bits(from: &mut Decoder, of: &'static str) -> Result<ShareBits, XdrError> {
    let value = from.u32()?;
    ShareBits::from_wire(value).ok_or(XdrError::BadValue { of, value })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xdr::Encoder;

    fn decode(procedure: u32, bytes: &[u8]) -> Result<Option<Arguments>, XdrError> {
        Arguments::decode(procedure, &mut Decoder::new(Bytes::copy_from_slice(bytes)))
    }

    fn put_lock(out: &mut Encoder) {
        out.opaque(b"host");
        out.opaque(&[1; 20]);
        out.opaque(b"12@host");
        out.u32(12);
        out.u64(5);
        out.u64(0);
    }

    fn bytes(put: impl FnOnce(&mut Encoder)) -> Vec<u8> {
        let mut out = Encoder::new();
        put(&mut out);
        out.to_bytes().to_vec()
    }

    /// One of each procedure.
    fn samples() -> Vec<(u32, Vec<u8>)> {
        let with_lock = |words: &'static [u32], behind: &'static [u32]| {
            bytes(|out| {
                out.opaque(b"\0\0\0\x07");
                words.iter().for_each(|word| out.u32(*word));
                put_lock(out);
                behind.iter().for_each(|word| out.u32(*word));
            })
        };
        let share = bytes(|out| {
            [&b"c"[..], b"host", &[1; 20], b"o"].iter().for_each(|part| out.opaque(part));
            [3, 1, 0].into_iter().for_each(|word| out.u32(word));
        });
        let free_all = bytes(|out| {
            out.opaque(b"host");
            out.u32(9);
        });
        vec![
            (0, Vec::new()),
            (1, with_lock(&[1], &[])),
            (2, with_lock(&[1, 0], &[1, 9])),
            (3, with_lock(&[1, 1], &[])),
            (4, with_lock(&[], &[])),
            (20, share.clone()),
            (21, share),
            (22, with_lock(&[0, 1], &[0, 0])),
            (23, free_all),
        ]
    }

    #[test]
    fn every_procedure_is_understood_and_no_other() {
        for (procedure, sample) in samples() {
            let arguments = decode(procedure, &sample).unwrap().unwrap();
            assert_eq!(arguments.request.host().is_some(), procedure != 0);
        }
        let Some(Request::Lock { asked, waits, reclaims, state }) =
            decode(2, &samples()[2].1).unwrap().map(|arguments| arguments.request)
        else {
            panic!("a lock")
        };
        assert_eq!((asked.kind, waits, reclaims, state), (LockKind::Shared, true, true, 9));
        assert_eq!((asked.lock.range.first(), asked.lock.range.last()), (5, u64::MAX));
        for procedure in (5..20).chain([24, u32::MAX]) {
            assert_eq!(decode(procedure, &[]), Ok(None));
        }
    }

    #[test]
    fn torn_longer_and_damaged_arguments_are_refused_or_mean_something_else() {
        for (procedure, sample) in samples() {
            for length in 0..sample.len() {
                assert!(decode(procedure, &sample[..length]).is_err());
            }
            assert!(decode(procedure, &[&sample[..], &[0; 4]].concat()).is_err());
            for at in 0..sample.len() {
                for value in [0, 1, 2, 4, 0x7f, 0x80, 0xff] {
                    let mut damaged = sample.clone();
                    damaged[at] = value;
                    let _ = decode(procedure, &damaged);
                }
            }
        }
    }

    #[test]
    fn names_owners_and_handles_are_bounded() {
        for part in 0..4 {
            let sample = bytes(|out| {
                let parts = [&b"c"[..], b"h", b"f", b"o"];
                for (at, bytes) in parts.into_iter().enumerate() {
                    out.opaque(if at == part { &[0; 1025] } else { bytes });
                }
                out.u32(0);
                out.u64(0);
                out.u64(0);
            });
            assert_eq!(decode(4, &sample), Err(XdrError::TooLong { length: 1025, max: 1024 }));
        }
    }
}
