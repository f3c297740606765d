//! Numbers of the protocol as a client uses them.

#![allow(missing_docs, reason = "they are the protocol's own names")]

/// Program and version of NFS (RFC 8881 §2.1), and its two procedures.
pub const PROGRAM: u32 = 100_003;
pub const VERSION: u32 = 4;
pub const PROCEDURE_NULL: u32 = 0;
pub const PROCEDURE_COMPOUND: u32 = 1;

/// Operations (RFC 8881 §16.1, RFC 7862 §14, RFC 8276 §8.4).
pub mod operation {
    #![allow(missing_docs, reason = "they are the protocol's own names")]
    pub const ACCESS: u32 = 3;
    pub const CLOSE: u32 = 4;
    pub const COMMIT: u32 = 5;
    pub const CREATE: u32 = 6;
    pub const DELEGRETURN: u32 = 8;
    pub const GETATTR: u32 = 9;
    pub const GETFH: u32 = 10;
    pub const LINK: u32 = 11;
    pub const LOCK: u32 = 12;
    pub const LOCKT: u32 = 13;
    pub const LOCKU: u32 = 14;
    pub const LOOKUP: u32 = 15;
    pub const LOOKUPP: u32 = 16;
    pub const NVERIFY: u32 = 17;
    pub const OPEN: u32 = 18;
    pub const OPEN_DOWNGRADE: u32 = 21;
    pub const PUTFH: u32 = 22;
    pub const PUTPUBFH: u32 = 23;
    pub const PUTROOTFH: u32 = 24;
    pub const READ: u32 = 25;
    pub const READDIR: u32 = 26;
    pub const READLINK: u32 = 27;
    pub const REMOVE: u32 = 28;
    pub const RENAME: u32 = 29;
    pub const RESTOREFH: u32 = 31;
    pub const SAVEFH: u32 = 32;
    pub const SECINFO: u32 = 33;
    pub const SETATTR: u32 = 34;
    pub const VERIFY: u32 = 37;
    pub const WRITE: u32 = 38;
    pub const BACKCHANNEL_CTL: u32 = 40;
    pub const BIND_CONN_TO_SESSION: u32 = 41;
    pub const EXCHANGE_ID: u32 = 42;
    pub const CREATE_SESSION: u32 = 43;
    pub const DESTROY_SESSION: u32 = 44;
    pub const FREE_STATEID: u32 = 45;
    pub const SECINFO_NO_NAME: u32 = 52;
    pub const SEQUENCE: u32 = 53;
    pub const TEST_STATEID: u32 = 55;
    pub const DESTROY_CLIENTID: u32 = 57;
    pub const RECLAIM_COMPLETE: u32 = 58;
    pub const ALLOCATE: u32 = 59;
    pub const COPY: u32 = 60;
    pub const DEALLOCATE: u32 = 62;
    pub const READ_PLUS: u32 = 68;
    pub const SEEK: u32 = 69;
    pub const GETXATTR: u32 = 72;
    pub const SETXATTR: u32 = 73;
    pub const LISTXATTRS: u32 = 74;
    pub const REMOVEXATTR: u32 = 75;
    pub const ILLEGAL: u32 = 10_044;
}

/// `OPEN4_SHARE_ACCESS_*`, `OPEN4_SHARE_DENY_*`, and what is wanted of delegations (RFC 8881 §18.16.1).
pub const ACCESS_READ: u32 = 1;
pub const ACCESS_WRITE: u32 = 2;
pub const ACCESS_BOTH: u32 = 3;
pub const WANT_READ_DELEGATION: u32 = 0x100;
pub const WANT_NO_DELEGATION: u32 = 0x400;
pub const DENY_NONE: u32 = 0;
pub const DENY_READ: u32 = 1;
pub const DENY_WRITE: u32 = 2;
pub const DENY_BOTH: u32 = 3;

/// `CREATE_SESSION4_FLAG_*` (RFC 8881 §18.36.1).
pub const SESSION_PERSIST: u32 = 1;
pub const SESSION_BACK_CHANNEL: u32 = 2;

/// `EXCHGID4_FLAG_*` (RFC 8881 §18.35.1).
pub const EXCHANGE_REFERRALS: u32 = 1;
pub const EXCHANGE_NON_PNFS: u32 = 0x1_0000;
pub const EXCHANGE_CONFIRMED: u32 = 0x8000_0000;

/// `SEQ4_STATUS_CB_PATH_DOWN` and `SEQ4_STATUS_CB_PATH_DOWN_SESSION` (RFC 8881 §18.46.1).
pub const STATUS_CALLBACK_PATH_DOWN: u32 = 1;
pub const STATUS_CALLBACK_PATH_DOWN_SESSION: u32 = 0x200;

/// `CDFC4_FORE_OR_BOTH` (RFC 8881 §18.34.1).
pub const BIND_FORE_OR_BOTH: u32 = 7;

/// The program that our callbacks are called by: any from the range of transient ones (RFC 5531 §8.3).
pub const CALLBACK_PROGRAM: u32 = 0x4000_0000;
/// Callbacks in one compound of the server (RFC 8881 §20).
pub mod callback {
    #![allow(missing_docs, reason = "they are the protocol's own names")]
    pub const GETATTR: u32 = 3;
    pub const RECALL: u32 = 4;
    pub const RECALL_ANY: u32 = 8;
    pub const RECALL_SLOT: u32 = 10;
    pub const SEQUENCE: u32 = 11;
    pub const NOTIFY_LOCK: u32 = 13;
    pub const OFFLOAD: u32 = 15;
}
