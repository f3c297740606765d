//! FSSTAT, FSINFO and PATHCONF (RFC 1813 §3.3.18 to §3.3.20): what a filesystem has and can.

use filesystem::layout::timestamp::Timestamp;

use crate::v3::attributes::{put_after, put_time};
use crate::v3::file_handle::FileHandle;
use crate::v4::attributes::encode::LINKS_MAX;
use crate::v4::context::{Context, Halt};
use crate::xdr::{Decoder, Encoder, XdrError};

/// `FSF3_LINK`, `FSF3_SYMLINK`, `FSF3_HOMOGENEOUS`, `FSF3_CANSETTIME`.
const PROPERTIES: u32 = 0x01 | 0x02 | 0x08 | 0x10;
/// What READ and WRITE should be multiples of.
const IO_MULTIPLE: u32 = 4096;
/// What READDIR should ask for.
const DIRECTORY_BYTES: u32 = 64 << 10;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// FSSTAT: how full it is.
    Usage,
    /// FSINFO: sizes of requests, and what it can.
    Limits,
    /// PATHCONF: names and links.
    Paths,
}

/// Of which filesystem, and what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// A file of it.
    pub file: FileHandle,
    /// What.
    pub asked: Asked,
}

impl Arguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder, asked: Asked) -> Result<Self, XdrError> {
        Ok(Self { file: FileHandle::decode(decoder)?, asked })
    }
}

/// Puts the file's attributes, and what was asked for.
pub fn run(context: &mut Context<'_, '_>, arguments: &Arguments, out: &mut Encoder) -> Result<(), Halt> {
    let (file, inode) = arguments.file.file(context)?;
    put_after(context, out, file, &inode);
    match arguments.asked {
        Asked::Usage => put_usage(context, out),
        Asked::Limits => put_limits(context, out),
        Asked::Paths => put_paths(context, out),
    }
    Ok(())
}

fn put_usage(context: &Context<'_, '_>, out: &mut Encoder) {
    let statistics = context.request.statistics;
    for blocks in [statistics.blocks, statistics.blocks_free, statistics.blocks_available] {
        out.u64(blocks.saturating_mul(u64::from(statistics.block_size)));
    }
    for files in [statistics.files, statistics.files_free, statistics.files_free] {
        out.u64(u64::from(files));
    }
    // It may be another number at any time.
    out.u32(0);
}

fn put_limits(context: &Context<'_, '_>, out: &mut Encoder) {
    let service = context.request.service;
    // READ and WRITE: the most, the best, and a multiple of.
    for _ in 0..2 {
        for bytes in [service.io_bytes_max, service.io_bytes_max, IO_MULTIPLE] {
            out.u32(bytes);
        }
    }
    out.u32(DIRECTORY_BYTES);
    out.u64(service.file_bytes_max);
    put_time(out, Timestamp { seconds: 0, nanoseconds: 1 });
    out.u32(PROPERTIES);
}

fn put_paths(context: &Context<'_, '_>, out: &mut Encoder) {
    out.u32(LINKS_MAX);
    out.u32(context.request.statistics.name_bytes_max);
    // Names are refused, not cut; only the superuser gives files away; names are told apart by case and keep it.
    for holds in [true, true, false, true] {
        out.bool(holds);
    }
}
