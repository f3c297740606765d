//! What the larger operations of a client's requests are told (RFC 8881 §18), and how that goes over the wire.

use bytes::Bytes;

use super::attributes::AttributesToSet;
use super::put_stateid;
use crate::ids::{SessionId, Stateid};
use crate::rpc::auth::SysCredential;
use crate::xdr::Encoder;

/// How durable data is to be (`stable_how4`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stable {
    /// Not yet.
    Unstable = 0,
    /// The data.
    Data = 1,
    /// Data and attributes.
    File = 2,
}

/// What to do if the file is not there (`openflag4`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Creation {
    /// Nothing.
    No,
    /// It is made, or else changed so.
    Unchecked(AttributesToSet),
    /// It is made, and must not be there.
    Guarded(AttributesToSet),
    /// It is made, and must not be there unless with this verifier.
    Exclusive([u8; 8]),
    /// The same, with attributes.
    ExclusiveWith([u8; 8], AttributesToSet),
}

/// What is opened (`open_claim4`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// A name in the current directory.
    Null(Bytes),
    /// The current file as it was open before; the kind of delegation that it had (`open_delegation_type4`).
    Previous(u32),
    /// A name, by a delegation that is being given back.
    DelegateCurrent(Stateid, Bytes),
    /// A name, by a delegation from before.
    DelegatePrevious(Bytes),
    /// The current file.
    File,
    /// The current file, by a delegation that is being given back.
    DelegateCurrentFile(Stateid),
    /// The current file, by a delegation from before.
    DelegatePreviousFile,
}

/// OPEN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// `OPEN4_SHARE_ACCESS_*`.
    pub access: u32,
    /// `OPEN4_SHARE_DENY_*`.
    pub deny: u32,
    /// Whose open.
    pub owner: Bytes,
    /// If it is not there.
    pub creation: Creation,
    /// What.
    pub claim: Claim,
}

/// A kind of file that CREATE makes (`createtype4`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewKind {
    /// A directory.
    Directory,
    /// A block device, with its major and minor number.
    BlockDevice(u32, u32),
    /// A character device.
    CharacterDevice(u32, u32),
    /// A symbolic link to this target.
    Symlink(Bytes),
    /// A socket.
    Socket,
    /// A pipe.
    Fifo,
}

/// A range of bytes to lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockRange {
    /// For writing.
    pub exclusive: bool,
    /// First byte.
    pub offset: u64,
    /// Bytes; all ones for all that follow.
    pub length: u64,
}

/// Whose lock it will be (`locker4`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Locker {
    /// An owner that has no lock on the file yet: by this open.
    New(Stateid, Bytes),
    /// One that has.
    Known(Stateid),
}

/// What one channel of a session can carry (`channel_attrs4`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Channel {
    /// Bytes of a request.
    pub request_bytes_max: u32,
    /// Bytes of a reply.
    pub reply_bytes_max: u32,
    /// Bytes of a reply that is kept.
    pub cached_reply_bytes_max: u32,
    /// Operations of a compound.
    pub operations_max: u32,
    /// Slots.
    pub requests_max: u32,
}

impl Channel {
    pub(super) fn encode(&self, out: &mut Encoder) {
        for word in [
            0,
            self.request_bytes_max,
            self.reply_bytes_max,
            self.cached_reply_bytes_max,
            self.operations_max,
            self.requests_max,
            0,
        ] {
            out.u32(word);
        }
    }
}

pub(super) fn put_sequence(
    out: &mut Encoder,
    session: SessionId,
    sequence: u32,
    (slot, highest_slot): (u32, u32),
    cached: bool,
) {
    out.fixed(&session.to_bytes());
    for word in [sequence, slot, highest_slot] {
        out.u32(word);
    }
    out.bool(cached);
}

/// `cb_program` and `callback_sec_parms4`.
pub(super) fn put_callbacks(out: &mut Encoder, (program, credential): (u32, &SysCredential)) {
    out.u32(program);
    // One offer: AUTH_SYS.
    out.u32(1);
    out.u32(1);
    credential.encode(out);
}

pub(super) fn put_open(out: &mut Encoder, open: &Open) {
    out.u32(0);
    out.u32(open.access);
    out.u32(open.deny);
    put_owner(out, &open.owner);
    match &open.creation {
        Creation::No => out.u32(0),
        Creation::Unchecked(attributes) => {
            out.u64(1 << 32);
            attributes.to_raw().encode(out);
        }
        Creation::Guarded(attributes) => {
            out.u64(1 << 32 | 1);
            attributes.to_raw().encode(out);
        }
        Creation::Exclusive(verifier) => {
            out.u64(1 << 32 | 2);
            out.fixed(verifier);
        }
        Creation::ExclusiveWith(verifier, attributes) => {
            out.u64(1 << 32 | 3);
            out.fixed(verifier);
            attributes.to_raw().encode(out);
        }
    }
    put_claim(out, &open.claim);
}

pub(super) fn put_claim(out: &mut Encoder, claim: &Claim) {
    match claim {
        Claim::Null(name) => {
            out.u32(0);
            out.opaque(name);
        }
        Claim::Previous(delegation) => {
            out.u32(1);
            out.u32(*delegation);
        }
        Claim::DelegateCurrent(stateid, name) => {
            out.u32(2);
            put_stateid(out, *stateid);
            out.opaque(name);
        }
        Claim::DelegatePrevious(name) => {
            out.u32(3);
            out.opaque(name);
        }
        Claim::File => out.u32(4),
        Claim::DelegateCurrentFile(stateid) => {
            out.u32(5);
            put_stateid(out, *stateid);
        }
        Claim::DelegatePreviousFile => out.u32(6),
    }
}

/// `state_owner4`: the server takes the client from the session (RFC 8881 §18.16.3).
pub(super) fn put_owner(out: &mut Encoder, owner: &[u8]) {
    out.u64(0);
    out.opaque(owner);
}

/// `nfs_lock_type4`.
pub(super) fn lock_type(exclusive: bool, waits: bool) -> u32 {
    1 + u32::from(exclusive) + 2 * u32::from(waits)
}

pub(super) fn put_range(out: &mut Encoder, stateid: Stateid, offset: u64, count: u32) {
    put_stateid(out, stateid);
    out.u64(offset);
    out.u32(count);
}

pub(super) fn put_long_range(out: &mut Encoder, stateid: Stateid, offset: u64, length: u64) {
    put_stateid(out, stateid);
    out.u64(offset);
    out.u64(length);
}
