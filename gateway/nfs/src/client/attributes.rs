//! Attributes as a client asks for and sets them (RFC 8881 §3.3.8, `fattr4`). Of the server's code it uses only their numbers.

use bytes::Bytes;
use filesystem::layout::file_kind::FileKind;
use filesystem::layout::timestamp::Timestamp;

use super::Handle;
use crate::v4::attributes::number as n;
use crate::v4::bitmap::Bitmap;
use crate::v4::status::Status;
use crate::xdr::{Decoder, Encoder, XdrError};

/// Bytes of one file's values that are taken; a list of servers is the longest of them.
const VALUES_BYTES_MAX: usize = 64 << 10;
const OWNER_BYTES_MAX: usize = 1024;
/// Servers, and components of a path, in one list.
const LOCATIONS_MAX: usize = 256;
const COMPONENT_BYTES_MAX: usize = 1024;
const NANOSECONDS: u32 = 1_000_000_000;

/// What is asked for to show a file: what `stat` gives.
pub const OF_A_FILE: Bitmap = Bitmap::of(&[
    n::TYPE,
    n::CHANGE,
    n::SIZE,
    n::FSID,
    n::FILEID,
    n::MODE,
    n::NUMLINKS,
    n::OWNER,
    n::OWNER_GROUP,
    n::SPACE_USED,
    n::TIME_ACCESS,
    n::TIME_METADATA,
    n::TIME_MODIFY,
    n::MOUNTED_ON_FILEID,
]);

/// Attributes and their values, not looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawAttributes {
    /// Which.
    pub named: Bitmap,
    /// Their values, in the order of their numbers.
    pub values: Bytes,
}

/// A filesystem is there too (`fs_location4`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// Addresses or names.
    pub servers: Vec<Bytes>,
    /// Path of its root there.
    pub path: Vec<Bytes>,
}

/// Attributes by their values: those that the server gave, no others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are the protocol's own names")]
pub struct Attributes {
    /// Which were given.
    pub named: Bitmap,
    pub supported: Option<Bitmap>,
    pub settable_exclusive: Option<Bitmap>,
    pub kind: Option<FileKind>,
    pub change: Option<u64>,
    /// Bytes.
    pub size: Option<u64>,
    pub fsid: Option<(u64, u64)>,
    pub lease_seconds: Option<u32>,
    /// Why there is nothing else of an entry of a directory.
    pub error: Option<Status>,
    pub handle: Option<Handle>,
    pub fileid: Option<u64>,
    pub mounted_on_fileid: Option<u64>,
    pub files_available: Option<u64>,
    pub files_free: Option<u64>,
    pub files_total: Option<u64>,
    /// Path of the filesystem's root here, and where it is.
    pub locations: Option<(Vec<Bytes>, Vec<Location>)>,
    /// Bytes.
    pub file_bytes_max: Option<u64>,
    pub links_max: Option<u32>,
    pub name_bytes_max: Option<u32>,
    /// Bytes of one READ.
    pub read_bytes_max: Option<u64>,
    /// Bytes of one WRITE.
    pub write_bytes_max: Option<u64>,
    pub mode: Option<u32>,
    pub links: Option<u32>,
    pub owner: Option<Bytes>,
    pub owner_group: Option<Bytes>,
    /// Major and minor number.
    pub device: Option<(u32, u32)>,
    /// Bytes, as the next three.
    pub space_available: Option<u64>,
    pub space_free: Option<u64>,
    pub space_total: Option<u64>,
    pub space_used: Option<u64>,
    pub accessed: Option<Timestamp>,
    pub created: Option<Timestamp>,
    pub time_delta: Option<Timestamp>,
    pub changed: Option<Timestamp>,
    pub modified: Option<Timestamp>,
    pub change_type: Option<u32>,
    /// Those that are true or false, and are true.
    pub flags: Bitmap,
}

/// A time that is to be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeToSet {
    /// That of the server.
    Now,
    /// This one.
    To(Timestamp),
}

