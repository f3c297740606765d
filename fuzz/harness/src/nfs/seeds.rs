//! What inputs begin with: what a sound client says, what it is answered, and what a service records meanwhile.

use bytes::Bytes;
use gateway_nfs::rpc::call::Call;
use gateway_nfs::rpc::record;
use gateway_nfs::v4::compound::Compound;
use gateway_nfs::xdr::{Decoder, Encoder};

use super::decoders::{CALLBACK_SESSION, CALLBACK_TURN};
use super::messages::Spoken;
use super::world::{Prepared, prepared};
use super::{NfsTarget, records, service};

const NFS: u32 = 100_003;
const MOUNT: u32 = 100_005;
const NLM: u32 = 100_021;
const NSM: u32 = 100_024;
/// Of a reply that is accepted.
const REPLY_HEAD_BYTES: usize = 24;
/// Messages of one input of the service.
const MESSAGES_TOGETHER: usize = 6;
/// Kinds of records that are read one by one, in the order of [`super::decoders::record`].
const KINDS: [u16; 8] = [1, 2, 3, 4, 10, 20, 21, 11];

/// Those of one target.
pub(super) fn of(target: NfsTarget) -> Vec<Vec<u8>> {
    let prepared = prepared();
    match target {
        NfsTarget::Rpc => streams(prepared),
        NfsTarget::Compound => compounds(prepared).map(|(arguments, _)| arguments.to_vec()).collect(),
        NfsTarget::V3 => of_program(prepared, NFS),
        NfsTarget::Mount => of_program(prepared, MOUNT),
        NfsTarget::Nlm => [of_program(prepared, NLM), vec![words(&[255], &[1, 0])]].concat(),
        NfsTarget::Nsm => of_program(prepared, NSM),
        NfsTarget::PortMapper => port_mapper(),
        NfsTarget::Callback => callbacks(),
        NfsTarget::Record => single_records(prepared),
        NfsTarget::Restore => sets_of_records(prepared),
        NfsTarget::Client => replies(prepared),
        NfsTarget::Service => conversations(prepared),
    }
}

/// Each message of the client in a record, and all in one stream; replies too.
fn streams(prepared: &Prepared) -> Vec<Vec<u8>> {
    let framed = |piece: u8, messages: &[&[u8]]| {
        let mut stream = vec![piece];
        for message in messages {
            stream.extend(record::mark(message.len()));
            stream.extend(*message);
        }
        stream
    };
    let mut seeds = Vec::new();
    for (message, reply) in &prepared.messages.compounds {
        seeds.push(framed(200, &[message, reply]));
    }
    for spoken in &prepared.messages.others {
        seeds.push(framed(7, &[&spoken.message()]));
    }
    seeds
}

/// The arguments of compounds, and the replies to them.
fn compounds(prepared: &Prepared) -> impl Iterator<Item = (Bytes, &Bytes)> {
    prepared.messages.compounds.iter().filter_map(|(message, reply)| {
        let mut decoder = Decoder::new(message.clone());
        Call::decode(&mut decoder).ok()?;
        Some((message.slice(decoder.position()..), reply))
    })
}

fn of_program(prepared: &Prepared, program: u32) -> Vec<Vec<u8>> {
    let with_number = |spoken: &Spoken| [&[spoken.procedure as u8], &spoken.arguments[..]].concat();
    prepared.messages.others.iter().filter(|spoken| spoken.program == program).map(with_number).collect()
}

fn words(head: &[u8], words: &[u32]) -> Vec<u8> {
    head.iter().copied().chain(words.iter().flat_map(|word| word.to_be_bytes())).collect()
}

fn port_mapper() -> Vec<Vec<u8>> {
    let mut seeds = vec![words(&[0], &[2049]), words(&[2, 4], &[]), words(&[3, 4], &[]), words(&[4, 6], &[])];
    seeds.push(words(&[2, 3], &[100_003, 3, 6, 0]));
    for (version, procedure) in [(3, 3), (4, 9), (4, 11), (3, 1)] {
        let mut out = Encoder::new();
        out.u32(100_003);
        out.u32(4);
        out.opaque(b"tcp");
        out.opaque(b"127.0.0.1.8.1");
        out.opaque(b"owner");
        seeds.push([&[version, procedure], &out.to_bytes()[..]].concat());
    }
    let mut out = Encoder::new();
    out.opaque(b"fe80::1.8.1");
    seeds.push([&[1, 0], &out.to_bytes()[..]].concat());
    seeds
}

