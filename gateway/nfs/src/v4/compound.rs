//! Compounds (RFC 8881 §16.2): a list of operations that one request carries, taken from the wire before any of them is done.

use bytes::Bytes;

use super::operations::{
    access, allocate, commit, copy, create, create_session, exchange_id, getattr, handles, link, lock, lookup, open,
    read, readdir, remove, rename, secinfo, seek, sequence, session, setattr, state, verify, write, xattrs,
};
use super::status::Status;
use crate::state::create_session::CreateSession;
use crate::state::exchange_id::ExchangeId;
use crate::xdr::{Decoder, XdrError};

/// The longest tag that is given back.
const TAG_BYTES_MAX: usize = 1024;
/// Operations of one compound; sessions are granted fewer.
pub const OPERATIONS_MAX: usize = 128;
/// The number of SEQUENCE.
pub const SEQUENCE: u32 = 53;
/// What stands in a reply to an operation that does not exist.
pub const ILLEGAL: u32 = 10_044;
/// Lowest and highest numbers of operations, of 4.1 and of 4.2 with extended attributes.
const FIRST: u32 = 3;
const LAST_OF_MINOR_1: u32 = 58;
const LAST_OF_MINOR_2: u32 = 75;
/// Minor versions that are spoken.
pub const MINORS: std::ops::RangeInclusive<u32> = 1..=2;

macro_rules! operations {
    ($($name:ident = $number:literal $(, $arguments:ty = $decode:expr)?;)*) => {
        /// An operation that exists here, with its arguments.
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "they are the protocol's own names")]
        pub enum Operation {
            $($name $(($arguments))?,)*
        }

        impl Operation {
            /// Its number.
            pub fn number(&self) -> u32 {
                match self {
                    $(operations!(@pattern $name $($arguments)?) => $number,)*
                }
            }

            /// Its arguments from the wire; none for a number that is no operation of ours.
            fn decode_arguments(number: u32, decoder: &mut Decoder) -> Option<Result<Self, XdrError>> {
                match number {
                    $($number => Some(operations!(@decode decoder $name $($decode)?)),)*
                    _ => None,
                }
            }
        }
    };
    (@pattern $name:ident) => { Self::$name };
    (@pattern $name:ident $arguments:ty) => { Self::$name(_) };
    (@decode $decoder:ident $name:ident) => { Ok(Self::$name) };
    (@decode $decoder:ident $name:ident $decode:expr) => { $decode($decoder).map(Self::$name) };
}

operations! {
    Access = 3, access::Arguments = access::Arguments::decode;
    Close = 4, state::StateidArguments = state::StateidArguments::decode_close;
    Commit = 5, commit::Arguments = commit::Arguments::decode;
    Create = 6, create::Arguments = create::Arguments::decode;
    DelegReturn = 8, state::StateidArguments = state::StateidArguments::decode;
    GetAttr = 9, getattr::Arguments = getattr::Arguments::decode;
    GetFh = 10;
    Link = 11, link::Arguments = link::Arguments::decode;
    Lock = 12, lock::LockArguments = lock::LockArguments::decode;
    LockT = 13, lock::TestArguments = lock::TestArguments::decode;
    LockU = 14, lock::UnlockArguments = lock::UnlockArguments::decode;
    Lookup = 15, lookup::Arguments = lookup::Arguments::decode;
    LookupP = 16;
    NVerify = 17, verify::Arguments = verify::Arguments::decode;
    Open = 18, open::Arguments = open::Arguments::decode;
    OpenDowngrade = 21, state::DowngradeArguments = state::DowngradeArguments::decode;
    PutFh = 22, handles::PutArguments = handles::PutArguments::decode;
    PutPubFh = 23;
    PutRootFh = 24;
    Read = 25, read::Arguments = read::Arguments::decode;
    ReadDir = 26, readdir::Arguments = readdir::Arguments::decode;
    ReadLink = 27;
    Remove = 28, remove::Arguments = remove::Arguments::decode;
    Rename = 29, rename::Arguments = rename::Arguments::decode;
    RestoreFh = 31;
    SaveFh = 32;
    SecInfo = 33, lookup::Arguments = lookup::Arguments::decode;
    SetAttr = 34, setattr::Arguments = setattr::Arguments::decode;
    Verify = 37, verify::Arguments = verify::Arguments::decode;
    Write = 38, write::Arguments = write::Arguments::decode;
    BackChannelCtl = 40, session::BackChannelArguments = session::BackChannelArguments::decode;
    BindConnToSession = 41, session::BindArguments = session::BindArguments::decode;
    ExchangeId = 42, ExchangeId = exchange_id::decode;
    CreateSession = 43, CreateSession = create_session::decode;
    DestroySession = 44, session::DestroyArguments = session::DestroyArguments::decode;
    FreeStateid = 45, state::StateidArguments = state::StateidArguments::decode;
    SecInfoNoName = 52, secinfo::NoNameArguments = secinfo::NoNameArguments::decode;
    Sequence = 53, sequence::Arguments = sequence::Arguments::decode;
    TestStateid = 55, state::TestArguments = state::TestArguments::decode;
    DestroyClientId = 57, session::DestroyClientArguments = session::DestroyClientArguments::decode;
    ReclaimComplete = 58, session::ReclaimCompleteArguments = session::ReclaimCompleteArguments::decode;
    Allocate = 59, allocate::Arguments = allocate::Arguments::decode;
    Copy = 60, copy::Arguments = copy::Arguments::decode;
    Deallocate = 62, allocate::Arguments = allocate::Arguments::decode;
    ReadPlus = 68, read::Arguments = read::Arguments::decode;
    Seek = 69, seek::Arguments = seek::Arguments::decode;
    GetXattr = 72, xattrs::NameArguments = xattrs::NameArguments::decode;
    SetXattr = 73, xattrs::SetArguments = xattrs::SetArguments::decode;
    ListXattrs = 74, xattrs::ListArguments = xattrs::ListArguments::decode;
    RemoveXattr = 75, xattrs::NameArguments = xattrs::NameArguments::decode;
}