/// What is to be set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttributesToSet {
    /// Bytes of the file.
    pub size: Option<u64>,
    /// The lower twelve bits.
    pub mode: Option<u32>,
    /// With a mode: bits that a new file does not get where its directory has no default ACL (RFC 8275 §6).
    pub umask: Option<u32>,
    /// Owner: digits, or a name with a domain.
    pub owner: Option<Bytes>,
    /// Group.
    pub owner_group: Option<Bytes>,
    /// Last access.
    pub accessed: Option<TimeToSet>,
    /// Last change of the content.
    pub modified: Option<TimeToSet>,
}

impl RawAttributes {
    /// From the wire. Errors: attributes beyond all that can have been asked for.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        Ok(Self { named: take_bitmap(decoder)?, values: decoder.opaque(VALUES_BYTES_MAX)? })
    }

    /// To the wire.
    pub fn encode(&self, out: &mut Encoder) {
        self.named.encode(out);
        out.opaque(&self.values);
    }

    /// Their values. Errors: an attribute that we do not know, since nobody could say how long it is; values that do not fit.
    pub fn read(&self) -> Result<Attributes, XdrError> {
        let mut values = Decoder::new(self.values.clone());
        let mut attributes = Attributes { named: self.named, ..Attributes::default() };
        for number in self.named.iter() {
            attributes.take(number, &mut values)?;
        }
        values.finish()?;
        Ok(attributes)
    }
}

/// `bitmap4` of what was asked for or set.
pub(super) fn take_bitmap(decoder: &mut Decoder) -> Result<Bitmap, XdrError> {
    match Bitmap::decode(decoder)? {
        (bitmap, false) => Ok(bitmap),
        (_, true) => Err(XdrError::BadValue { of: "attribute", value: u32::MAX }),
    }
}

impl Attributes {
    fn take(&mut self, number: u32, values: &mut Decoder) -> Result<(), XdrError> {
        match number {
            n::SUPPORTED_ATTRS => self.supported = Some(take_bitmap(values)?),
            n::SUPPATTR_EXCLCREAT => self.settable_exclusive = Some(take_bitmap(values)?),
            n::TYPE => self.kind = Some(take_kind(values)?),
            n::FH_EXPIRE_TYPE | n::ACLSUPPORT => drop(values.u32()?),
            n::CHANGE => self.change = Some(values.u64()?),
            n::SIZE => self.size = Some(values.u64()?),
            n::FSID => self.fsid = Some((values.u64()?, values.u64()?)),
            n::LEASE_TIME => self.lease_seconds = Some(values.u32()?),
            n::RDATTR_ERROR => self.error = Status::from_code(values.u32()?),
            n::FILEHANDLE => self.handle = Some(Handle::decode(values)?),
            n::FILEID => self.fileid = Some(values.u64()?),
            n::MOUNTED_ON_FILEID => self.mounted_on_fileid = Some(values.u64()?),
            n::FILES_AVAIL => self.files_available = Some(values.u64()?),
            n::FILES_FREE => self.files_free = Some(values.u64()?),
            n::FILES_TOTAL => self.files_total = Some(values.u64()?),
            n::FS_LOCATIONS => self.locations = Some(take_locations(values)?),
            n::MAXFILESIZE => self.file_bytes_max = Some(values.u64()?),
            n::MAXLINK => self.links_max = Some(values.u32()?),
            n::MAXNAME => self.name_bytes_max = Some(values.u32()?),
            n::MAXREAD => self.read_bytes_max = Some(values.u64()?),
            n::MAXWRITE => self.write_bytes_max = Some(values.u64()?),
            n::MODE => self.mode = Some(values.u32()?),
            n::NUMLINKS => self.links = Some(values.u32()?),
            n::OWNER => self.owner = Some(values.opaque(OWNER_BYTES_MAX)?),
            n::OWNER_GROUP => self.owner_group = Some(values.opaque(OWNER_BYTES_MAX)?),
            n::RAWDEV => self.device = Some((values.u32()?, values.u32()?)),
            n::SPACE_AVAIL => self.space_available = Some(values.u64()?),
            n::SPACE_FREE => self.space_free = Some(values.u64()?),
            n::SPACE_TOTAL => self.space_total = Some(values.u64()?),
            n::SPACE_USED => self.space_used = Some(values.u64()?),
            n::TIME_ACCESS => self.accessed = Some(take_time(values)?),
            n::TIME_CREATE => self.created = Some(take_time(values)?),
            n::TIME_DELTA => self.time_delta = Some(take_time(values)?),
            n::TIME_METADATA => self.changed = Some(take_time(values)?),
            n::TIME_MODIFY => self.modified = Some(take_time(values)?),
            n::CHANGE_ATTR_TYPE => self.change_type = Some(values.u32()?),
            _ if FLAGS.contains(number) => {
                if values.bool()? {
                    self.flags.insert(number);
                }
            }
            value => return Err(XdrError::BadValue { of: "attribute", value }),
        }
        Ok(())
    }
}

