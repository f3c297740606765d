//! The network status monitor, version 1 (X/Open XNFS, chapter 11): hosts say that they have restarted, and hear of it when the
//! service has lost what they had. Pure.
//!
//! The monitor list is in `state/hosts`. What programs of one box ask their own monitor (SM_MON and the like) is refused: the
//! service watches for nobody but itself.

use bytes::Bytes;

use crate::state::holder::HOST_BYTES_MAX;
use crate::xdr::{Decoder, Encoder, XdrError};

/// RPC program.
pub const PROGRAM: u32 = 100_024;
/// The only version there is.
pub const VERSION: u32 = 1;
/// The procedure by which a restart is told.
pub const NOTIFY: u32 = 6;

/// `STAT_FAIL`.
const FAIL: u32 = 1;
/// Bytes of the arguments of requests that are refused.
const REFUSED_BYTES_MAX: usize = 4096;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Nothing is asked.
    Null,
    /// Whether a host would be watched, or is to be: no. The state number is told.
    Watch,
    /// A host, or all of them, is not to be watched. The state number is told.
    Unwatch,
    /// To behave as after a restart, which no stranger may ask for.
    SimulateCrash,
    /// A host has restarted.
    Notify {
        /// What it calls itself.
        host: Bytes,
        /// Its state number now.
        state: u32,
    },
}

impl Request {
    /// From the wire. None for procedures that there are not. Errors: bytes that are no arguments.
    pub fn decode(procedure: u32, from: &mut Decoder) -> Result<Option<Self>, XdrError> {
        let request = match procedure {
            0 => Self::Null,
            NOTIFY => {
                let (host, state) = (from.opaque(HOST_BYTES_MAX)?, from.u32()?);
                from.finish()?;
                Self::Notify { host, state }
            }
            1..=5 if from.remaining() > REFUSED_BYTES_MAX => {
                return Err(XdrError::Trailing(from.remaining()));
            }
            1 | 2 => Self::Watch,
            3 | 4 => Self::Unwatch,
            5 => Self::SimulateCrash,
            _ => return Ok(None),
        };
        Ok(Some(request))
    }

    /// Puts the result, of a service with this state number.
    pub fn encode_result(&self, state: u32, out: &mut Encoder) {
        match self {
            Self::Null | Self::SimulateCrash | Self::Notify { .. } => {}
            Self::Watch => {
                out.u32(FAIL);
                out.u32(state);
            }
            Self::Unwatch => out.u32(state),
        }
    }
}

/// The arguments of SM_NOTIFY: the service of this name has restarted, and is in this state now.
pub fn notification(name: &[u8], state: u32) -> Encoder {
    let mut out = Encoder::new();
    out.opaque(name);
    out.u32(state);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(procedure: u32, bytes: &[u8]) -> Result<Option<Request>, XdrError> {
        Request::decode(procedure, &mut Decoder::new(Bytes::copy_from_slice(bytes)))
    }

    #[test]
    fn a_notification_is_understood_as_it_is_made() {
        let bytes = notification(b"host", 7).to_bytes();
        let notify = Request::Notify { host: Bytes::from_static(b"host"), state: 7 };
        assert_eq!(decode(NOTIFY, &bytes), Ok(Some(notify)));
        for length in 0..bytes.len() {
            assert!(decode(NOTIFY, &bytes[..length]).is_err());
        }
        assert!(decode(NOTIFY, &[&bytes[..], &[0; 4]].concat()).is_err());
        assert!(decode(NOTIFY, &notification(&[0; 1025], 7).to_bytes()).is_err());
    }

    #[test]
    fn what_is_meant_for_a_monitor_of_its_own_box_is_refused() {
        for (procedure, result) in [(1, &[1, 9][..]), (2, &[1, 9]), (3, &[9]), (4, &[9]), (5, &[]), (0, &[])] {
            let mut out = Encoder::new();
            decode(procedure, b"whatever").unwrap().unwrap().encode_result(9, &mut out);
            let words: Vec<u8> = result.iter().flat_map(|word: &u32| word.to_be_bytes()).collect();
            assert_eq!(out.to_bytes(), words);
        }
        assert_eq!(decode(7, b""), Ok(None));
        assert!(decode(2, &[0; REFUSED_BYTES_MAX + 1]).is_err());
    }
}
