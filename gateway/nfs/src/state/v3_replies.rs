//! What was answered to changing NFSv3 requests, which have no sessions: a retransmission gets the same answer, after a takeover
//! too. A request is known by the address it came from, its xid, its procedure and a checksum of its arguments.
//!
//! Of each address the last [`PER_ADDRESS_MAX`] are kept, of all addresses together the last [`REPLIES_MAX`], which bounds the
//! addresses too. A client can drive out only its own, but for the oldest of all. Records are numbered in the order of their
//! requests; the oldest is dropped by deleting its record.

use std::collections::BTreeSet;

use bytes::Bytes;
use filesystem::state_ring::RecordId;

use crate::state::record::{self, Payload, RestoreError};
use crate::state::table::Table;
use crate::xdr::{Decoder, Encoder, XdrError};

/// Replies of one address.
pub const PER_ADDRESS_MAX: u32 = 1_024;
/// Replies of all.
pub const REPLIES_MAX: usize = 32_768;
/// Bytes of a reply without RPC header; those of changing procedures have at most about 300.
pub const REPLY_BYTES_MAX: usize = 1_024;
/// Requests that are executed at once.
pub const IN_PROGRESS_MAX: usize = 4_096;

/// Bytes of an address: IPv6, or IPv4 mapped into it.
pub type Address = [u8; 16];

/// What tells a request from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct V3Request {
    /// Where it came from; not the port, since a client that reconnects takes another.
    pub address: Address,
    /// The number of the call.
    pub xid: u32,
    /// What it calls.
    pub procedure: u32,
    /// Of its arguments and its user ([`super::slot::digest`]).
    pub checksum: u64,
}

/// What a request is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum V3Outcome {
    /// To be executed, and ended by [`V3Replies::finish`].
    Execute,
    /// It was answered so.
    Replay(Bytes),
    /// It is being executed: to be asked again when that has ended.
    Park,
    /// Too many are being executed: to be asked again when one has ended.
    Full,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct V3Reply {
    request: V3Request,
    reply: Bytes,
}

/// The replies of a service.
#[derive(Debug, Default)]
pub struct V3Replies {
    /// By when they came: these are the records.
    replies: Table<u64, V3Reply>,
    by_request: Table<V3Request, u64>,
    by_address: Table<(Address, u64), ()>,
    counts: Table<Address, u32>,
    /// In memory only.
    in_progress: BTreeSet<V3Request>,
}

impl V3Replies {
    /// Decides about a changing request.
    pub fn begin(&mut self, request: V3Request) -> V3Outcome {
        let known = self.by_request.get(&request).and_then(|number| self.replies.get(number));
        if self.in_progress.contains(&request) {
            return V3Outcome::Park;
        }
        if let Some(known) = known {
            return V3Outcome::Replay(known.reply.clone());
        }
        if self.in_progress.len() >= IN_PROGRESS_MAX {
            return V3Outcome::Full;
        }
        self.in_progress.insert(request);
        V3Outcome::Execute
    }

    /// Keeps the reply of a request with what it changed. False, and nothing is kept, if it has more than [`REPLY_BYTES_MAX`].
    pub fn finish_changing(&mut self, request: V3Request, reply: Bytes) -> bool {
        if reply.len() > REPLY_BYTES_MAX {
            return false;
        }
        // A changing operation may be run again under the same request only if it was taken back.
        if let Some(former) = self.by_request.get(&request).copied() {
            self.drop_reply(former);
        }
        let number = self.replies.iter().next_back().map_or(0, |(newest, _)| newest.saturating_add(1));
        self.add(number, V3Reply { request, reply });
        if self.counts.get(&request.address).is_some_and(|count| *count > PER_ADDRESS_MAX) {
            let all = (request.address, 0)..=(request.address, u64::MAX);
            let oldest = self.by_address.range(all).next().map(|((_, number), ())| *number);
            oldest.into_iter().for_each(|number| self.drop_reply(number));
        }
        if self.replies.len() > REPLIES_MAX {
            let oldest = self.replies.iter().next().map(|(number, _)| *number);
            oldest.into_iter().for_each(|number| self.drop_reply(number));
        }
        true
    }

    /// The request is answered: what it changed is durable, or it changed nothing.
    pub fn finish(&mut self, request: V3Request) {
        self.in_progress.remove(&request);
    }