/// An answer to each kind of callback, and a refusal.
fn callbacks() -> Vec<Vec<u8>> {
    let answer = |kind: u8, operation: Option<u32>, status: u32| {
        let mut out = Encoder::new();
        [9, 1, 0, 0, 0, 0, status].iter().for_each(|word| out.u32(*word));
        out.opaque(b"tag");
        out.u32(1 + u32::from(operation.is_some()));
        out.u32(11);
        out.u32(0);
        out.fixed(&CALLBACK_SESSION);
        [CALLBACK_TURN.sequence, CALLBACK_TURN.slot, 3, 3].iter().for_each(|word| out.u32(*word));
        if let Some(operation) = operation {
            out.u32(operation);
            out.u32(status);
        }
        [&[kind], &out.to_bytes()[..]].concat()
    };
    let operations = [(1, None), (2, Some(4)), (3, Some(8)), (4, Some(13))];
    let mut seeds = vec![words(&[0], &[9, 1, 0, 0, 0, 0]), words(&[1], &[9, 1, 1, 0, 2, 2])];
    for (kind, operation) in operations {
        seeds.push(answer(kind, operation, 0));
        seeds.push(answer(kind, operation, 10_025));
    }
    seeds
}

fn single_records(prepared: &Prepared) -> Vec<Vec<u8>> {
    let kind_of = |kind: u16| KINDS.iter().position(|one| *one == kind);
    let mut seeds: Vec<Vec<u8>> = Vec::new();
    for record in &prepared.records {
        if let Some(kind) = kind_of(record.id.kind) {
            seeds.push([&[kind as u8], &record.payload[..]].concat());
        }
    }
    // Of what the client did not leave behind: a version and words.
    seeds.push(words(&[4], &[1, 7]));
    let connection = |at: u8| [&[at; 16][..], &[0, 0, 8, 1]].concat();
    seeds.push([&[6][..], &1u32.to_be_bytes(), &connection(0), &connection(9)].concat());
    seeds.push(words(&[7], &[1, 12, 3, 1, 4, 0x6162_6364, 7, 0, 5, 0, 9, 1, 0, 0, 0, 0]));
    seeds
}

/// All records, and all without one.
fn sets_of_records(prepared: &Prepared) -> Vec<Vec<u8>> {
    let all = &prepared.records;
    let without = |place: usize| [&all[..place], &all[place + 1..]].concat();
    (0..all.len()).map(|place| records::pack(&without(place))).chain([records::pack(all)]).collect()
}

/// The numbers of a request's operations, and what was answered; and a server's calls.
fn replies(prepared: &Prepared) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (arguments, reply) in compounds(prepared) {
        let Ok(compound) = Compound::decode(&mut Decoder::new(arguments)) else { continue };
        let numbers: Vec<u8> = compound.steps.iter().map(|step| step.number() as u8).collect();
        seeds.push([&[numbers.len() as u8], &numbers[..], &reply[REPLY_HEAD_BYTES..]].concat());
    }
    for (operation, rest) in [(4, &[1, 2, 3, 4, 0, 3, 0x6162_6300][..]), (8, &[3, 1, 1]), (10, &[2])] {
        let mut out = Encoder::new();
        [7, 0, 2, 0x4000_0000, 1, 1, 0, 0, 0, 0].iter().for_each(|word| out.u32(*word));
        out.opaque(b"");
        [2, 0, 2, 11].iter().for_each(|word| out.u32(*word));
        out.fixed(&CALLBACK_SESSION);
        [1, 0, 3, 0, 0, operation].iter().for_each(|word| out.u32(*word));
        rest.iter().for_each(|word| out.u32(*word));
        seeds.push([&[255], &out.to_bytes()[..]].concat());
    }
    seeds
}

/// Some messages each, over one connection or several.
fn conversations(prepared: &Prepared) -> Vec<Vec<u8>> {
    let compounds = prepared.messages.compounds.iter().map(|(message, _)| message.clone());
    let all: Vec<Bytes> = compounds.chain(prepared.messages.others.iter().map(Spoken::message)).collect();
    let mut seeds: Vec<Vec<u8>> = all.chunks(MESSAGES_TOGETHER).map(service::pack).collect();
    seeds.extend(all.iter().map(|message| service::pack(std::slice::from_ref(message))));
    seeds
}
