//! Who calls: the flavors of credentials that are taken (RFC 5531 §8.2, appendix A).

use bytes::Bytes;

use crate::xdr::{Decoder, Encoder, XdrError};

/// The longest body of a credential or verifier (RFC 5531 §8.2).
const BODY_BYTES_MAX: usize = 400;
/// The longest machine name of AUTH_SYS.
const MACHINE_NAME_BYTES_MAX: usize = 255;
/// The most groups beside the first that AUTH_SYS carries.
const GROUPS_MAX: usize = 16;

const FLAVOR_NONE: u32 = 0;
const FLAVOR_SYS: u32 = 1;

/// What a caller says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// Nothing.
    None,
    /// Numbers of Unix; nobody vouches for them but the network.
    Sys(SysCredential),
    /// A flavor that is not taken.
    Other(u32),
}

/// AUTH_SYS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SysCredential {
    /// The machine, by its own name.
    pub machine: Bytes,
    /// User.
    pub user: u32,
    /// Group.
    pub group: u32,
    /// Further groups.
    pub groups: Vec<u32>,
}

impl Credential {
    /// From a call. Errors: it is longer than a credential can be, or no AUTH_SYS though it says so.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        let flavor = decoder.u32()?;
        let body = decoder.opaque(BODY_BYTES_MAX)?;
        match flavor {
            FLAVOR_NONE => Ok(Self::None),
            FLAVOR_SYS => SysCredential::decode(&mut Decoder::new(body)).map(Self::Sys),
            other => Ok(Self::Other(other)),
        }
    }

    /// As part of a call.
    pub fn encode(&self, encoder: &mut Encoder) {
        match self {
            Self::None => {
                encoder.u32(FLAVOR_NONE);
                encoder.opaque(&[]);
            }
            Self::Sys(sys) => {
                let mut body = Encoder::new();
                sys.encode(&mut body);
                encoder.u32(FLAVOR_SYS);
                encoder.opaque(&body.to_bytes());
            }
            Self::Other(flavor) => {
                encoder.u32(*flavor);
                encoder.opaque(&[]);
            }
        }
    }
}

impl SysCredential {
    /// Its body: an opaque in a call, and written out as a parameter of callbacks (RFC 8881 §18.33).
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        let _stamp = decoder.u32()?;
        let machine = decoder.opaque(MACHINE_NAME_BYTES_MAX)?;
        let (user, group) = (decoder.u32()?, decoder.u32()?);
        let groups = decoder.array(GROUPS_MAX, Decoder::u32)?;
        Ok(Self { machine, user, group, groups })
    }

    /// The same.
    pub fn encode(&self, encoder: &mut Encoder) {
        encoder.u32(0);
        encoder.opaque(&self.machine);
        encoder.u32(self.user);
        encoder.u32(self.group);
        encoder.array(&self.groups, |encoder, group| encoder.u32(*group));
    }
}

/// Passes a verifier by: no flavor that is taken has one.
pub fn skip_verifier(decoder: &mut Decoder) -> Result<(), XdrError> {
    decoder.u32()?;
    decoder.opaque(BODY_BYTES_MAX)?;
    Ok(())
}

/// The verifier of AUTH_NONE.
pub fn put_no_verifier(encoder: &mut Encoder) {
    encoder.u32(FLAVOR_NONE);
    encoder.u32(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_comes_back() {
        let sys = SysCredential { machine: Bytes::from_static(b"box"), user: 1000, group: 100, groups: vec![4, 27] };
        for credential in [Credential::None, Credential::Sys(sys), Credential::Other(6)] {
            let mut encoder = Encoder::new();
            credential.encode(&mut encoder);
            let mut decoder = Decoder::new(encoder.to_bytes());
            assert_eq!(Credential::decode(&mut decoder), Ok(credential));
            assert_eq!(decoder.finish(), Ok(()));
        }
    }

    #[test]
    fn more_groups_than_there_can_be_are_refused() {
        let sys = SysCredential { groups: vec![1; 17], ..SysCredential::default() };
        let mut encoder = Encoder::new();
        Credential::Sys(sys).encode(&mut encoder);
        let decoded = Credential::decode(&mut Decoder::new(encoder.to_bytes()));
        assert_eq!(decoded, Err(XdrError::TooLong { length: 17, max: 16 }));
    }
}
