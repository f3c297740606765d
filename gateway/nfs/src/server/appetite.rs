//! How many bytes a request may be answered with, as far as one can tell before it is done: what is set aside for its reply.

use bytes::Bytes;

use crate::rpc::call::Call;
use crate::state::session::MESSAGE_BYTES_MAX;
use crate::v4::compound::{Compound, Operation, Step};
use crate::xdr::Decoder;

const NFS_PROGRAM: u32 = 100_003;
/// Of a reply without anything large in it.
const SMALL_BYTES: usize = 4 << 10;
/// Of one that has a link's target, a list of attributes or a value in it.
const MIDDLE_BYTES: usize = 64 << 10;
/// Of the largest: what a session grants, which NFSv3 does not exceed.
pub(super) const REPLY_BYTES_MAX: usize = MESSAGE_BYTES_MAX as usize + SMALL_BYTES;

/// Bytes to set aside for the answer to a message.
pub(super) fn reply_bytes(message: &Bytes) -> usize {
    let mut decoder = Decoder::new(message.clone());
    let Ok(call) = Call::decode(&mut decoder) else { return SMALL_BYTES };
    let wanted = match (call.program, call.version, call.procedure) {
        (NFS_PROGRAM, 4, 1) => of_compound(&mut decoder),
        (NFS_PROGRAM, 3, 6) => of_v3_read(&mut decoder),
        (NFS_PROGRAM, 3, 16 | 17) => REPLY_BYTES_MAX,
        (NFS_PROGRAM, ..) => 0,
        _ => MIDDLE_BYTES,
    };
    SMALL_BYTES.saturating_add(wanted).min(REPLY_BYTES_MAX)
}

fn of_v3_read(decoder: &mut Decoder) -> usize {
    match crate::v3::procedures::read::Arguments::decode(decoder) {
        Ok(arguments) => arguments.length as usize,
        Err(_) => 0,
    }
}

fn of_compound(decoder: &mut Decoder) -> usize {
    let Ok(compound) = Compound::decode(decoder) else { return 0 };
    let of_step = |step: &Step| match step {
        Step::Do(Operation::Read(arguments) | Operation::ReadPlus(arguments)) => arguments.length as usize,
        Step::Do(Operation::ReadDir(arguments)) => arguments.bytes_max as usize,
        Step::Do(Operation::ListXattrs(_) | Operation::GetXattr(_)) => MIDDLE_BYTES,
        // The replay of an earlier request: not known, and small.
        _ => 256,
    };
    compound.steps.iter().map(of_step).fold(0, usize::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::auth::Credential;
    use crate::xdr::Encoder;

    fn call(version: u32, procedure: u32, arguments: &[u8]) -> Bytes {
        let mut out = Encoder::new();
        Call { xid: 1, program: NFS_PROGRAM, version, procedure, credential: Credential::None }.encode(&mut out);
        out.encoded(arguments);
        out.to_bytes()
    }

    #[test]
    fn what_is_asked_for_is_set_aside_and_never_more_than_the_largest_reply() {
        let read = |length: u32| {
            let mut out = Encoder::new();
            out.opaque(b"");
            [2, 1, 25, 0, 0, 0, 0, 0, 0, length].iter().for_each(|word| out.u32(*word));
            reply_bytes(&call(4, 1, &out.to_bytes()))
        };
        assert!((SMALL_BYTES..2 * SMALL_BYTES).contains(&read(100)));
        assert!(read(1 << 20) > 1 << 20);
        assert_eq!(read(u32::MAX), REPLY_BYTES_MAX);
        assert_eq!(reply_bytes(&call(3, 17, &[])), REPLY_BYTES_MAX);
        assert_eq!(reply_bytes(&call(3, 1, &[])), SMALL_BYTES);
        assert_eq!(reply_bytes(&Bytes::from_static(b"?")), SMALL_BYTES);
    }
}
