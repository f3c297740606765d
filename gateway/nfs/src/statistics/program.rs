//! The programs that a service answers or calls, and the names of their operations, as their protocols write them.

use crate::v4::status::Status;

/// A program, with its version where there are several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Program {
    /// NFSv4.1 and 4.2: the operations of compounds (RFC 8881 §16.2, RFC 7862, RFC 8276).
    V4,
    /// NFSv3 (RFC 1813).
    V3,
    /// MOUNT version 3 (RFC 1813 Appendix I).
    Mount,
    /// The network lock manager, version 4.
    Nlm,
    /// What the service asks of its clients (RFC 8881 §20).
    Callback,
}

/// What stands for a number that is no operation.
pub const UNKNOWN: &str = "ILLEGAL";

const V4: &[&str] = &[
    "",
    "",
    UNKNOWN,
    "ACCESS",
    "CLOSE",
    "COMMIT",
    "CREATE",
    "DELEGPURGE",
    "DELEGRETURN",
    "GETATTR",
    "GETFH",
    "LINK",
    "LOCK",
    "LOCKT",
    "LOCKU",
    "LOOKUP",
    "LOOKUPP",
    "NVERIFY",
    "OPEN",
    "OPENATTR",
    "OPEN_CONFIRM",
    "OPEN_DOWNGRADE",
    "PUTFH",
    "PUTPUBFH",
    "PUTROOTFH",
    "READ",
    "READDIR",
    "READLINK",
    "REMOVE",
    "RENAME",
    "RENEW",
    "RESTOREFH",
    "SAVEFH",
    "SECINFO",
    "SETATTR",
    "SETCLIENTID",
    "SETCLIENTID_CONFIRM",
    "VERIFY",
    "WRITE",
    "RELEASE_LOCKOWNER",
    "BACKCHANNEL_CTL",
    "BIND_CONN_TO_SESSION",
    "EXCHANGE_ID",
    "CREATE_SESSION",
    "DESTROY_SESSION",
    "FREE_STATEID",
    "GET_DIR_DELEGATION",
    "GETDEVICEINFO",
    "GETDEVICELIST",
    "LAYOUTCOMMIT",
    "LAYOUTGET",
    "LAYOUTRETURN",
    "SECINFO_NO_NAME",
    "SEQUENCE",
    "SET_SSV",
    "TEST_STATEID",
    "WANT_DELEGATION",
    "DESTROY_CLIENTID",
    "RECLAIM_COMPLETE",
    "ALLOCATE",
    "COPY",
    "COPY_NOTIFY",
    "DEALLOCATE",
    "IO_ADVISE",
    "LAYOUTERROR",
    "LAYOUTSTATS",
    "OFFLOAD_CANCEL",
    "OFFLOAD_STATUS",
    "READ_PLUS",
    "SEEK",
    "WRITE_SAME",
    "CLONE",
    "GETXATTR",
    "SETXATTR",
    "LISTXATTRS",
    "REMOVEXATTR",
];
const V3: &[&str] = &[
    "NULL",
    "GETATTR",
    "SETATTR",
    "LOOKUP",
    "ACCESS",
    "READLINK",
    "READ",
    "WRITE",
    "CREATE",
    "MKDIR",
    "SYMLINK",
    "MKNOD",
    "REMOVE",
    "RMDIR",
    "RENAME",
    "LINK",
    "READDIR",
    "READDIRPLUS",
    "FSSTAT",
    "FSINFO",
    "PATHCONF",
    "COMMIT",
    UNKNOWN,
];
const MOUNT: &[&str] = &["NULL", "MNT", "DUMP", "UMNT", "UMNTALL", "EXPORT", UNKNOWN];
const NLM: &[&str] = &[
    "NULL",
    "TEST",
    "LOCK",
    "CANCEL",
    "UNLOCK",
    "GRANTED",
    "TEST_MSG",
    "LOCK_MSG",
    "CANCEL_MSG",
    "UNLOCK_MSG",
    "GRANTED_MSG",
    "TEST_RES",
    "LOCK_RES",
    "CANCEL_RES",
    "UNLOCK_RES",
    "GRANTED_RES",
    UNKNOWN,
    "",
    "",
    "",
    "SHARE",
    "UNSHARE",
    "NM_LOCK",
    "FREE_ALL",
];
const CALLBACK: &[&str] = &[
    "CB_NULL",
    "",
    UNKNOWN,
    "CB_GETATTR",
    "CB_RECALL",
    "CB_LAYOUTRECALL",
    "CB_NOTIFY",
    "CB_PUSH_DELEG",
    "CB_RECALL_ANY",
    "CB_RECALLABLE_OBJ_AVAIL",
    "CB_RECALL_SLOT",
    "CB_SEQUENCE",
    "CB_WANTS_CANCELLED",
    "CB_NOTIFY_LOCK",
    "CB_NOTIFY_DEVICEID",
    "CB_OFFLOAD",
];

