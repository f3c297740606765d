//! Attributes of files (RFC 1813 §2.6): `fattr3` and what is made of it to the wire, `sattr3` from it.

use filesystem::layout::inode::Inode;
use filesystem::layout::timestamp::Timestamp;

use super::file_handle::FileHandle;
use crate::ids::FileId;
use crate::v4::attributes::encode::type_number;
use crate::v4::attributes::number as n;
use crate::v4::attributes::set::{SetTime, Wishes};
use crate::v4::context::{Context, Halt};
use crate::v4::status::Status;
use crate::xdr::{Decoder, Encoder, XdrError};

/// The bits of a mode that are permissions; some clients send the kind with them.
const PERMISSIONS: u32 = 0o7777;
/// Stands for nobody.
const NO_ID: u32 = u32::MAX;
const NANOSECONDS: u32 = 1_000_000_000;

/// What a change is told from others by (`wcc_attr`): size, time of the content, time of the attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Before {
    size: u64,
    modified: Timestamp,
    changed: Timestamp,
}

impl Before {
    /// Of a file as it is.
    pub fn of(inode: &Inode) -> Self {
        Self { size: inode.size, modified: inode.modified, changed: inode.changed }
    }

    fn put(&self, out: &mut Encoder) {
        out.u64(self.size);
        put_time(out, self.modified);
        put_time(out, self.changed);
    }
}

/// `fattr3`.
pub fn put(context: &Context<'_, '_>, out: &mut Encoder, file: FileId, inode: &Inode) {
    let facts = context.request.service.file(file, inode);
    for word in [type_number(facts.kind), u32::from(facts.mode), facts.links, facts.user, facts.group] {
        out.u32(word);
    }
    out.u64(facts.size);
    out.u64(facts.used);
    out.u32(facts.device.map_or(0, |device| device.major));
    out.u32(facts.device.map_or(0, |device| device.minor));
    out.u64(facts.fsid.0);
    out.u64(facts.fileid);
    for time in [facts.accessed, facts.modified, facts.changed] {
        put_time(out, time);
    }
}

/// `post_op_attr` of a file that is there.
pub fn put_after(context: &Context<'_, '_>, out: &mut Encoder, file: FileId, inode: &Inode) {
    out.bool(true);
    put(context, out, file, inode);
}

/// `post_op_attr` of a file as it is now.
pub fn put_now(context: &mut Context<'_, '_>, out: &mut Encoder, file: FileId) -> Result<(), Halt> {
    let inode = context.files.stat(file.inode)?;
    put_after(context, out, file, &inode);
    Ok(())
}

/// `wcc_data`: as it was before, and as it is now.
pub fn put_change(context: &mut Context<'_, '_>, out: &mut Encoder, file: FileId, before: Before) -> Result<(), Halt> {
    out.bool(true);
    before.put(out);
    put_now(context, out, file)
}

/// `post_op_fh3` of a file that is there.
pub fn put_handle(context: &Context<'_, '_>, out: &mut Encoder, file: FileId) {
    out.bool(true);
    out.opaque(&context.handle_of(file).to_bytes());
}

/// `post_op_attr`, or with `is_change` `wcc_data` where nothing was changed, of whatever a handle stands for; nothing of what it
/// does not. Errors: a block is missing.
pub fn put_unchanged(
    context: &mut Context<'_, '_>,
    out: &mut Encoder,
    handle: &FileHandle,
    is_change: bool,
) -> Result<(), Halt> {
    match handle.file(context) {
        Ok((file, inode)) => {
            if is_change {
                out.bool(true);
                Before::of(&inode).put(out);
            }
            put_after(context, out, file, &inode);
            Ok(())
        }
        Err(Halt::Stop(stop)) => Err(Halt::Stop(stop)),
        Err(_) => {
            if is_change {
                out.bool(false);
            }
            out.bool(false);
            Ok(())
        }
    }
}

/// `nfstime3`: unsigned seconds. What is before 1970 or behind its end is as near as it can be.
pub fn put_time(out: &mut Encoder, time: Timestamp) {
    let (seconds, nanoseconds) = wire_time(time);
    out.u32(seconds);
    out.u32(nanoseconds);
}

/// A time as the wire has it.
pub fn wire_time(time: Timestamp) -> (u32, u32) {
    match u32::try_from(time.seconds) {
        Ok(seconds) => (seconds, time.nanoseconds),
        Err(_) if time.seconds < 0 => (0, 0),
        Err(_) => (u32::MAX, NANOSECONDS - 1),
    }
}