    /// Makes room in the ring: the oldest replies, at most `max` of them, are not kept any more. Gives how many it were.
    pub fn forget_oldest(&mut self, max: usize) -> usize {
        let oldest = self.replies.iter().filter(|(_, reply)| !self.in_progress.contains(&reply.request));
        let oldest: Vec<_> = oldest.map(|(number, _)| *number).take(max).collect();
        oldest.iter().for_each(|number| self.drop_reply(*number));
        oldest.len()
    }

    /// Number of replies.
    pub fn len(&self) -> usize {
        self.replies.len()
    }

    /// True without replies.
    pub fn is_empty(&self) -> bool {
        self.replies.is_empty()
    }

    fn add(&mut self, number: u64, reply: V3Reply) {
        let request = reply.request;
        self.replies.insert(number, reply);
        self.by_request.insert(request, number);
        self.by_address.insert((request.address, number), ());
        let count = self.counts.get(&request.address).copied().unwrap_or(0);
        self.counts.insert(request.address, count + 1);
    }

    fn drop_reply(&mut self, number: u64) {
        let Some(V3Reply { request, .. }) = self.replies.remove(&number) else { return };
        self.by_request.remove(&request);
        self.by_address.remove(&(request.address, number));
        match self.counts.get(&request.address).copied().unwrap_or(0) {
            0 | 1 => drop(self.counts.remove(&request.address)),
            count => drop(self.counts.insert(request.address, count - 1)),
        }
    }

    pub(super) fn records(&self, mut put: impl FnMut(RecordId, Option<Vec<u8>>)) {
        for (number, reply) in self.replies.changes() {
            put(record::numbered(record::V3_REPLY, *number), reply.map(Payload::to_payload));
        }
    }

    pub(super) fn is_changed(&self) -> bool {
        self.replies.is_changed()
    }

    pub(super) fn commit(&mut self) {
        self.replies.commit();
        self.by_request.commit();
        self.by_address.commit();
        self.counts.commit();
    }

    pub(super) fn take_back(&mut self) {
        self.replies.take_back();
        self.by_request.take_back();
        self.by_address.take_back();
        self.counts.take_back();
    }

    /// Takes a record. Errors: it cannot be read, or is one too many, or the same request is there already.
    pub(super) fn restore(&mut self, id: RecordId, payload: &[u8]) -> Result<(), RestoreError> {
        let number = record::number_of(id)?;
        let reply: V3Reply = record::read(id, payload)?;
        if self.replies.contains(&number) || self.by_request.contains(&reply.request) {
            return Err(RestoreError::contradiction(id, "the request was answered twice"));
        }
        let of_address = self.counts.get(&reply.request.address).copied().unwrap_or(0);
        if self.replies.len() >= REPLIES_MAX || of_address >= PER_ADDRESS_MAX {
            return Err(RestoreError::contradiction(id, "there are more than are kept"));
        }
        self.add(number, reply);
        Ok(())
    }
}

impl Payload for V3Reply {
    const VERSION: u32 = 1;

    fn encode(&self, into: &mut Encoder) {
        into.fixed(&self.request.address);
        into.u32(self.request.xid);
        into.u32(self.request.procedure);
        into.u64(self.request.checksum);
        into.opaque(&self.reply);
    }

