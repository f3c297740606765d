//! Compounds as a client makes them (RFC 8881 §18, RFC 7862 §15, RFC 8276 §8.4): operations are put one behind the other. The
//! session puts SEQUENCE before them. It does not look whether they make sense together: the server says that.

use bytes::Bytes;

use super::arguments::{
    Channel, LockRange, Locker, NewKind, Open, Stable, lock_type, put_callbacks, put_long_range, put_open, put_owner,
    put_range, put_sequence,
};
use super::attributes::{AttributesToSet, RawAttributes};
use super::number::operation as op;
use super::{Handle, put_stateid};
use crate::ids::{ClientId, SessionId, Stateid};
use crate::rpc::auth::SysCredential;
use crate::v4::bitmap::Bitmap;
use crate::xdr::Encoder;

/// Operations of one request, with the SEQUENCE before them.
pub const OPERATIONS_MAX: usize = 128;

/// A compound being made.
#[derive(Debug)]
pub struct Request {
    pub(super) minor: u32,
    /// Numbers of its operations, and whether each would change something if it were done once more.
    pub(super) operations: Vec<(u32, bool)>,
    pub(super) body: Encoder,
}

/// Operations that may have another effect, or another result, when they are done twice.
const CHANGING: &[u32] = &[
    op::CLOSE,
    op::CREATE,
    op::DELEGRETURN,
    op::LINK,
    op::LOCK,
    op::LOCKU,
    op::OPEN,
    op::OPEN_DOWNGRADE,
    op::REMOVE,
    op::RENAME,
    op::SETATTR,
    op::FREE_STATEID,
    op::SETXATTR,
    op::REMOVEXATTR,
    op::ALLOCATE,
    op::DEALLOCATE,
    op::COPY,
];

impl Request {
    /// Without operations.
    pub fn new(minor: u32) -> Self {
        Self { minor, operations: Vec::new(), body: Encoder::new() }
    }

    /// How many operations it has, without SEQUENCE.
    pub fn operations(&self) -> usize {
        self.operations.len()
    }

    /// True if one of them may change something: it cannot be sent as another request without doing it twice.
    pub fn is_changing(&self) -> bool {
        self.operations.iter().any(|(_, changing)| *changing)
    }

    fn put(mut self, number: u32, arguments: impl FnOnce(&mut Encoder)) -> Self {
        self.operations.push((number, CHANGING.contains(&number)));
        self.body.u32(number);
        arguments(&mut self.body);
        self
    }

    /// ACCESS: which of these bits are granted.
    pub fn access(self, bits: u32) -> Self {
        self.put(op::ACCESS, |out| out.u32(bits))
    }

    /// CLOSE.
    pub fn close(self, stateid: Stateid) -> Self {
        self.put(op::CLOSE, |out| {
            out.u32(0);
            put_stateid(out, stateid);
        })
    }

    /// COMMIT; no bytes stand for all from the offset on.
    pub fn commit(self, offset: u64, count: u32) -> Self {
        self.put(op::COMMIT, |out| {
            out.u64(offset);
            out.u32(count);
        })
    }

    /// CREATE.
    pub fn create(self, kind: &NewKind, name: &[u8], attributes: &AttributesToSet) -> Self {
        self.put(op::CREATE, |out| {
            match kind {
                NewKind::Directory => out.u32(2),
                NewKind::BlockDevice(major, minor) => [3, *major, *minor].into_iter().for_each(|word| out.u32(word)),
                NewKind::CharacterDevice(major, minor) => {
                    [4, *major, *minor].into_iter().for_each(|word| out.u32(word));
                }
                NewKind::Symlink(target) => {
                    out.u32(5);
                    out.opaque(target);
                }
                NewKind::Socket => out.u32(6),
                NewKind::Fifo => out.u32(7),
            }
            out.opaque(name);
            attributes.to_raw().encode(out);
        })
    }

    /// DELEGRETURN.
    pub fn delegreturn(self, stateid: Stateid) -> Self {
        self.put(op::DELEGRETURN, |out| put_stateid(out, stateid))
    }

    /// GETATTR.
    pub fn getattr(self, asked: Bitmap) -> Self {
        self.put(op::GETATTR, |out| asked.encode(out))
    }

    /// GETFH.
    pub fn getfh(self) -> Self {
        self.put(op::GETFH, |_| ())
    }

    /// LINK: the saved file gets this name in the current directory.
    pub fn link(self, name: &[u8]) -> Self {
        self.put(op::LINK, |out| out.opaque(name))
    }

    /// LOCK. `waits` says that the caller would rather wait, and comes again.
    pub fn lock(self, range: LockRange, waits: bool, reclaim: bool, locker: &Locker) -> Self {
        self.put(op::LOCK, |out| {
            out.u32(lock_type(range.exclusive, waits));
            out.bool(reclaim);
            out.u64(range.offset);
            out.u64(range.length);
            match locker {
                Locker::New(open, owner) => {
                    out.bool(true);
                    out.u32(0);
                    put_stateid(out, *open);
                    out.u32(0);
                    put_owner(out, owner);
                }
                Locker::Known(lock) => {
                    out.bool(false);
                    put_stateid(out, *lock);
                    out.u32(0);
                }
            }
        })
    }

