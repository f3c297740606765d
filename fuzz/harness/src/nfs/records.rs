//! Records of the state ring as an input: kind, key, length and payload of each, one behind the other. What is cut off counts as
//! far as it is there.

use filesystem::state_ring::{Record, RecordId};

/// Kind, key, length.
const HEAD_BYTES: usize = 2 + 16 + 2;

/// As an input.
pub(super) fn pack(records: &[Record]) -> Vec<u8> {
    let mut out = Vec::new();
    for record in records {
        out.extend(record.id.kind.to_be_bytes());
        out.extend(record.id.key.to_be_bytes());
        out.extend((record.payload.len() as u16).to_be_bytes());
        out.extend(&record.payload);
    }
    out
}

/// From an input. A ring has one record of each name: the last.
pub(super) fn unpack(mut bytes: &[u8]) -> Vec<Record> {
    let mut records: Vec<Record> = Vec::new();
    while let Some((head, rest)) = bytes.split_at_checked(HEAD_BYTES) {
        let number =
            |from: usize, to: usize| head[from..to].iter().fold(0u128, |all, byte| all << 8 | u128::from(*byte));
        let (payload, rest) = rest.split_at((number(18, 20) as usize).min(rest.len()));
        let id = RecordId { kind: number(0, 2) as u16, key: number(2, 18) };
        records.retain(|record| record.id != id);
        records.push(Record { id, sequence: records.len() as u64, payload: payload.to_vec() });
        bytes = rest;
    }
    records
}
