//! Attributes from the wire: what a client wants them to be.

use bytes::Bytes;
use filesystem::layout::timestamp::Timestamp;

use super::{READABLE, SETTABLE, number as n};
use crate::v4::bitmap::Bitmap;
use crate::v4::owner::{self, OwnerKind, Owners};
use crate::v4::status::Status;
use crate::xdr::{Decoder, XdrError};

/// Bytes of values that are taken; ACLs, which are not, would be the longest.
const VALUES_BYTES_MAX: usize = 4096;
/// The longest name of an owner.
const OWNER_BYTES_MAX: usize = 1024;
const NANOSECONDS: u32 = 1_000_000_000;

/// A time that is to be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// This one.
    To(Timestamp),
    /// That of the server.
    Now,
}

/// What is to be set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// All that was named.
    pub named: Bitmap,
    /// Bytes of the file.
    pub size: Option<u64>,
    /// The lower twelve bits.
    pub mode: Option<u16>,
    /// With the mode of a new file: a umask that counts only where the directory has no default ACL (RFC 8275 §6).
    pub umask: Option<u16>,
    /// Owner.
    pub user: Option<u32>,
    /// Group.
    pub group: Option<u32>,
    /// Last access.
    pub accessed: Option<SetTime>,
    /// Last change of the content.
    pub modified: Option<SetTime>,
}

/// `fattr4` before it is understood: which attributes, and their values. What they are worth is said by the operation, not by
/// the decoding of its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    asked: Bitmap,
    beyond: bool,
    values: Bytes,
}

impl Unread {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        let (asked, beyond) = Bitmap::decode(decoder)?;
        Ok(Self { asked, beyond, values: decoder.opaque(VALUES_BYTES_MAX)? })
    }

    /// What is to be set. Errors: [`Status::AttributeNotSupported`]; [`Status::Invalid`] for what can only be read;
    /// [`Status::BadXdr`]; [`Status::BadOwner`].
    pub fn wishes(&self, owners: &dyn Owners) -> Result<Wishes, Status> {
        let unknown = self.asked.without(READABLE.or(SETTABLE));
        if self.beyond || !unknown.is_empty() {
            return Err(Status::AttributeNotSupported);
        }
        if !self.asked.without(SETTABLE).is_empty() {
            return Err(Status::Invalid);
        }
        if self.asked.contains(n::MODE) && self.asked.contains(n::MODE_UMASK) {
            // RFC 8275 §6.
            return Err(Status::Invalid);
        }
        let mut values = Decoder::new(self.values.clone());
        let mut wishes = Wishes { named: self.asked, ..Wishes::default() };
        for number in self.asked.iter() {
            take(&mut values, number, owners, &mut wishes)?;
        }
        values.finish()?;
        Ok(wishes)
    }

    /// The attributes and their values as they came, for VERIFY and NVERIFY.
    pub fn raw(&self) -> (Bitmap, bool, &Bytes) {
        (self.asked, self.beyond, &self.values)
    }
}

fn take(values: &mut Decoder, number: u32, owners: &dyn Owners, wishes: &mut Wishes) -> Result<(), Status> {
    match number {
        n::SIZE => wishes.size = Some(values.u64()?),
        n::MODE => wishes.mode = Some(mode(values.u32()?)?),
        n::OWNER => wishes.user = Some(owner::id(owners, OwnerKind::User, &values.opaque(OWNER_BYTES_MAX)?)?),
        n::OWNER_GROUP => wishes.group = Some(owner::id(owners, OwnerKind::Group, &values.opaque(OWNER_BYTES_MAX)?)?),
        n::TIME_ACCESS_SET => wishes.accessed = Some(time(values)?),
        n::TIME_MODIFY_SET => wishes.modified = Some(time(values)?),
        n::MODE_UMASK => {
            wishes.mode = Some(mode(values.u32()?)?);
            wishes.umask = Some(mode(values.u32()?)? & 0o777);
        }
        _ => return Err(Status::AttributeNotSupported),
    }
    Ok(())
}

fn mode(bits: u32) -> Result<u16, Status> {
    u16::try_from(bits).ok().filter(|bits| *bits <= 0o7777).ok_or(Status::Invalid)
}