/// `sattr3`. Whether its values can be is said by [`check_wishes`], not by the decoding.
pub fn decode_wishes(decoder: &mut Decoder) -> Result<Wishes, XdrError> {
    let mode = decoder.option(Decoder::u32)?;
    let mut wishes = Wishes {
        mode: mode.map(|mode| (mode & PERMISSIONS) as u16),
        user: decoder.option(Decoder::u32)?,
        group: decoder.option(Decoder::u32)?,
        size: decoder.option(Decoder::u64)?,
        accessed: decode_set_time(decoder)?,
        modified: decode_set_time(decoder)?,
        ..Wishes::default()
    };
    for (number, is_named) in [
        (n::MODE, wishes.mode.is_some()),
        (n::OWNER, wishes.user.is_some()),
        (n::OWNER_GROUP, wishes.group.is_some()),
        (n::SIZE, wishes.size.is_some()),
        (n::TIME_ACCESS_SET, wishes.accessed.is_some()),
        (n::TIME_MODIFY_SET, wishes.modified.is_some()),
    ] {
        if is_named {
            wishes.named.insert(number);
        }
    }
    Ok(wishes)
}

/// Errors: [`Status::Invalid`] for values that cannot be.
pub fn check_wishes(wishes: &Wishes) -> Result<(), Status> {
    let is_time = |time: Option<SetTime>| !matches!(time, Some(SetTime::To(time)) if time.nanoseconds >= NANOSECONDS);
    let is_id = |id: Option<u32>| id != Some(NO_ID);
    match is_time(wishes.accessed) && is_time(wishes.modified) && is_id(wishes.user) && is_id(wishes.group) {
        true => Ok(()),
        false => Err(Status::Invalid),
    }
}

/// `nfstime3`.
pub fn decode_time(decoder: &mut Decoder) -> Result<Timestamp, XdrError> {
    Ok(Timestamp { seconds: i64::from(decoder.u32()?), nanoseconds: decoder.u32()? })
}

fn decode_set_time(decoder: &mut Decoder) -> Result<Option<SetTime>, XdrError> {
    match decoder.u32()? {
        0 => Ok(None),
        1 => Ok(Some(SetTime::Now)),
        2 => decode_time(decoder).map(|time| Some(SetTime::To(time))),
        value => Err(XdrError::BadValue { of: "time_how", value }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_that_cannot_be_told_are_as_near_as_they_can_be() {
        let at = |seconds| wire_time(Timestamp { seconds, nanoseconds: 5 });
        assert_eq!(at(7), (7, 5));
        assert_eq!(at(-1), (0, 0));
        assert_eq!(at(1 << 32), (u32::MAX, NANOSECONDS - 1));
    }

    #[test]
    fn wishes_are_taken_as_they_come_and_looked_at_later() {
        let mut out = Encoder::new();
        out.option(Some(0o100_644), Encoder::u32);
        out.option(Some(NO_ID), Encoder::u32);
        out.bool(false);
        out.option(Some(9), Encoder::u64);
        out.u32(1);
        out.u32(2);
        out.u32(6);
        out.u32(NANOSECONDS);
        let bytes = out.to_bytes();
        let wishes = decode_wishes(&mut Decoder::new(bytes.clone())).unwrap();
        assert_eq!((wishes.mode, wishes.user, wishes.group, wishes.size), (Some(0o644), Some(NO_ID), None, Some(9)));
        assert_eq!(wishes.accessed, Some(SetTime::Now));
        assert_eq!(wishes.modified, Some(SetTime::To(Timestamp { seconds: 6, nanoseconds: NANOSECONDS })));
        assert_eq!(wishes.named.iter().count(), 5);
        assert_eq!(check_wishes(&wishes), Err(Status::Invalid));
        assert_eq!(check_wishes(&Wishes { user: None, ..wishes.clone() }), Err(Status::Invalid), "the time");
        assert_eq!(check_wishes(&Wishes { user: None, modified: None, ..wishes }), Ok(()));
        for end in 0..bytes.len() {
            assert!(decode_wishes(&mut Decoder::new(bytes.slice(..end))).is_err(), "cut at {end}");
        }
        let mut wrong = bytes.to_vec();
        wrong[3] = 2;
        assert!(decode_wishes(&mut Decoder::new(wrong.into())).is_err(), "no boolean");
    }
}
