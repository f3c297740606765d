//! Attributes to the wire, in the order of their numbers (RFC 8881 §3.3.8, `fattr4`).

use filesystem::engine::Statistics;
use filesystem::layout::file_kind::FileKind;
use filesystem::layout::timestamp::Timestamp;

use super::facts::{FileFacts, ServiceFacts};
use super::{SETTABLE_EXCLUSIVE, number as n, supported};
use crate::v4::bitmap::Bitmap;
use crate::v4::owner::{OwnerKind, Owners};
use crate::v4::status::Status;
use crate::xdr::Encoder;

/// Where a filesystem is (RFC 8881 §11.16, `fs_location4`): the servers, by address, and the path of its root there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// Addresses, as `uaddr` without a port or as names.
    pub servers: Vec<String>,
    /// Path of the root, from the server's own root.
    pub path: Vec<Vec<u8>>,
}

/// What attributes are taken from.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The service.
    pub service: &'a ServiceFacts,
    /// The file.
    pub file: &'a FileFacts,
    /// How full its filesystem is.
    pub statistics: &'a Statistics,
    /// Where it is, if that was asked for.
    pub location: Option<&'a Location>,
    /// Minor version of the protocol.
    pub minor: u32,
    /// For entries of a directory whose attributes could not be had.
    pub error: Option<Status>,
    /// Names of owners.
    pub owners: &'a dyn Owners,
}

/// Change attributes only grow (RFC 7862 §12.2.3, `NFS4_CHANGE_TYPE_IS_MONOTONIC_INCR`).
const CHANGE_IS_MONOTONIC: u32 = 0;
/// Handles are good for ever (RFC 8881 §4.2.3, `FH4_PERSISTENT`).
const HANDLES_PERSIST: u32 = 0;
/// Links that ext4 gives a file.
pub const LINKS_MAX: u32 = 65_000;

/// `nfs_ftype4` of a kind.
pub fn type_number(kind: FileKind) -> u32 {
    match kind {
        FileKind::Regular => 1,
        FileKind::Directory => 2,
        FileKind::BlockDevice => 3,
        FileKind::CharacterDevice => 4,
        FileKind::Symlink => 5,
        FileKind::Socket => 6,
        FileKind::Fifo => 7,
    }
}

/// Puts those of the attributes asked for that there are.
pub fn put(encoder: &mut Encoder, asked: Bitmap, from: Source<'_>) {
    let given = asked.and(supported(from.minor)).and(super::READABLE);
    given.encode(encoder);
    let mut values = Encoder::new();
    for number in given.iter() {
        put_one(&mut values, number, from);
    }
    encoder.opaque(&values.to_bytes());
}

fn put_one(out: &mut Encoder, number: u32, from: Source<'_>) {
    let Source { service, file, statistics, location, minor, error, owners } = from;
    let block = u64::from(statistics.block_size);
    match number {
        n::SUPPORTED_ATTRS => supported(minor).encode(out),
        n::TYPE => out.u32(type_number(file.kind)),
        n::FH_EXPIRE_TYPE => out.u32(HANDLES_PERSIST),
        n::CHANGE => out.u64(file.change),
        n::SIZE => out.u64(file.size),
        n::FSID => {
            out.u64(file.fsid.0);
            out.u64(file.fsid.1);
        }
        n::LEASE_TIME => out.u32(service.lease_seconds),
        n::RDATTR_ERROR => out.u32(error.map_or(0, Status::code)),
        // None: permissions are the mode's, and ACLs those of POSIX, which the protocol does not know.
        n::ACLSUPPORT => out.u32(0),
        n::FILEHANDLE => out.opaque(&file.handle.to_bytes()),
        n::FILEID => out.u64(file.fileid),
        n::MOUNTED_ON_FILEID => out.u64(file.mounted_on),
        n::FILES_AVAIL | n::FILES_FREE => out.u64(u64::from(statistics.files_free)),
        n::FILES_TOTAL => out.u64(u64::from(statistics.files)),
        n::FS_LOCATIONS => put_location(out, location),
        n::MAXFILESIZE => out.u64(service.file_bytes_max),
        n::MAXLINK => out.u32(LINKS_MAX),
        n::MAXNAME => out.u32(statistics.name_bytes_max),
        n::MAXREAD | n::MAXWRITE => out.u64(u64::from(service.io_bytes_max)),
        n::MODE => out.u32(u32::from(file.mode)),
        n::NUMLINKS => out.u32(file.links),
        n::OWNER => put_owner(out, owners, OwnerKind::User, file.user),
        n::OWNER_GROUP => put_owner(out, owners, OwnerKind::Group, file.group),
        n::RAWDEV => {
            out.u32(file.device.map_or(0, |device| device.major));
            out.u32(file.device.map_or(0, |device| device.minor));
        }
        n::SPACE_AVAIL => out.u64(statistics.blocks_available.saturating_mul(block)),
        n::SPACE_FREE => out.u64(statistics.blocks_free.saturating_mul(block)),
        n::SPACE_TOTAL => out.u64(statistics.blocks.saturating_mul(block)),
        n::SPACE_USED => out.u64(file.used),
        n::TIME_ACCESS => put_time(out, file.accessed),
        n::TIME_CREATE => put_time(out, file.created.unwrap_or(file.changed)),
        n::TIME_DELTA => put_time(out, Timestamp { seconds: 0, nanoseconds: 1 }),
        n::TIME_METADATA => put_time(out, file.changed),
        n::TIME_MODIFY => put_time(out, file.modified),
        n::SUPPATTR_EXCLCREAT => SETTABLE_EXCLUSIVE.and(supported(minor)).encode(out),
        n::CHANGE_ATTR_TYPE => out.u32(CHANGE_IS_MONOTONIC),
        n::NAMED_ATTR | n::CASE_INSENSITIVE => out.bool(false),
        // Link and symlink support, unique handles, time that can be set, case kept, chown restricted, one kind of files
        // below, names never cut, extended attributes.
        _ => out.bool(true),
    }
}

/// The name, or the digits of what has none.
fn put_owner(out: &mut Encoder, owners: &dyn Owners, kind: OwnerKind, id: u32) {
    match owners.name_of(kind, id) {
        Some(name) => out.opaque(name.as_bytes()),
        None => out.opaque(id.to_string().as_bytes()),
    }
}

fn put_location(out: &mut Encoder, location: Option<&Location>) {
    let path = |out: &mut Encoder, path: &[Vec<u8>]| out.array(path, |out, component| out.opaque(component));
    match location {
        None => {
            path(out, &[]);
            out.u32(0);
        }
        Some(location) => {
            path(out, &location.path);
            out.u32(1);
            out.array(&location.servers, |out, server| out.opaque(server.as_bytes()));
            path(out, &location.path);
        }
    }
}

/// `nfstime4`.
pub fn put_time(out: &mut Encoder, time: Timestamp) {
    out.i64(time.seconds);
    out.u32(time.nanoseconds);
}
