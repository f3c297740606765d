//! CLOSE, OPEN_DOWNGRADE, DELEGRETURN, TEST_STATEID, FREE_STATEID (RFC 8881 §18.2, §18.18, §18.6, §18.48, §18.38): what becomes
//! of states, and what there is of them.

use crate::ids::Stateid;
use crate::state::share::ShareMode;
use crate::v4::context::{Context, Halt};
use crate::v4::stateid;
use crate::v4::status::{self, Status};
use crate::xdr::{Decoder, Encoder, XdrError};

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

/// CLOSE: puts a stateid that stands for nothing.
pub fn close(context: &mut Context<'_, '_>, arguments: &StateidArguments, out: &mut Encoder) -> Result<(), Halt> {
    let (file, _) = context.regular_file()?;
    let stateid = context.stateid(arguments.0)?;
    let closed = context.state.files.close(context.request.client, file, &stateid)?;
    context.effects.changing = true;
    context.at.stateid = None;
    stateid::encode(out, closed);
    Ok(())
}

/// OPEN_DOWNGRADE: puts the stateid.
pub fn downgrade(context: &mut Context<'_, '_>, arguments: &DowngradeArguments, out: &mut Encoder) -> Result<(), Halt> {
    let (file, _) = context.regular_file()?;
    let stateid = context.stateid(arguments.stateid)?;
    // What the client wants of delegations does not matter here.
    let to = ShareMode::from_wire(arguments.access & 0xf, arguments.deny).ok_or(Status::Invalid)?;
    let stateid = context.state.files.downgrade(context.request.client, file, &stateid, to)?;
    context.effects.changing = true;
    context.at.stateid = Some(stateid);
    stateid::encode(out, stateid);
    Ok(())
}

/// DELEGRETURN.
pub fn return_delegation(context: &mut Context<'_, '_>, arguments: &StateidArguments) -> Result<(), Halt> {
    let (file, _) = context.file(Status::Invalid)?;
    let stateid = context.stateid(arguments.0)?;
    context.state.files.return_delegation(context.request.client, file, &stateid)?;
    context.effects.changing = true;
    Ok(())
}

/// TEST_STATEID: puts what would be answered to each.
pub fn test(context: &mut Context<'_, '_>, arguments: &TestArguments, out: &mut Encoder) -> Result<(), Halt> {
    let (files, client) = (&context.state.files, context.request.client);
    out.array(&arguments.0, |out, stateid| {
        out.u32(files.test_stateid(client, stateid).map_or_else(Status::code, |()| status::OK));
    });
    Ok(())
}

/// FREE_STATEID.
pub fn free(context: &mut Context<'_, '_>, arguments: &StateidArguments) -> Result<(), Halt> {
    context.state.files.free_stateid(context.request.client, &arguments.0)?;
    context.effects.changing = true;
    Ok(())
}