    /// LOCKT.
    pub fn lockt(self, range: LockRange, owner: &[u8]) -> Self {
        self.put(op::LOCKT, |out| {
            out.u32(lock_type(range.exclusive, false));
            out.u64(range.offset);
            out.u64(range.length);
            put_owner(out, owner);
        })
    }

    /// LOCKU.
    pub fn locku(self, range: LockRange, stateid: Stateid) -> Self {
        self.put(op::LOCKU, |out| {
            out.u32(lock_type(range.exclusive, false));
            out.u32(0);
            put_stateid(out, stateid);
            out.u64(range.offset);
            out.u64(range.length);
        })
    }

    /// LOOKUP.
    pub fn lookup(self, name: &[u8]) -> Self {
        self.put(op::LOOKUP, |out| out.opaque(name))
    }

    /// LOOKUPP.
    pub fn lookupp(self) -> Self {
        self.put(op::LOOKUPP, |_| ())
    }

    /// VERIFY: goes on only if the attributes are these.
    pub fn verify(self, attributes: &RawAttributes) -> Self {
        self.put(op::VERIFY, |out| attributes.encode(out))
    }

    /// NVERIFY: goes on only if they are others.
    pub fn nverify(self, attributes: &RawAttributes) -> Self {
        self.put(op::NVERIFY, |out| attributes.encode(out))
    }

    /// OPEN.
    pub fn open(self, open: &Open) -> Self {
        self.put(op::OPEN, |out| put_open(out, open))
    }

    /// OPEN_DOWNGRADE.
    pub fn open_downgrade(self, stateid: Stateid, access: u32, deny: u32) -> Self {
        self.put(op::OPEN_DOWNGRADE, |out| {
            put_stateid(out, stateid);
            for word in [0, access, deny] {
                out.u32(word);
            }
        })
    }

    /// PUTFH.
    pub fn putfh(self, handle: &Handle) -> Self {
        self.put(op::PUTFH, |out| out.opaque(&handle.0))
    }

    /// PUTPUBFH.
    pub fn putpubfh(self) -> Self {
        self.put(op::PUTPUBFH, |_| ())
    }

    /// PUTROOTFH.
    pub fn putrootfh(self) -> Self {
        self.put(op::PUTROOTFH, |_| ())
    }

    /// READ.
    pub fn read(self, stateid: Stateid, offset: u64, count: u32) -> Self {
        self.put(op::READ, |out| put_range(out, stateid, offset, count))
    }

    /// READ_PLUS.
    pub fn read_plus(self, stateid: Stateid, offset: u64, count: u32) -> Self {
        self.put(op::READ_PLUS, |out| put_range(out, stateid, offset, count))
    }

    /// READDIR: entries behind a cookie, in a result of so many bytes.
    pub fn readdir(self, cookie: u64, verifier: [u8; 8], bytes_max: u32, asked: Bitmap) -> Self {
        self.put(op::READDIR, |out| {
            out.u64(cookie);
            out.fixed(&verifier);
            // Names alone may take all of it.
            out.u32(bytes_max);
            out.u32(bytes_max);
            asked.encode(out);
        })
    }

    /// READLINK.
    pub fn readlink(self) -> Self {
        self.put(op::READLINK, |_| ())
    }

    /// REMOVE.
    pub fn remove(self, name: &[u8]) -> Self {
        self.put(op::REMOVE, |out| out.opaque(name))
    }

    /// RENAME, from the saved directory into the current one.
    pub fn rename(self, from: &[u8], to: &[u8]) -> Self {
        self.put(op::RENAME, |out| {
            out.opaque(from);
            out.opaque(to);
        })
    }

    /// RESTOREFH.
    pub fn restorefh(self) -> Self {
        self.put(op::RESTOREFH, |_| ())
    }

    /// SAVEFH.
    pub fn savefh(self) -> Self {
        self.put(op::SAVEFH, |_| ())
    }

    /// SECINFO.
    pub fn secinfo(self, name: &[u8]) -> Self {
        self.put(op::SECINFO, |out| out.opaque(name))
    }

    /// SECINFO_NO_NAME, of the current file or of its directory.
    pub fn secinfo_no_name(self, of_parent: bool) -> Self {
        self.put(op::SECINFO_NO_NAME, |out| out.bool(of_parent))
    }

    /// SETATTR.
    pub fn setattr(self, stateid: Stateid, attributes: &AttributesToSet) -> Self {
        self.put(op::SETATTR, |out| {
            put_stateid(out, stateid);
            attributes.to_raw().encode(out);
        })
    }

    /// WRITE. The data is not copied.
    pub fn write(self, stateid: Stateid, offset: u64, stable: Stable, data: Bytes) -> Self {
        self.put(op::WRITE, |out| {
            put_stateid(out, stateid);
            out.u64(offset);
            out.u32(stable as u32);
            out.payload(data);
        })
    }

    /// TEST_STATEID.
    pub fn test_stateid(self, stateids: &[Stateid]) -> Self {
        self.put(op::TEST_STATEID, |out| out.array(stateids, |out, stateid| put_stateid(out, *stateid)))
    }

