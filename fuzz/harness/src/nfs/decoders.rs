//! What reads bytes of strangers and does nothing else: each takes an input whole, without a service behind it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::{Bytes, BytesMut};
use filesystem::state_ring::{Record, RecordId};
use gateway_nfs::client::callback::Callbacks;
use gateway_nfs::client::result::{Outcome, Reply};
use gateway_nfs::ids::{ClientId, FileId, Moment, SessionId, Stateid};
use gateway_nfs::port_mapper::lookup::Lookup;
use gateway_nfs::port_mapper::{Asked, Protocol, offers, rpcbind, version2};
use gateway_nfs::rpc::call::{Call, is_reply};
use gateway_nfs::rpc::record::RecordReader;
use gateway_nfs::rpc::reply;
use gateway_nfs::service::{Endpoints, REQUEST_BYTES_MAX};
use gateway_nfs::state::back_channel::{CallbackSlot, CallbackTurn};
use gateway_nfs::state::foundation::Foundation;
use gateway_nfs::state::record::{CONNECTION, FOUNDATION, Payload};
use gateway_nfs::state::service::ServiceState;
use gateway_nfs::state::{client, counters, hosts, session, slot};
use gateway_nfs::v4::callback::{self, Operation};
use gateway_nfs::v4::compound::{Compound, Step};
use gateway_nfs::xdr::{Decoder, Encoder};
use gateway_nfs::{mount, nlm, nsm, v3};

use super::records;
use crate::Reached;

/// Slots of the back channel that the client answers on.
const CALLBACK_SLOTS: u32 = 4;

/// What was asked of the decoder succeeded, or it was refused.
fn judged<T, E>(reached: &mut Reached, result: Result<T, E>) -> Option<T> {
    match result {
        Ok(value) => {
            reached.opened = true;
            reached.done += 1;
            Some(value)
        }
        Err(_) => {
            reached.broken += 1;
            None
        }
    }
}

fn first(bytes: &[u8]) -> (u8, Bytes) {
    match bytes.split_first() {
        Some((first, rest)) => (*first, Bytes::copy_from_slice(rest)),
        None => (0, Bytes::new()),
    }
}

/// A stream in pieces, whose records are calls or replies.
pub(super) fn rpc(bytes: &[u8], to: &mut Reached) {
    let (piece, stream) = first(bytes);
    let mut reader = RecordReader::new(REQUEST_BYTES_MAX);
    let mut received = BytesMut::new();
    for bytes in stream.chunks(usize::from(piece).max(1)) {
        received.extend_from_slice(bytes);
        loop {
            let record = match reader.next(&mut received) {
                Ok(Some(record)) => record,
                Ok(None) => break,
                Err(_) => return,
            };
            match is_reply(&record) {
                true => drop(judged(to, reply::decode(&mut Decoder::new(record)))),
                false => drop(judged(to, Call::decode(&mut Decoder::new(record)))),
            }
        }
    }
}

/// The arguments of COMPOUND.
pub(super) fn compound(bytes: &[u8], to: &mut Reached) {
    let mut decoder = Decoder::new(Bytes::copy_from_slice(bytes));
    let Some(compound) = judged(to, Compound::decode(&mut decoder)) else { return };
    assert!(compound.body_at <= bytes.len(), "the body begins behind the message");
    let done = compound.steps.iter().filter(|step| matches!(step, Step::Do(_))).count();
    let is_sound = compound.steps.iter().rev().skip(1).all(|step| matches!(step, Step::Do(_)));
    assert!(is_sound, "operations behind one that cannot be read");
    to.done += done as u32;
}

/// A procedure of NFSv3 by its number.
pub(super) fn v3(bytes: &[u8], to: &mut Reached) {
    let (procedure, arguments) = first(bytes);
    let decoded = v3::procedure::Procedure::decode(procedure.into(), &mut Decoder::new(arguments));
    if let Some(procedure) = judged(to, decoded) {
        procedure.put_bare_failure(&mut Encoder::new());
    }
}

/// A procedure of MOUNT by its number, and the path that it names.
pub(super) fn mount(bytes: &[u8], to: &mut Reached) {
    let (procedure, arguments) = first(bytes);
    let decoded = mount::procedure::Procedure::decode(procedure.into(), &mut Decoder::new(arguments.clone()));
    judged(to, decoded);
    if let Ok(path) = mount::path::Path::decode(&mut Decoder::new(arguments)) {
        judged(to, path.parts());
    }
}

/// A procedure of the lock manager by its number, or the answer of a host.
pub(super) fn nlm(bytes: &[u8], to: &mut Reached) {
    let (procedure, arguments) = first(bytes);
    let mut decoder = Decoder::new(arguments);
    if procedure == u8::MAX {
        judged(to, nlm::results::is_taken(&mut decoder));
        return;
    }
    judged(to, nlm::arguments::Arguments::decode(procedure.into(), &mut decoder));
}

/// A procedure of the status monitor by its number.
pub(super) fn nsm(bytes: &[u8], to: &mut Reached) {
    let (procedure, arguments) = first(bytes);
    if let Some(Some(request)) = judged(to, nsm::Request::decode(procedure.into(), &mut Decoder::new(arguments))) {
        request.encode_result(1, &mut Encoder::new());
    }
}