impl Program {
    /// All of them, in order.
    pub const ALL: [Self; 5] = [Self::V4, Self::V3, Self::Mount, Self::Nlm, Self::Callback];

    /// Its name: short, and fit for labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "nfs4",
            Self::V3 => "nfs3",
            Self::Mount => "mount",
            Self::Nlm => "nlm",
            Self::Callback => "callback",
        }
    }

    /// The names of its operations, each at the place of its number.
    pub fn operations(self) -> &'static [&'static str] {
        match self {
            Self::V4 => V4,
            Self::V3 => V3,
            Self::Mount => MOUNT,
            Self::Nlm => NLM,
            Self::Callback => CALLBACK,
        }
    }

    /// The place of a number among its operations; those that are none share one.
    pub(super) fn place(self, number: u32) -> usize {
        let names = self.operations();
        let place = number as usize;
        match names.get(place) {
            Some(name) if !name.is_empty() => place,
            _ => names.iter().position(|name| *name == UNKNOWN).unwrap_or(0),
        }
    }

    /// What a status is called; its number where that has no name here.
    pub fn status_name(self, code: u32) -> String {
        let named = match self {
            // Those of NFSv3 have the same numbers, but for one that NFSv4 has not.
            Self::V4 | Self::V3 | Self::Mount | Self::Callback => {
                Status::from_code(code).map(|status| status.to_string())
            }
            Self::Nlm => None,
        };
        named.unwrap_or_else(|| code.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_protocols() {
        let name = |program: Program, number: u32| program.operations()[program.place(number)];
        let of_v4 = [3, 22, 38, 42, 53, 58, 59, 60, 68, 69, 75].map(|number| name(Program::V4, number));
        let expected = [
            "ACCESS",
            "PUTFH",
            "WRITE",
            "EXCHANGE_ID",
            "SEQUENCE",
            "RECLAIM_COMPLETE",
            "ALLOCATE",
            "COPY",
            "READ_PLUS",
            "SEEK",
            "REMOVEXATTR",
        ];
        assert_eq!(of_v4, expected);
        let others = [
            (Program::V3, 21, "COMMIT"),
            (Program::Mount, 5, "EXPORT"),
            (Program::Nlm, 20, "SHARE"),
            (Program::Nlm, 23, "FREE_ALL"),
            (Program::Callback, 11, "CB_SEQUENCE"),
            (Program::Callback, 4, "CB_RECALL"),
        ];
        for (program, number, expected) in others {
            assert_eq!(name(program, number), expected);
        }
    }

    #[test]
    fn what_is_no_operation_has_one_place_for_all() {
        for program in Program::ALL {
            for number in [10_044, u32::MAX] {
                assert_eq!(program.operations()[program.place(number)], UNKNOWN);
            }
        }
        assert_eq!(Program::V4.operations()[Program::V4.place(0)], UNKNOWN);
    }

    #[test]
    fn statuses_have_names() {
        assert_eq!(Program::V4.status_name(10_008), "DELAY");
        assert_eq!(Program::V3.status_name(2), "NOENT");
        assert_eq!(Program::Nlm.status_name(1), "1");
        assert_eq!(Program::V4.status_name(77_777), "77777");
    }
}
