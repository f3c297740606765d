//! A call: to which program, by whom, with which arguments (RFC 5531 §9).

use super::auth::{Credential, put_no_verifier, skip_verifier};
use super::{CALL, RPC_VERSION};
use crate::xdr::{Decoder, Encoder, XdrError};

/// The head of a call; its arguments follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Tells the reply to this call from others of the connection.
    pub xid: u32,
    /// Program number.
    pub program: u32,
    /// Version of the program.
    pub version: u32,
    /// Procedure.
    pub procedure: u32,
    /// Who calls.
    pub credential: Credential,
}

/// What a message is that is no call one could answer with a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoCall {
    /// Not even its number can be read, or it is a reply nobody asked for.
    Garbage,
    /// Another version of RPC: [`super::reply::rpc_mismatch`].
    Version {
        /// Its number.
        xid: u32,
    },
    /// The credential cannot be read: [`super::reply::bad_credential`].
    Credential {
        /// Its number.
        xid: u32,
    },
}

impl Call {
    /// Takes the head; the decoder is at the arguments afterwards.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, NoCall> {
        let garbage = |_: XdrError| NoCall::Garbage;
        let xid = decoder.u32().map_err(garbage)?;
        if decoder.u32().map_err(garbage)? != CALL {
            return Err(NoCall::Garbage);
        }
        if decoder.u32().map_err(garbage)? != RPC_VERSION {
            return Err(NoCall::Version { xid });
        }
        let program = decoder.u32().map_err(garbage)?;
        let version = decoder.u32().map_err(garbage)?;
        let procedure = decoder.u32().map_err(garbage)?;
        let bad = |_: XdrError| NoCall::Credential { xid };
        let credential = Credential::decode(decoder).map_err(bad)?;
        skip_verifier(decoder).map_err(bad)?;
        Ok(Self { xid, program, version, procedure, credential })
    }

    /// Puts the head, for arguments to follow.
    pub fn encode(&self, encoder: &mut Encoder) {
        for word in [self.xid, CALL, RPC_VERSION, self.program, self.version, self.procedure] {
            encoder.u32(word);
        }
        self.credential.encode(encoder);
        put_no_verifier(encoder);
    }
}

/// True for a message that is a reply, as far as one can tell from its head; those of the back channel come among the calls.
pub fn is_reply(message: &[u8]) -> bool {
    message.get(4..8) == Some(&super::REPLY.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn call() -> Call {
        Call { xid: 7, program: 100_003, version: 4, procedure: 1, credential: Credential::None }
    }

    fn encoded(call: &Call) -> Vec<u8> {
        let mut encoder = Encoder::new();
        call.encode(&mut encoder);
        encoder.to_bytes().to_vec()
    }

    #[test]
    fn a_call_comes_back() {
        let bytes = encoded(&call());
        assert!(!is_reply(&bytes));
        let mut decoder = Decoder::new(bytes.into());
        assert_eq!(Call::decode(&mut decoder), Ok(call()));
        assert_eq!(decoder.remaining(), 0);
    }

    #[test]
    fn what_is_no_call_is_told_apart() {
        let bytes = encoded(&call());
        let with = |at: usize, word: u32| {
            let mut bytes = bytes.clone();
            bytes[at..at + 4].copy_from_slice(&word.to_be_bytes());
            Call::decode(&mut Decoder::new(Bytes::from(bytes)))
        };
        assert_eq!(with(4, 1), Err(NoCall::Garbage));
        assert_eq!(with(8, 3), Err(NoCall::Version { xid: 7 }));
        assert_eq!(with(28, 1000), Err(NoCall::Credential { xid: 7 }), "a credential that is too long");
        assert_eq!(Call::decode(&mut Decoder::new(Bytes::from_static(&[0; 3]))), Err(NoCall::Garbage));
    }
}