/// A version and procedure of the port mapper, with its answer; or what a host's port mapper answers us.
pub(super) fn port_mapper(bytes: &[u8], to: &mut Reached) {
    let (version, rest) = first(bytes);
    let (procedure, arguments) = first(&rest);
    let mut decoder = Decoder::new(arguments);
    let v4 = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let (offers, mut out) = (offers(2049), Encoder::new());
    let asked = Asked { local: v4, protocol: Protocol::Tcp, seconds: 7 };
    match version % 5 {
        2 => {
            if let Some(Some(request)) = judged(to, version2::Request::decode(procedure.into(), &mut decoder)) {
                request.answer(&offers, &mut out);
            }
        }
        version @ 3..=4 => {
            let decoded = rpcbind::Request::decode(version.into(), procedure.into(), &mut decoder);
            if let Some(Some(request)) = judged(to, decoded) {
                request.answer(&offers, &asked, &mut out);
            }
        }
        version => {
            let host = if version == 0 { v4 } else { Ipv6Addr::LOCALHOST.into() };
            let lookup = Lookup { host, program: 100_021, version: 4, protocol: Protocol::Udp };
            judged(to, lookup.port(&mut decoder));
        }
    }
}

/// The callback that the seeds answer.
pub(super) const CALLBACK_SESSION: [u8; 16] = [3; 16];
pub(super) const CALLBACK_TURN: CallbackTurn = CallbackTurn { slot: 1, sequence: 7, is_probe: false };

/// What a client answers to a callback of some kind.
pub(super) fn callback(bytes: &[u8], to: &mut Reached) {
    let (kind, message) = first(bytes);
    let file = FileId { inode: filesystem::InodeNumber(12), generation: 3 };
    let operation = match kind % 5 {
        0 => {
            judged(to, callback::decode_null(message));
            return;
        }
        1 => None,
        2 => Some(Operation::Recall(Stateid::CURRENT, file)),
        3 => Some(Operation::RecallAny(3)),
        _ => Some(Operation::NotifyLock(file, ClientId(3), Bytes::from_static(b"owner"))),
    };
    let session = SessionId::from_bytes(CALLBACK_SESSION);
    judged(to, callback::decode(message, session, CALLBACK_TURN, operation.as_ref()));
}

/// A payload of one kind. What can be read is written as it was read.
pub(super) fn record(bytes: &[u8], to: &mut Reached) {
    fn whole<P: Payload>(payload: &[u8], to: &mut Reached) {
        let Some(value) = judged(to, P::from_payload(payload)) else { return };
        let again = value.to_payload();
        let Ok(back) = P::from_payload(&again) else { panic!("what was written cannot be read") };
        assert_eq!(back.to_payload(), again, "what is read is written in another way");
    }
    let (kind, payload) = first(bytes);
    match kind % 8 {
        0 => whole::<counters::Service>(&payload, to),
        1 => whole::<client::Client>(&payload, to),
        2 => whole::<session::Session>(&payload, to),
        3 => whole::<slot::SlotRecord>(&payload, to),
        4 => whole::<CallbackSlot>(&payload, to),
        5 => whole::<Foundation>(&payload, to),
        6 => whole::<Endpoints>(&payload, to),
        _ => whole::<hosts::Grant>(&payload, to),
    }
}

/// All records of a service. What can be restored can be worked with, and what that records can be restored.
pub(super) fn restore(bytes: &[u8], to: &mut Reached) {
    let mut records = records::unpack(bytes);
    // They are read by others.
    records.retain(|record| ![FOUNDATION, CONNECTION].contains(&record.id.kind));
    let now = Moment(1_000);
    let Some(mut state) = judged(to, ServiceState::restore(&records, now)) else {
        ServiceState::lost(&records, (9, 9), None, now);
        return;
    };
    state.clients.owner_names();
    state.files.open_files();
    let mut left: std::collections::BTreeMap<RecordId, Vec<u8>> =
        records.into_iter().map(|record| (record.id, record.payload)).collect();
    let expired = state.clients.expired(Moment(u64::MAX / 2));
    for client in expired.into_iter().take(2) {
        state.drop_client(client);
        state.records(|id, payload| match payload {
            Some(payload) => drop(left.insert(id, payload)),
            None => drop(left.remove(&id)),
        });
        state.commit();
    }
    let left: Vec<Record> = left.into_iter().map(|(id, payload)| Record { id, sequence: 0, payload }).collect();
    if let Err(why) = ServiceState::restore(&left, now) {
        panic!("a client was dropped, and what is left cannot be restored: {why}");
    }
}

/// What a server answers our client: the operations asked for, an empty one behind them, and the reply. Or what it calls.
pub(super) fn client(bytes: &[u8], to: &mut Reached) {
    let (count, rest) = first(bytes);
    if count == u8::MAX {
        let session = SessionId::from_bytes(CALLBACK_SESSION);
        let (mut callbacks, mut notices) = (Callbacks::new(CALLBACK_SLOTS), Vec::new());
        if callbacks.answer(Some(session), rest.clone(), &mut notices).is_some() {
            to.opened = true;
            to.done += 1;
        }
        callbacks.answer(Some(session), rest, &mut notices);
        return;
    }
    let count = usize::from(count).min(rest.len());
    let asked: Vec<u32> = rest.iter().take(count).map(|number| u32::from(*number)).collect();
    let mut decoder = Decoder::new(rest.slice(count..));
    let Some(reply) = judged(to, Reply::decode(&mut decoder, &asked)) else { return };
    for outcome in reply.outcomes {
        match outcome {
            Outcome::Attributes(attributes) => drop(judged(to, attributes.read())),
            Outcome::Entries(entries) => {
                entries.entries.iter().for_each(|entry| drop(judged(to, entry.attributes.read())));
            }
            _ => {}
        }
    }
}