fn time(values: &mut Decoder) -> Result<SetTime, Status> {
    match values.u32()? {
        0 => Ok(SetTime::Now),
        1 => {
            let (seconds, nanoseconds) = (values.i64()?, values.u32()?);
            match nanoseconds < NANOSECONDS {
                true => Ok(SetTime::To(Timestamp { seconds, nanoseconds })),
                false => Err(Status::Invalid),
            }
        }
        _ => Err(Status::BadXdr),
    }
}

impl SetTime {
    /// The time that is meant.
    pub fn at(self, now: Timestamp) -> Timestamp {
        match self {
            Self::To(time) => time,
            Self::Now => now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v4::owner::Numbers;
    use crate::xdr::Encoder;

    /// As a client sends them.
    impl Wishes {
        fn encode(&self, encoder: &mut Encoder) {
            self.named.encode(encoder);
            let mut values = Encoder::new();
            for number in self.named.iter() {
                match number {
                    n::SIZE => values.u64(self.size.unwrap_or(0)),
                    n::MODE => values.u32(u32::from(self.mode.unwrap_or(0))),
                    n::OWNER => values.opaque(self.user.unwrap_or(0).to_string().as_bytes()),
                    n::OWNER_GROUP => values.opaque(self.group.unwrap_or(0).to_string().as_bytes()),
                    n::TIME_ACCESS_SET => put_set_time(&mut values, self.accessed),
                    n::TIME_MODIFY_SET => put_set_time(&mut values, self.modified),
                    n::MODE_UMASK => {
                        values.u32(u32::from(self.mode.unwrap_or(0)));
                        values.u32(u32::from(self.umask.unwrap_or(0)));
                    }
                    _ => {}
                }
            }
            encoder.opaque(&values.to_bytes());
        }
    }

    fn put_set_time(values: &mut Encoder, time: Option<SetTime>) {
        match time {
            Some(SetTime::To(time)) => {
                values.u32(1);
                crate::v4::attributes::encode::put_time(values, time);
            }
            _ => values.u32(0),
        }
    }

    fn unread(numbers: &[u32], values: impl FnOnce(&mut Encoder)) -> Unread {
        let mut encoder = Encoder::new();
        values(&mut encoder);
        Unread { asked: Bitmap::of(numbers), beyond: false, values: encoder.to_bytes() }
    }

    #[test]
    fn wishes_come_back() {
        let wishes = Wishes {
            named: Bitmap::of(&[n::SIZE, n::OWNER, n::TIME_ACCESS_SET, n::TIME_MODIFY_SET, n::MODE_UMASK]),
            size: Some(7),
            mode: Some(0o644),
            umask: Some(0o22),
            user: Some(1000),
            group: None,
            accessed: Some(SetTime::Now),
            modified: Some(SetTime::To(Timestamp { seconds: -5, nanoseconds: 6 })),
        };
        let mut encoder = Encoder::new();
        wishes.encode(&mut encoder);
        let mut decoder = Decoder::new(encoder.to_bytes());
        assert_eq!(Unread::decode(&mut decoder).unwrap().wishes(&Numbers), Ok(wishes));
        assert_eq!(decoder.finish(), Ok(()));
    }

    #[test]
    fn each_wrong_wish_gets_its_answer() {
        assert_eq!(unread(&[n::FILEID], |_| ()).wishes(&Numbers), Err(Status::Invalid), "only read");
        assert_eq!(unread(&[12], |_| ()).wishes(&Numbers), Err(Status::AttributeNotSupported), "ACL");
        assert_eq!(unread(&[n::MODE, n::MODE_UMASK], |_| ()).wishes(&Numbers), Err(Status::Invalid));
        assert_eq!(unread(&[n::MODE], |out| out.u32(0o10000)).wishes(&Numbers), Err(Status::Invalid));
        assert_eq!(unread(&[n::SIZE], |out| out.u32(1)).wishes(&Numbers), Err(Status::BadXdr));
        assert_eq!(
            unread(&[n::MODE], |out| out.u64(1)).wishes(&Numbers),
            Err(Status::BadXdr),
            "more than there should be"
        );
        for name in [&b"root@localdomain"[..], b"", b"-1", b"4294967295", b"99999999999"] {
            assert_eq!(unread(&[n::OWNER], |out| out.opaque(name)).wishes(&Numbers), Err(Status::BadOwner), "{name:?}");
        }
    }
}
