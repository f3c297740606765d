//! Data of one large file: written and read in order with large calls, and read at random with small ones. Every byte that comes
//! back is compared.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use gateway_nfs::client::Handle;
use gateway_nfs::client::arguments::{Creation, Stable};
use gateway_nfs::client::attributes::AttributesToSet;
use gateway_nfs::client::files::{Files, OpenFile};
use gateway_nfs::client::number::{ACCESS_BOTH, ACCESS_READ};
use gateway_nfs::ids::Stateid;

use crate::measure::{Amount, Measured, Step, run};
use crate::pattern::{self, BLOCK_BYTES, Numbers};
use crate::processor::Processes;
use crate::server::Server;

/// Bytes of a call of the sequential workloads: what a Linux client uses where the server allows it.
const CALL_BYTES: u64 = 1 << 20;
const NAME: &str = "data";
/// The number of the file in its pattern.
const FILE: u64 = 1;

/// Writes the file from its begin to its end, `in_flight` calls at once, and commits; rewrites what is there.
pub(crate) async fn write(server: &Server, bytes: u64, in_flight: usize, processes: &Processes) -> Result<Measured> {
    server.make_directory("").await?;
    let attributes = AttributesToSet { size: Some(0), mode: Some(0o644), ..AttributesToSet::default() };
    let file = server.files().open(&server.path(NAME), ACCESS_BOTH, Creation::Unchecked(attributes)).await?;
    let (handle, stateid) = (file.handle().clone(), file.stateid());
    let calls = Arc::new(Calls { server: server.clone(), handle, stateid });
    let writing = Arc::clone(&calls);
    let amount = Amount::Operations(bytes.div_ceil(CALL_BYTES));
    let started = std::time::Instant::now();
    let mut measured = run("write", in_flight, amount, processes, move |step: Step| {
        let calls = Arc::clone(&writing);
        async move { calls.write(step).await }
    })
    .await?;
    // The time until all of it is durable is part of the work.
    file.commit().await.context("COMMIT")?;
    measured.seconds = started.elapsed().as_secs_f64();
    file.close().await?;
    Ok(measured)
}

/// Reads the file from its begin to its end.
pub(crate) async fn read(server: &Server, bytes: u64, in_flight: usize, processes: &Processes) -> Result<Measured> {
    let (file, calls) = open(server, bytes).await?;
    let amount = Amount::Operations(bytes.div_ceil(CALL_BYTES));
    let measured = run("read", in_flight, amount, processes, move |step: Step| {
        let calls = Arc::clone(&calls);
        async move { calls.read(step.task, step.number * CALL_BYTES, CALL_BYTES as u32).await }
    });
    let measured = measured.await?;
    file.close().await?;
    Ok(measured)
}

/// Reads blocks of 4 KiB at random.
pub(crate) async fn read_at_random(
    server: &Server,
    bytes: u64,
    in_flight: usize,
    amount: Amount,
    processes: &Processes,
) -> Result<Measured> {
    let (file, calls) = open(server, bytes).await?;
    let blocks = bytes / BLOCK_BYTES as u64;
    let measured = run("random-read", in_flight, amount, processes, move |step: Step| {
        let calls = Arc::clone(&calls);
        async move {
            let block = Numbers::new(step.number).below(blocks);
            calls.read(step.task, block * BLOCK_BYTES as u64, BLOCK_BYTES as u32).await
        }
    });
    let measured = measured.await?;
    file.close().await?;
    Ok(measured)
}

/// The open file, from which every client reads with the anonymous stateid but the one that has opened it: a stateid belongs to
/// one client (RFC 8881 §8.2.1).
async fn open(server: &Server, bytes: u64) -> Result<(OpenFile, Arc<Calls>)> {
    let files: Files = server.files();
    let file = files.open(&server.path(NAME), ACCESS_READ, Creation::No).await.context("the file of `write`")?;
    let size = file.stat().await?.size;
    ensure!(size == Some(bytes), "the file has {size:?} bytes instead of {bytes}: run `write` of this size before");
    let calls = Calls { server: server.clone(), handle: file.handle().clone(), stateid: file.stateid() };
    Ok((file, Arc::new(calls)))
}

struct Calls {
    server: Server,
    handle: Handle,
    stateid: Stateid,
}

impl Calls {
    fn stateid(&self, task: usize) -> Stateid {
        if task.is_multiple_of(self.server.clients()) { self.stateid } else { Stateid::ANONYMOUS }
    }

    async fn write(&self, step: Step) -> Result<u64> {
        let offset = step.number * CALL_BYTES;
        let data = pattern::bytes(FILE, offset / BLOCK_BYTES as u64, CALL_BYTES as usize);
        let client = self.server.client(step.task);
        let (length, stateid) = (data.len() as u64, self.stateid(step.task));
        let request = client.request().putfh(&self.handle).write(stateid, offset, Stable::Unstable, data);
        let written = client.call(request).await.with_context(|| format!("WRITE at {offset}"))?.written()?;
        ensure!(written.count == length, "WRITE at {offset} took {} bytes of {length}", written.count);
        Ok(length)
    }

    async fn read(&self, task: usize, offset: u64, count: u32) -> Result<u64> {
        let client = self.server.client(task);
        let request = client.request().putfh(&self.handle).read(self.stateid(task), offset, count);
        let (_, data) = client.call(request).await.with_context(|| format!("READ at {offset}"))?.read()?;
        let is_right = data.len() == count as usize && pattern::is_right(FILE, offset / BLOCK_BYTES as u64, &data);
        ensure!(is_right, "READ at {offset} gave {} bytes, and not those that were written", data.len());
        Ok(data.len() as u64)
    }
}
