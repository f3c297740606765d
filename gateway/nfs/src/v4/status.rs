//! Why an operation failed, as the protocol says it.

use thiserror::Error;

use crate::xdr::XdrError;

macro_rules! statuses {
    ($($name:ident = $number:literal, $constant:literal;)*) => {
        /// What an operation answers instead of a result (RFC 8881 §15.1, RFC 7862 §11.1, RFC 8276 §8.5), by the names used there
        /// without `NFS4ERR_`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Error)]
        #[repr(u32)]
        pub enum Status {
            $(
                #[doc = $constant]
                #[error($constant)]
                $name = $number,
            )*
        }

        impl Status {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];
        }
    };
}

statuses! {
    Perm = 1, "PERM";
    NoEntry = 2, "NOENT";
    Io = 5, "IO";
    NoDevice = 6, "NXIO";
    Access = 13, "ACCESS";
    Exists = 17, "EXIST";
    CrossDevice = 18, "XDEV";
    NotDirectory = 20, "NOTDIR";
    IsDirectory = 21, "ISDIR";
    Invalid = 22, "INVAL";
    FileTooBig = 27, "FBIG";
    NoSpace = 28, "NOSPC";
    ReadOnly = 30, "ROFS";
    TooManyLinks = 31, "MLINK";
    NameTooLong = 63, "NAMETOOLONG";
    NotEmpty = 66, "NOTEMPTY";
    QuotaExceeded = 69, "DQUOT";
    Stale = 70, "STALE";
    BadHandle = 10001, "BADHANDLE";
    BadCookie = 10003, "BAD_COOKIE";
    NotSupported = 10004, "NOTSUPP";
    TooSmall = 10005, "TOOSMALL";
    ServerFault = 10006, "SERVERFAULT";
    BadType = 10007, "BADTYPE";
    Delay = 10008, "DELAY";
    Same = 10009, "SAME";
    Denied = 10010, "DENIED";
    Expired = 10011, "EXPIRED";
    Locked = 10012, "LOCKED";
    Grace = 10013, "GRACE";
    HandleExpired = 10014, "FHEXPIRED";
    ShareDenied = 10015, "SHARE_DENIED";
    WrongSecurity = 10016, "WRONGSEC";
    ClientInUse = 10017, "CLID_INUSE";
    Moved = 10019, "MOVED";
    NoFileHandle = 10020, "NOFILEHANDLE";
    MinorVersionMismatch = 10021, "MINOR_VERS_MISMATCH";
    StaleClientId = 10022, "STALE_CLIENTID";
    StaleStateid = 10023, "STALE_STATEID";
    OldStateid = 10024, "OLD_STATEID";
    BadStateid = 10025, "BAD_STATEID";
    BadSequence = 10026, "BAD_SEQID";
    NotSame = 10027, "NOT_SAME";
    LockRange = 10028, "LOCK_RANGE";
    Symlink = 10029, "SYMLINK";
    RestoreHandle = 10030, "RESTOREFH";
    LeaseMoved = 10031, "LEASE_MOVED";
    AttributeNotSupported = 10032, "ATTRNOTSUPP";
    NoGrace = 10033, "NO_GRACE";
    ReclaimBad = 10034, "RECLAIM_BAD";
    ReclaimConflict = 10035, "RECLAIM_CONFLICT";
    BadXdr = 10036, "BADXDR";
    LocksHeld = 10037, "LOCKS_HELD";
    OpenMode = 10038, "OPENMODE";
    BadOwner = 10039, "BADOWNER";
    BadCharacter = 10040, "BADCHAR";
    BadName = 10041, "BADNAME";
    BadRange = 10042, "BAD_RANGE";
    LockNotSupported = 10043, "LOCK_NOTSUPP";
    OperationIllegal = 10044, "OP_ILLEGAL";
    Deadlock = 10045, "DEADLOCK";
    FileOpen = 10046, "FILE_OPEN";
    AdminRevoked = 10047, "ADMIN_REVOKED";
    CallbackPathDown = 10048, "CB_PATH_DOWN";
    BadIoMode = 10049, "BADIOMODE";
    BadLayout = 10050, "BADLAYOUT";
    BadSessionDigest = 10051, "BAD_SESSION_DIGEST";
    BadSession = 10052, "BADSESSION";
    BadSlot = 10053, "BADSLOT";
    CompleteAlready = 10054, "COMPLETE_ALREADY";
    NotBoundToSession = 10055, "CONN_NOT_BOUND_TO_SESSION";
    DelegationAlreadyWanted = 10056, "DELEG_ALREADY_WANTED";
    BackChannelBusy = 10057, "BACK_CHAN_BUSY";
    LayoutTryLater = 10058, "LAYOUTTRYLATER";
    LayoutUnavailable = 10059, "LAYOUTUNAVAILABLE";
    NoMatchingLayout = 10060, "NOMATCHING_LAYOUT";
    RecallConflict = 10061, "RECALLCONFLICT";
    UnknownLayoutType = 10062, "UNKNOWN_LAYOUTTYPE";
    SequenceMisordered = 10063, "SEQ_MISORDERED";
    SequencePosition = 10064, "SEQUENCE_POS";
    RequestTooBig = 10065, "REQ_TOO_BIG";
    ReplyTooBig = 10066, "REP_TOO_BIG";
    ReplyTooBigToCache = 10067, "REP_TOO_BIG_TO_CACHE";
    RetryUncachedReply = 10068, "RETRY_UNCACHED_REP";
    UnsafeCompound = 10069, "UNSAFE_COMPOUND";
    TooManyOperations = 10070, "TOO_MANY_OPS";
    OperationNotInSession = 10071, "OP_NOT_IN_SESSION";
    HashAlgorithmUnsupported = 10072, "HASH_ALG_UNSUPP";
    ClientIdBusy = 10074, "CLIENTID_BUSY";
    PnfsIoHole = 10075, "PNFS_IO_HOLE";
    SequenceFalseRetry = 10076, "SEQ_FALSE_RETRY";
    BadHighSlot = 10077, "BAD_HIGH_SLOT";
    DeadSession = 10078, "DEADSESSION";
    EncryptionAlgorithmUnsupported = 10079, "ENCR_ALG_UNSUPP";
    PnfsNoLayout = 10080, "PNFS_NO_LAYOUT";
    NotOnlyOperation = 10081, "NOT_ONLY_OP";
    WrongCredentials = 10082, "WRONG_CRED";
    WrongType = 10083, "WRONG_TYPE";
    DirectoryDelegationUnavailable = 10084, "DIRDELEG_UNAVAIL";
    RejectDelegation = 10085, "REJECT_DELEG";
    ReturnConflict = 10086, "RETURNCONFLICT";
    DelegationRevoked = 10087, "DELEG_REVOKED";
    PartnerNotSupported = 10088, "PARTNER_NOTSUPP";
    PartnerNoAuthentication = 10089, "PARTNER_NO_AUTH";
    UnionNotSupported = 10090, "UNION_NOTSUPP";
    OffloadDenied = 10091, "OFFLOAD_DENIED";
    WrongLfs = 10092, "WRONG_LFS";
    BadLabel = 10093, "BADLABEL";
    OffloadNoRequests = 10094, "OFFLOAD_NO_REQS";
    NoXattr = 10095, "NOXATTR";
    XattrTooBig = 10096, "XATTR2BIG";
}

/// What stands for success where a status is expected (`NFS4_OK`).
pub const OK: u32 = 0;

impl Status {
    /// As it goes over the wire.
    pub fn code(self) -> u32 {
        self as u32
    }

    /// From the wire; none for success, and for what is no status.
    pub fn from_code(code: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|status| status.code() == code)
    }
}

impl From<XdrError> for Status {
    fn from(_: XdrError) -> Self {
        Self::BadXdr
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_told_apart() {
        for status in Status::ALL {
            assert_eq!(Status::from_code(status.code()), Some(*status));
        }
        assert_eq!(Status::from_code(OK), None);
        assert_eq!(Status::SequenceMisordered.code(), 10_063);
        assert_eq!(Status::SequenceMisordered.to_string(), "SEQ_MISORDERED");
    }
}