    /// FREE_STATEID.
    pub fn free_stateid(self, stateid: Stateid) -> Self {
        self.put(op::FREE_STATEID, |out| put_stateid(out, stateid))
    }

    /// ALLOCATE.
    pub fn allocate(self, stateid: Stateid, offset: u64, length: u64) -> Self {
        self.put(op::ALLOCATE, |out| put_long_range(out, stateid, offset, length))
    }

    /// DEALLOCATE.
    pub fn deallocate(self, stateid: Stateid, offset: u64, length: u64) -> Self {
        self.put(op::DEALLOCATE, |out| put_long_range(out, stateid, offset, length))
    }

    /// COPY at this server, synchronous: so many bytes (0 for all) from the saved file into the current one.
    pub fn copy(self, from: (Stateid, u64), to: (Stateid, u64), count: u64) -> Self {
        self.put(op::COPY, |out| {
            put_stateid(out, from.0);
            put_stateid(out, to.0);
            for value in [from.1, to.1, count] {
                out.u64(value);
            }
            // In any order, and at once; from no other server.
            out.bool(false);
            out.bool(true);
            out.u32(0);
        })
    }

    /// SEEK to the next hole, or to the next data.
    pub fn seek(self, stateid: Stateid, offset: u64, hole: bool) -> Self {
        self.put(op::SEEK, |out| {
            put_stateid(out, stateid);
            out.u64(offset);
            out.u32(u32::from(hole));
        })
    }

    /// GETXATTR. Names come without the prefix `user.`.
    pub fn getxattr(self, name: &[u8]) -> Self {
        self.put(op::GETXATTR, |out| out.opaque(name))
    }

    /// SETXATTR; the option is `setxattr_option4`: 0 either, 1 it must be new, 2 it must be there.
    pub fn setxattr(self, option: u32, name: &[u8], value: &[u8]) -> Self {
        self.put(op::SETXATTR, |out| {
            out.u32(option);
            out.opaque(name);
            out.opaque(value);
        })
    }

    /// LISTXATTRS.
    pub fn listxattrs(self, cookie: u64, bytes_max: u32) -> Self {
        self.put(op::LISTXATTRS, |out| {
            out.u64(cookie);
            out.u32(bytes_max);
        })
    }

    /// REMOVEXATTR.
    pub fn removexattr(self, name: &[u8]) -> Self {
        self.put(op::REMOVEXATTR, |out| out.opaque(name))
    }
}

/// Operations on the client id and its sessions, which the session's state machine sends by itself.
impl Request {
    /// EXCHANGE_ID without protection of state.
    pub fn exchange_id(self, verifier: [u8; 8], owner: &[u8], flags: u32) -> Self {
        self.put(op::EXCHANGE_ID, |out| {
            out.fixed(&verifier);
            out.opaque(owner);
            out.u32(flags);
            // SP4_NONE, and no name of the implementation.
            out.u32(0);
            out.u32(0);
        })
    }

    /// CREATE_SESSION. Callbacks are to come with this program number and as this user.
    pub fn create_session(
        self,
        client: ClientId,
        sequence: u32,
        flags: u32,
        (fore, back): (&Channel, &Channel),
        callbacks: (u32, &SysCredential),
    ) -> Self {
        self.put(op::CREATE_SESSION, |out| {
            out.u64(client.0);
            out.u32(sequence);
            out.u32(flags);
            fore.encode(out);
            back.encode(out);
            put_callbacks(out, callbacks);
        })
    }

    /// BACKCHANNEL_CTL.
    pub fn backchannel_ctl(self, callbacks: (u32, &SysCredential)) -> Self {
        self.put(op::BACKCHANNEL_CTL, |out| put_callbacks(out, callbacks))
    }

    /// BIND_CONN_TO_SESSION; the direction is `channel_dir_from_client4`.
    pub fn bind_conn_to_session(self, session: SessionId, direction: u32) -> Self {
        self.put(op::BIND_CONN_TO_SESSION, |out| {
            out.fixed(&session.to_bytes());
            out.u32(direction);
            out.bool(false);
        })
    }

    /// DESTROY_SESSION.
    pub fn destroy_session(self, session: SessionId) -> Self {
        self.put(op::DESTROY_SESSION, |out| out.fixed(&session.to_bytes()))
    }

    /// DESTROY_CLIENTID.
    pub fn destroy_clientid(self, client: ClientId) -> Self {
        self.put(op::DESTROY_CLIENTID, |out| out.u64(client.0))
    }

    /// RECLAIM_COMPLETE, for all filesystems or for the current one.
    pub fn reclaim_complete(self, of_one: bool) -> Self {
        self.put(op::RECLAIM_COMPLETE, |out| out.bool(of_one))
    }

    /// SEQUENCE. The session puts it before every request by itself; here for those that are sent around it.
    pub fn sequence(self, session: SessionId, sequence: u32, (slot, highest_slot): (u32, u32), cached: bool) -> Self {
        self.put(op::SEQUENCE, |out| put_sequence(out, session, sequence, (slot, highest_slot), cached))
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