    fn decode(from: &mut Decoder) -> Result<Self, XdrError> {
        let (address, xid, procedure) = (from.fixed()?, from.u32()?, from.u32()?);
        let request = V3Request { address, xid, procedure, checksum: from.u64()? };
        Ok(Self { request, reply: from.opaque(REPLY_BYTES_MAX)? })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn request(address: u8, xid: u32) -> V3Request {
        V3Request { address: [address; 16], xid, procedure: 8, checksum: 1 }
    }

    fn run(replies: &mut V3Replies, request: V3Request, ring: &mut BTreeMap<RecordId, Vec<u8>>) {
        assert_eq!(replies.begin(request), V3Outcome::Execute);
        assert!(replies.finish_changing(request, reply(request)));
        replies.records(|id, payload| match payload {
            Some(payload) => drop(ring.insert(id, payload)),
            None => drop(ring.remove(&id)),
        });
        replies.commit();
        replies.finish(request);
    }

    fn reply(request: V3Request) -> Bytes {
        Bytes::copy_from_slice(&request.xid.to_be_bytes())
    }

    fn restored(ring: &BTreeMap<RecordId, Vec<u8>>) -> V3Replies {
        let mut replies = V3Replies::default();
        for (id, payload) in ring {
            replies.restore(*id, payload).unwrap();
        }
        replies.commit();
        replies
    }

    #[test]
    fn a_retransmission_is_answered_the_same_before_and_after_a_takeover() {
        let (mut replies, mut ring) = (V3Replies::default(), BTreeMap::new());
        run(&mut replies, request(1, 5), &mut ring);
        for mut replies in [replies, restored(&ring)] {
            assert_eq!(replies.begin(request(1, 5)), V3Outcome::Replay(reply(request(1, 5))));
            for other in [
                request(2, 5),
                request(1, 6),
                V3Request { procedure: 9, ..request(1, 5) },
                V3Request { checksum: 2, ..request(1, 5) },
            ] {
                assert_eq!(replies.begin(other), V3Outcome::Execute, "{other:?}");
            }
        }
    }

    #[test]
    fn a_request_is_parked_until_it_is_durable_and_runs_again_if_it_was_taken_back() {
        let mut replies = V3Replies::default();
        assert_eq!(replies.begin(request(1, 5)), V3Outcome::Execute);
        assert_eq!(replies.begin(request(1, 5)), V3Outcome::Park);
        replies.finish_changing(request(1, 5), reply(request(1, 5)));
        assert_eq!(replies.begin(request(1, 5)), V3Outcome::Park, "not durable yet");
        replies.take_back();
        assert!(replies.is_empty() && !replies.is_changed());
        replies.finish(request(1, 5));
        assert_eq!(replies.begin(request(1, 5)), V3Outcome::Execute);
    }

    #[test]
    fn of_an_address_the_last_are_kept_and_a_client_drives_out_only_its_own() {
        let (mut replies, mut ring) = (V3Replies::default(), BTreeMap::new());
        run(&mut replies, request(2, 1), &mut ring);
        for xid in 0..PER_ADDRESS_MAX + 10 {
            run(&mut replies, request(1, xid), &mut ring);
        }
        assert_eq!(ring.len(), PER_ADDRESS_MAX as usize + 1);
        let mut replies = restored(&ring);
        assert_eq!(replies.begin(request(1, 9)), V3Outcome::Execute, "the oldest are gone");
        assert_eq!(replies.begin(request(1, 10)), V3Outcome::Replay(reply(request(1, 10))));
        assert_eq!(replies.begin(request(2, 1)), V3Outcome::Replay(reply(request(2, 1))));
    }

    #[test]
    fn of_all_addresses_the_last_are_kept() {
        let (mut replies, mut ring) = (V3Replies::default(), BTreeMap::new());
        for number in 0..REPLIES_MAX as u32 + 3 {
            let address = (u128::from(number)).to_be_bytes();
            run(&mut replies, V3Request { address, ..request(0, number) }, &mut ring);
        }
        assert_eq!((replies.len(), ring.len(), replies.counts.len()), (REPLIES_MAX, REPLIES_MAX, REPLIES_MAX));
        assert_eq!(restored(&ring).len(), REPLIES_MAX);
    }

    #[test]
    fn room_is_made_by_forgetting_the_oldest_that_are_not_under_way() {
        let (mut replies, mut ring) = (V3Replies::default(), BTreeMap::new());
        for xid in 0..10 {
            run(&mut replies, request(1, xid), &mut ring);
        }
        // One that has joined a transaction and is not durable yet.
        let late = request(2, 0);
        assert_eq!(replies.begin(late), V3Outcome::Execute);
        assert!(replies.finish_changing(late, reply(late)));
        replies.commit();
        assert_eq!(replies.forget_oldest(3), 3);
        assert_eq!(replies.begin(request(1, 2)), V3Outcome::Execute, "forgotten");
        assert_eq!(replies.begin(request(1, 3)), V3Outcome::Replay(reply(request(1, 3))));
        assert_eq!(replies.forget_oldest(100), 7);
        assert_eq!((replies.len(), replies.begin(late)), (1, V3Outcome::Park));
    }

    #[test]
    fn bounds_hold() {
        let mut replies = V3Replies::default();
        for xid in 0..IN_PROGRESS_MAX as u32 {
            assert_eq!(replies.begin(request(1, xid)), V3Outcome::Execute);
        }
        assert_eq!(replies.begin(request(1, u32::MAX)), V3Outcome::Full);
        assert!(!replies.finish_changing(request(1, 0), vec![0; REPLY_BYTES_MAX + 1].into()));
        let reply = V3Reply { request: request(1, 1), reply: vec![0; REPLY_BYTES_MAX].into() };
        assert!(reply.to_payload().len() <= record::PAYLOAD_BYTES_MAX);
    }
}