/// Attributes that are true or false.
const FLAGS: Bitmap = Bitmap::of(&[
    n::LINK_SUPPORT,
    n::SYMLINK_SUPPORT,
    n::NAMED_ATTR,
    n::UNIQUE_HANDLES,
    n::CANSETTIME,
    n::CASE_INSENSITIVE,
    n::CASE_PRESERVING,
    n::CHOWN_RESTRICTED,
    n::HOMOGENEOUS,
    n::NO_TRUNC,
    n::XATTR_SUPPORT,
]);

/// `nfs_ftype4`.
fn take_kind(values: &mut Decoder) -> Result<FileKind, XdrError> {
    Ok(match values.u32()? {
        1 => FileKind::Regular,
        2 => FileKind::Directory,
        3 => FileKind::BlockDevice,
        4 => FileKind::CharacterDevice,
        5 => FileKind::Symlink,
        6 => FileKind::Socket,
        7 => FileKind::Fifo,
        value => return Err(XdrError::BadValue { of: "nfs_ftype4", value }),
    })
}

/// `nfstime4`.
fn take_time(values: &mut Decoder) -> Result<Timestamp, XdrError> {
    let (seconds, nanoseconds) = (values.i64()?, values.u32()?);
    match nanoseconds < NANOSECONDS {
        true => Ok(Timestamp { seconds, nanoseconds }),
        false => Err(XdrError::BadValue { of: "nfstime4", value: nanoseconds }),
    }
}

/// `fs_locations4`.
fn take_locations(values: &mut Decoder) -> Result<(Vec<Bytes>, Vec<Location>), XdrError> {
    let names = |values: &mut Decoder| values.array(LOCATIONS_MAX, |values| values.opaque(COMPONENT_BYTES_MAX));
    let root = names(values)?;
    let all = values.array(LOCATIONS_MAX, |values| Ok(Location { servers: names(values)?, path: names(values)? }))?;
    Ok((root, all))
}

impl AttributesToSet {
    /// Only permissions.
    pub fn mode(mode: u32) -> Self {
        Self { mode: Some(mode), ..Self::default() }
    }

    /// Only a length.
    pub fn size(size: u64) -> Self {
        Self { size: Some(size), ..Self::default() }
    }