/// One of the operations of a compound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// To be done.
    Do(Operation),
    /// To be answered so, and the compound ends with it: the number, and why.
    Refuse(u32, Status),
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compound {
    /// Given back as it is.
    pub tag: Bytes,
    /// Minor version.
    pub minor: u32,
    /// Its operations. Behind one that cannot be read there are no others.
    pub steps: Vec<Step>,
    /// Where the arguments of the second operation begin: what comes from there on is what the request is told from others by.
    pub body_at: usize,
}

/// Why a request has no operations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadCompound {
    /// Not even the head can be read.
    Garbage,
    /// An answer without results: the tag, and why.
    Refuse(Bytes, Status),
}

impl Step {
    /// The number that stands in the reply.
    pub fn number(&self) -> u32 {
        match self {
            Self::Do(operation) => operation.number(),
            Self::Refuse(number, _) => *number,
        }
    }
}

impl Compound {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, BadCompound> {
        let garbage = |_: XdrError| BadCompound::Garbage;
        let tag = decoder.opaque(TAG_BYTES_MAX).map_err(garbage)?;
        let minor = decoder.u32().map_err(garbage)?;
        let count = decoder.u32().map_err(garbage)? as usize;
        if !MINORS.contains(&minor) {
            return Err(BadCompound::Refuse(tag, Status::MinorVersionMismatch));
        }
        if count > OPERATIONS_MAX {
            return Err(BadCompound::Refuse(tag, Status::TooManyOperations));
        }
        let mut steps = Vec::with_capacity(count);
        let mut body_at = decoder.position();
        for index in 0..count {
            if index == 1 {
                body_at = decoder.position();
            }
            let step = decode_step(minor, decoder);
            let is_last = matches!(step, Step::Refuse(..));
            steps.push(step);
            if is_last {
                break;
            }
        }
        Ok(Self { tag, minor, steps, body_at })
    }
}

fn decode_step(minor: u32, decoder: &mut Decoder) -> Step {
    let Ok(number) = decoder.u32() else { return Step::Refuse(ILLEGAL, Status::BadXdr) };
    let last = if minor >= 2 { LAST_OF_MINOR_2 } else { LAST_OF_MINOR_1 };
    if !(FIRST..=last).contains(&number) {
        return Step::Refuse(ILLEGAL, Status::OperationIllegal);
    }
    match Operation::decode_arguments(number, decoder) {
        Some(Ok(operation)) => Step::Do(operation),
        Some(Err(_)) => Step::Refuse(number, Status::BadXdr),
        None => Step::Refuse(number, Status::NotSupported),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xdr::Encoder;

    fn compound(minor: u32, words: &[u32]) -> Result<Compound, BadCompound> {
        let mut out = Encoder::new();
        out.opaque(b"tag");
        out.u32(minor);
        words.iter().for_each(|word| out.u32(*word));
        Compound::decode(&mut Decoder::new(out.to_bytes()))
    }

    #[test]
    fn operations_are_read_up_to_the_first_that_cannot_be() {
        let read = compound(1, &[5, 24, 10, 3, 63, 99_999, 24]).unwrap();
        let expected = [
            Step::Do(Operation::PutRootFh),
            Step::Do(Operation::GetFh),
            Step::Do(Operation::Access(access::Arguments(63))),
            Step::Refuse(ILLEGAL, Status::OperationIllegal),
        ];
        assert_eq!(read.steps, expected);
        assert_eq!(compound(1, &[1, 3]).unwrap().steps, [Step::Refuse(3, Status::BadXdr)], "no arguments");
        assert_eq!(compound(1, &[1]).unwrap().steps, [Step::Refuse(ILLEGAL, Status::BadXdr)], "no number");
    }

    #[test]
    fn what_a_minor_version_does_not_have_is_illegal_and_what_we_do_not_have_not_supported() {
        assert_eq!(
            compound(1, &[1, 69]).unwrap().steps,
            [Step::Refuse(ILLEGAL, Status::OperationIllegal)],
            "SEEK in 4.1"
        );
        assert_eq!(compound(2, &[1, 50]).unwrap().steps, [Step::Refuse(50, Status::NotSupported)], "LAYOUTGET");
        assert_eq!(compound(2, &[1, 71]).unwrap().steps, [Step::Refuse(71, Status::NotSupported)], "CLONE");
        assert_eq!(compound(2, &[1, 76]).unwrap().steps, [Step::Refuse(ILLEGAL, Status::OperationIllegal)]);
        let refused = |status| Err(BadCompound::Refuse(Bytes::from_static(b"tag"), status));
        assert_eq!(compound(0, &[0]), refused(Status::MinorVersionMismatch));
        assert_eq!(compound(3, &[0]), refused(Status::MinorVersionMismatch));
        assert_eq!(compound(1, &[129]), refused(Status::TooManyOperations));
        assert_eq!(Compound::decode(&mut Decoder::new(Bytes::from_static(&[0; 5]))), Err(BadCompound::Garbage));
    }
}
