//! READDIR (RFC 8881 §18.23): names in the current directory, with attributes.

use filesystem::directory::Cookie;
use filesystem::units::ROOT_INODE;

use crate::access::Wanted;
use crate::v4::attributes::encode::{Source, put};
use crate::v4::attributes::facts::NOTHING_STORED;
use crate::v4::attributes::number;
use crate::v4::bitmap::Bitmap;
use crate::v4::context::{Context, Halt, Target, expect_directory};
use crate::v4::listing::{Room, put_entries};
use crate::v4::status::Status;
use crate::xdr::{Decoder, Encoder, XdrError};

/// Cookies that a client makes up itself (RFC 8881 §18.23.3).
const RESERVED_COOKIES: std::ops::RangeInclusive<u64> = 1..=2;
/// Positions are the same for ever, so there is nothing to verify.
const VERIFIER: [u8; 8] = [0; 8];
/// Verifier, and the two words behind the last entry.
const FIXED_BYTES: usize = 8 + 4 + 4;
/// What may be asked of the root of a filesystem that is elsewhere.
const OF_ABSENT: Bitmap =
    Bitmap::of(&[number::FSID, number::FS_LOCATIONS, number::MOUNTED_ON_FILEID, number::RDATTR_ERROR]);

/// Which names are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// Behind this position.
    pub cookie: u64,
    /// Bytes of the result.
    pub bytes_max: u32,
    /// Attributes of each.
    pub attributes: Bitmap,
}

impl Arguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        let cookie = decoder.u64()?;
        let _verifier: [u8; 8] = decoder.fixed()?;
        let _names_bytes_max = decoder.u32()?;
        Ok(Self { cookie, bytes_max: decoder.u32()?, attributes: Bitmap::decode(decoder)?.0 })
    }
}

/// Puts as many entries as fit; names at one position are all in one reply. Errors: [`Status::TooSmall`], [`Status::BadCookie`].
pub fn run(context: &mut Context<'_, '_>, arguments: &Arguments, out: &mut Encoder) -> Result<(), Halt> {
    let target = context.target()?;
    if RESERVED_COOKIES.contains(&arguments.cookie) || arguments.cookie >= 1 << 63 {
        return Err(Status::BadCookie.into());
    }
    let room = context.request.reply_bytes_max.saturating_sub(out.len());
    let room = room.min(arguments.bytes_max as usize);
    if room < FIXED_BYTES {
        return Err(Status::TooSmall.into());
    }
    let end = out.len() + room - 2 * 4;
    out.fixed(&VERIFIER);
    let (count, at_end) = match target {
        Target::Root => put_volumes(context, arguments, out, end)?,
        Target::File(directory, inode) => {
            expect_directory(&inode)?;
            context.expect_permitted(directory, &inode, Wanted::Read)?;
            // From the start the client sees neither `.` nor `..`.
            let after = if arguments.cookie == 0 { Cookie::DOT_DOT } else { Cookie(arguments.cookie) };
            let room = Room { end, name_bytes_max: usize::MAX };
            let listed = put_entries(context, (directory, after), room, out, |context, entry, out| {
                put_entry(context, &entry.name, entry.inode, (entry.cookie, arguments.attributes), out)
            })?;
            (listed.count, listed.at_end)
        }
    };
    if count == 0 && !at_end {
        return Err(Status::TooSmall.into());
    }
    out.bool(false);
    out.bool(at_end);
    Ok(())
}

fn put_entry(
    context: &mut Context<'_, '_>,
    name: &[u8],
    inode: filesystem::InodeNumber,
    (cookie, attributes): (Cookie, Bitmap),
    out: &mut Encoder,
) -> Result<(), Halt> {
    let request = context.request;
    let (service, statistics, minor, owners) = (request.service, request.statistics, request.minor, request.owners);
    out.bool(true);
    out.u64(cookie.0);
    out.opaque(name);
    match context.identify(inode) {
        Ok((file, inode)) => {
            let file = service.file(file, &inode);
            put(
                out,
                attributes,
                Source { service, file: &file, statistics, location: None, minor, error: None, owners },
            );
        }
        // The name is told all the same, if the client wants to know what is wrong with it.
        Err(Halt::Status(status)) if attributes.contains(number::RDATTR_ERROR) => {
            let file = service.root();
            let asked = Bitmap::of(&[number::RDATTR_ERROR]);
            let source =
                Source { service, file: &file, statistics, location: None, minor, error: Some(status), owners };
            put(out, asked, source);
        }
        Err(halt) => return Err(halt),
    }
    Ok(())
}

/// The volumes, each at a position by its number.
fn put_volumes(
    context: &mut Context<'_, '_>,
    arguments: &Arguments,
    out: &mut Encoder,
    end: usize,
) -> Result<(usize, bool), Halt> {
    let request = context.request;
    let (service, minor, owners) = (request.service, request.minor, request.owners);
    let mut volumes: Vec<_> =
        request.others.get().iter().map(|other| (other.volume, &other.name, Some(other))).collect();
    volumes.push((service.volume, &service.name, None));
    volumes.sort_unstable_by_key(|(volume, ..)| position(*volume));
    let mut count = 0;
    for (volume, name, other) in volumes {
        if position(volume) <= arguments.cookie {
            continue;
        }
        let mark = out.mark();
        out.bool(true);
        out.u64(position(volume));
        out.opaque(name);
        match other {
            None => {
                let (root, inode) = context.identify(ROOT_INODE)?;
                let file = service.file(root, &inode);
                let statistics = request.statistics;
                let source = Source { service, file: &file, statistics, location: None, minor, error: None, owners };
                put(out, arguments.attributes, source);
            }
            Some(other) => {
                let file = service.referral(volume);
                let (location, error) = (Some(&other.location), Some(Status::Moved));
                let source =
                    Source { service, file: &file, statistics: &NOTHING_STORED, location, minor, error, owners };
                put(out, arguments.attributes.and(OF_ABSENT), source);
            }
        }
        if out.len() > end {
            out.truncate(mark);
            return Ok((count, false));
        }
        count += 1;
    }
    Ok((count, true))
}

/// Where a volume stands in the directory above: never where a client puts its own names.
fn position(volume: u64) -> u64 {
    (volume & (u64::MAX >> 1)).max(*RESERVED_COOKIES.end() + 1)
}