    /// As it goes over the wire.
    pub fn to_raw(&self) -> RawAttributes {
        let (mut named, mut out) = (Bitmap::default(), Encoder::new());
        if let Some(size) = self.size {
            named.insert(n::SIZE);
            out.u64(size);
        }
        if let (Some(mode), None) = (self.mode, self.umask) {
            named.insert(n::MODE);
            out.u32(mode);
        }
        for (number, name) in [(n::OWNER, &self.owner), (n::OWNER_GROUP, &self.owner_group)] {
            if let Some(name) = name {
                named.insert(number);
                out.opaque(name);
            }
        }
        for (number, time) in [(n::TIME_ACCESS_SET, self.accessed), (n::TIME_MODIFY_SET, self.modified)] {
            match time {
                None => continue,
                Some(TimeToSet::Now) => out.u32(0),
                Some(TimeToSet::To(time)) => {
                    out.u32(1);
                    out.i64(time.seconds);
                    out.u32(time.nanoseconds);
                }
            }
            named.insert(number);
        }
        if let Some(umask) = self.umask {
            named.insert(n::MODE_UMASK);
            out.u32(self.mode.unwrap_or(0o777));
            out.u32(umask);
        }
        RawAttributes { named, values: out.to_bytes() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_goes_in_the_order_of_its_numbers() {
        let set = AttributesToSet {
            size: Some(5),
            mode: Some(0o644),
            owner: Some(Bytes::from_static(b"7")),
            modified: Some(TimeToSet::To(Timestamp { seconds: -1, nanoseconds: 2 })),
            accessed: Some(TimeToSet::Now),
            ..AttributesToSet::default()
        };
        let mut out = Encoder::new();
        set.to_raw().encode(&mut out);
        let expected = [
            // Two words: size is bit 4 of the first; mode 33, owner 36, the times 48 and 54 are in the second.
            &[0, 0, 0, 2, 0, 0, 0, 0x10, 0, 0x41, 0, 0x12][..],
            &[0, 0, 0, 40],
            &[0, 0, 0, 0, 0, 0, 0, 5],
            &[0, 0, 1, 0xa4],
            &[0, 0, 0, 1, b'7', 0, 0, 0],
            &[0, 0, 0, 0],
            &[0, 0, 0, 1, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 2],
        ];
        assert_eq!(out.to_bytes(), expected.concat());
    }

    #[test]
    fn a_mode_with_a_umask_is_one_attribute() {
        let set = AttributesToSet { mode: Some(0o666), umask: Some(0o22), ..AttributesToSet::default() }.to_raw();
        assert_eq!(set.named, Bitmap::of(&[n::MODE_UMASK]));
        assert_eq!(set.values, &[0, 0, 1, 0xb6, 0, 0, 0, 0o22][..]);
    }

    #[test]
    fn values_are_read_by_their_numbers() {
        let values = [
            &[0, 0, 0, 2][..],
            &[0, 0, 0, 0, 0, 0, 0, 9],
            &[0, 0, 0, 1],
            &[0, 0, 0, 3, b'1', b'0', b'0', 0],
            &[255, 255, 255, 255, 255, 255, 255, 254, 0, 0, 0, 7],
        ]
        .concat();
        let named = Bitmap::of(&[n::TYPE, n::SIZE, n::LINK_SUPPORT, n::OWNER, n::TIME_MODIFY]);
        let read = RawAttributes { named, values: values.clone().into() }.read().unwrap();
        assert_eq!((read.kind, read.size), (Some(FileKind::Directory), Some(9)));
        assert_eq!(read.flags, Bitmap::of(&[n::LINK_SUPPORT]));
        assert_eq!(read.owner.as_deref(), Some(&b"100"[..]));
        assert_eq!(read.modified, Some(Timestamp { seconds: -2, nanoseconds: 7 }));
        let short = RawAttributes { named, values: values[..values.len() - 4].to_vec().into() };
        assert_eq!(short.read(), Err(XdrError::Short));
        let long = RawAttributes { named: Bitmap::of(&[n::TYPE]), values: values.into() };
        assert!(matches!(long.read(), Err(XdrError::Trailing(_))));
    }

    #[test]
    fn attributes_that_nobody_knows_are_refused() {
        let unknown = RawAttributes { named: Bitmap::of(&[12]), values: Bytes::new() };
        assert_eq!(unknown.read(), Err(XdrError::BadValue { of: "attribute", value: 12 }));
        let beyond = Bytes::from_static(&[0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]);
        assert!(RawAttributes::decode(&mut Decoder::new(beyond)).is_err());
    }
}
