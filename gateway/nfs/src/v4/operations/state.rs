//! CLOSE, OPEN_DOWNGRADE, DELEGRETURN, TEST_STATEID, FREE_STATEID (RFC 8881 §18.2, §18.18, §18.6, §18.48, §18.38): what goes over
//! the wire.

use crate::ids::Stateid;
use crate::v4::stateid;
use crate::xdr::{Decoder, XdrError};

/// Stateids that one TEST_STATEID may ask for.
const STATEIDS_MAX: usize = 4096;

/// CLOSE, DELEGRETURN, FREE_STATEID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateidArguments(pub Stateid);

/// OPEN_DOWNGRADE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DowngradeArguments {
    /// Of which open.
    pub stateid: Stateid,
    /// `OPEN4_SHARE_ACCESS_*`.
    pub access: u32,
    /// `OPEN4_SHARE_DENY_*`.
    pub deny: u32,
}

/// TEST_STATEID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestArguments(pub Vec<Stateid>);

impl StateidArguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        stateid::decode(decoder).map(Self)
    }

    /// From the wire, behind the sequence that CLOSE has from times before sessions.
    pub fn decode_close(decoder: &mut Decoder) -> Result<Self, XdrError> {
        decoder.u32()?;
        Self::decode(decoder)
    }
}

impl DowngradeArguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        let stateid = stateid::decode(decoder)?;
        let _sequence = decoder.u32()?;
        Ok(Self { stateid, access: decoder.u32()?, deny: decoder.u32()? })
    }
}

impl TestArguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        decoder.array(STATEIDS_MAX, stateid::decode).map(Self)
    }
}
