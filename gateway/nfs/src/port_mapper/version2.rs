//! Version 2 (RFC 1833 §3): ports of IPv4.

use super::{Offer, Protocol, port_of_any};
use crate::xdr::{Decoder, Encoder, XdrError};

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Nothing is asked.
    Null,
    /// SET or UNSET: nobody may.
    Change,
    /// The port of a program, by the number of the protocol.
    GetPort {
        /// Program.
        program: u32,
        /// Its version.
        version: u32,
        /// IP protocol.
        protocol: u32,
    },
    /// All that is offered.
    Dump,
}

impl Request {
    /// From the wire. None for procedures that are not here. Errors: bytes that are no arguments.
    pub fn decode(procedure: u32, from: &mut Decoder) -> Result<Option<Self>, XdrError> {
        let request = match procedure {
            0 => return Ok(Some(Self::Null)),
            1..=3 => {
                let (program, version, protocol, _port) = (from.u32()?, from.u32()?, from.u32()?, from.u32()?);
                if procedure == 3 { Self::GetPort { program, version, protocol } } else { Self::Change }
            }
            4 => Self::Dump,
            _ => return Ok(None),
        };
        from.finish()?;
        Ok(Some(request))
    }

    /// Puts the result.
    pub fn answer(&self, offers: &[Offer], out: &mut Encoder) {
        match *self {
            Self::Null => {}
            Self::Change => out.bool(false),
            Self::GetPort { program, version, protocol } => {
                let protocol = Protocol::from_number(protocol);
                let port = protocol.and_then(|protocol| port_of_any(offers, program, version, protocol));
                out.u32(u32::from(port.unwrap_or(0)));
            }
            Self::Dump => {
                for offer in offers {
                    out.bool(true);
                    for word in [offer.program, offer.version, offer.protocol.number(), u32::from(offer.port)] {
                        out.u32(word);
                    }
                }
                out.bool(false);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::offers;
    use super::*;

    fn words(words: &[u32]) -> Bytes {
        words.iter().flat_map(|word| word.to_be_bytes()).collect()
    }

    fn answer(procedure: u32, arguments: &[u32]) -> Option<Bytes> {
        let request = Request::decode(procedure, &mut Decoder::new(words(arguments))).ok()??;
        let mut out = Encoder::new();
        request.answer(&offers(2049), &mut out);
        Some(out.to_bytes())
    }

    #[test]
    fn ports_are_told_and_no_others_are_taken() {
        assert_eq!(answer(3, &[100_021, 4, 17, 0]), Some(words(&[2049])));
        assert_eq!(answer(3, &[100_021, 4, 6, 0]), Some(words(&[2049])));
        assert_eq!(answer(3, &[100_021, 0, 6, 0]), Some(words(&[2049])), "the program says which versions it has");
        for nowhere in [[100_003, 3, 17, 0], [7, 4, 6, 0], [1, 1, 6, 0], [100_021, 4, 132, 0]] {
            assert_eq!(answer(3, &nowhere), Some(words(&[0])));
        }
        assert_eq!(answer(1, &[100_021, 4, 17, 5]), Some(words(&[0])));
        assert_eq!(answer(2, &[100_021, 4, 17, 5]), Some(words(&[0])));
        assert_eq!(answer(0, &[]), Some(Bytes::new()));
        let all = answer(4, &[]).unwrap();
        assert_eq!(all.len(), offers(2049).len() * 20 + 4);
        assert_eq!(all[..20], words(&[1, 100_000, 2, 6, 111]));
    }

    #[test]
    fn nothing_is_called_for_anybody_and_torn_requests_are_none() {
        assert_eq!(answer(5, &[100_003, 3, 0, 0]), None);
        assert_eq!(answer(3, &[100_021, 4, 17]), None);
        assert_eq!(answer(3, &[100_021, 4, 17, 0, 0]), None);
    }
}
