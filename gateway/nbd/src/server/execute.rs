//! One request on the device: from a checked [`Request`] to its [`Outcome`].
//!
//! No state. The future owns the payload and lives until the device is done with it.

use block_device::{BlockDevice, BlockError};
use bytes::Bytes;

use crate::codec::ErrorNumber;
use crate::session::{Operation, Outcome, Request};
use crate::statistics::Statistics;

/// A request whose outcome is known.
#[derive(Debug)]
pub(super) struct Completion {
    pub(super) request: Request,
    pub(super) outcome: Outcome,
}

/// Does `request`; `payload` is that of a WRITE, else empty.
pub(super) async fn execute<D: BlockDevice>(
    device: &D,
    statistics: &Statistics,
    request: Request,
    payload: Bytes,
) -> Completion {
    let outcome = match perform(device, &request, payload).await {
        Ok(outcome) => {
            count(statistics, &request);
            outcome
        }
        Err(error) => {
            Statistics::add(&statistics.errors, 1);
            failure(&request, &error)
        }
    };
    Completion { request, outcome }
}

async fn perform<D: BlockDevice>(device: &D, request: &Request, payload: Bytes) -> Result<Outcome, BlockError> {
    let Request { operation, range, fua, .. } = *request;
    if range.length == 0 && operation != Operation::Flush {
        // Not worth a trip through the device, and devices need not know empty ranges.
        return Ok(if matches!(operation, Operation::Read { .. }) { Outcome::Data(payload) } else { Outcome::Done });
    }
    match operation {
        Operation::Read { .. } => {
            let data = device.read(range).await?;
            if data.len() as u64 != range.length {
                tracing::error!(?range, got = data.len(), "the device read another length than asked");
                return Err(BlockError::Io);
            }
            return Ok(Outcome::Data(data));
        }
        Operation::BlockStatus { .. } => return Ok(Outcome::Extents(device.allocation(range).await?)),
        Operation::Write => device.write(range.offset, payload, fua).await?,
        Operation::Flush => device.flush().await?,
        Operation::Trim => device.discard(range, fua).await?,
        Operation::WriteZeroes { keep_allocated } => device.write_zeroes(range, keep_allocated, fua).await?,
    }
    Ok(Outcome::Done)
}

fn failure(request: &Request, error: &BlockError) -> Outcome {
    let writes = matches!(request.operation, Operation::Write | Operation::WriteZeroes { .. });
    let number = match error {
        // Silence, not an error: the operation may have happened, and another node may serve the volume by now.
        BlockError::NotPrimary { .. } | BlockError::Closed => return Outcome::Lost,
        BlockError::OutOfRange { .. } if writes => ErrorNumber::NoSpace,
        BlockError::OutOfRange { .. } => ErrorNumber::Invalid,
        BlockError::OutOfSpace => ErrorNumber::NoSpace,
        BlockError::Io => ErrorNumber::Io,
    };
    Outcome::Failed { error: number, message: error.to_string() }
}

fn count(statistics: &Statistics, request: &Request) {
    let (counter, bytes) = match request.operation {
        Operation::Read { .. } => (&statistics.reads, Some(&statistics.read_bytes)),
        Operation::Write => (&statistics.writes, Some(&statistics.write_bytes)),
        Operation::Flush => (&statistics.flushes, None),
        Operation::Trim => (&statistics.trims, None),
        Operation::WriteZeroes { .. } => (&statistics.zeroes, None),
        Operation::BlockStatus { .. } => (&statistics.block_statuses, None),
    };
    Statistics::add(counter, 1);
    if let Some(bytes) = bytes {
        Statistics::add(bytes, request.range.length);
    }
}
