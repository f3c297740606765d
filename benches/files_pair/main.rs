//! The filesystem of a volume on a running pair, through the admin API: each request is a call of gRPC to the primary, and a
//! change is answered when it is durable on both boxes. Started by `cargo xtask bench files --pair`.
//!
//! It asks and counts. The cluster, its volume and the filesystem in it are there already, but for `failover`, which has to
//! kill nodes and starts its own.
#![forbid(unsafe_code)]

mod failover;
mod load;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use proto::admin as pb;
use proto::admin::files_client::FilesClient;
use proto::admin::put_file_part::Part;
use tonic::transport::Channel;

const MIB: usize = 1 << 20;
/// Bytes of one part of a file that is put.
const PART_BYTES: usize = MIB;

#[derive(Parser)]
struct Options {
    /// HOST:PORT of each node; the first that answers for the volume is used.
    #[arg(long, value_delimiter = ',', required_unless_present = "failovers")]
    admin: Vec<String>,
    /// The volume.
    #[arg(long, default_value = "vol")]
    volume: String,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Size of the file that is written and read, in MiB.
    #[arg(long, default_value_t = 256)]
    file_mib: usize,
    /// Kills the primary so many times, each time after so many seconds of load, instead of measuring rates.
    #[arg(long, requires = "directory")]
    failovers: Option<usize>,
    /// An empty directory for the cluster of the failovers.
    #[arg(long)]
    directory: Option<PathBuf>,
    /// Where the figures of the failovers go.
    #[arg(long, default_value = "bench-files-failovers.json")]
    output: PathBuf,
}

/// The primary, and what it is asked about.
#[derive(Clone)]
struct Files {
    client: FilesClient<Channel>,
    volume: String,
}

fn main() -> Result<()> {
    let options = Options::parse();
    if let (Some(count), Some(directory)) = (options.failovers, &options.directory) {
        return failover::run(count, Duration::from_secs(options.seconds), directory, &options.output);
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(rates(&options))
}

async fn rates(options: &Options) -> Result<()> {
    let files = connect(options).await?;
    let time = Duration::from_secs(options.seconds);
    println!("\n| | pair |\n|---|---|");
    for in_flight in [1, 32] {
        let made = rate(&files, in_flight, time, move |mut files, number| async move {
            let path = format!("/{in_flight}-{number}").into_bytes();
            let request = pb::MakeDirectoryRequest { volume: files.volume, path, parents: false };
            files.client.make_directory(request).await.map(drop)
        });
        println!("| durable creates (directories), {in_flight} in flight | {:.0} /s |", made.await?);
    }
    let looked = rate(&files, 32, time, |mut files, number| async move {
        let path = format!("/32-{}", number % 100).into_bytes();
        files.client.stat(pb::StatRequest { volume: files.volume, path, follow: false }).await.map(drop)
    });
    println!("| lookup and getattr, 32 in flight | {:.0} /s |", looked.await?);
    let bytes = options.file_mib * MIB;
    println!("| put of {} MiB with its fsync | {:.0} MiB/s |", options.file_mib, put(&files, bytes).await?);
    println!("| get of the same | {:.0} MiB/s |", get(&files, bytes).await?);
    Ok(())
}

async fn connect(options: &Options) -> Result<Files> {
    for address in &options.admin {
        let mut client = client(address).await?;
        let request = pb::UsageRequest { volume: options.volume.clone() };
        if client.usage(request).await.is_ok() {
            return Ok(Files { client, volume: options.volume.clone() });
        }
    }
    bail!("none of {} answers for the volume {}", options.admin.join(", "), options.volume)
}

/// A connection to a node's admin API, HOST:PORT.
async fn client(address: &str) -> Result<FilesClient<Channel>> {
    let channel = Channel::from_shared(format!("http://{address}"))?.connect().await?;
    let largest = 2 * PART_BYTES;
    Ok(FilesClient::new(channel).max_decoding_message_size(largest).max_encoding_message_size(largest))
}

/// Operations a second, with so many in flight.
async fn rate<F>(
    files: &Files,
    in_flight: usize,
    time: Duration,
    op: impl Fn(Files, u64) -> F + Copy + Send + Sync + 'static,
) -> Result<f64>
where
    F: Future<Output = Result<(), tonic::Status>> + Send + 'static,
{
    let count = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let tasks: Vec<_> = (0..in_flight)
        .map(|_| {
            let (files, count) = (files.clone(), Arc::clone(&count));
            tokio::spawn(async move {
                while start.elapsed() < time {
                    op(files.clone(), count.fetch_add(1, Ordering::Relaxed)).await?;
                }
                Ok::<_, tonic::Status>(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(count.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64())
}

/// MiB a second of a new file.
async fn put(files: &Files, bytes: usize) -> Result<f64> {
    let parts = file_parts(&files.volume, b"/file".to_vec(), bytes);
    let start = Instant::now();
    files.client.clone().put(tokio_stream::iter(parts)).await.context("put")?;
    Ok(bytes as f64 / MIB as f64 / start.elapsed().as_secs_f64())
}

/// What a put of a file of so many bytes sends.
fn file_parts(volume: &str, path: Vec<u8>, bytes: usize) -> Vec<pb::PutFilePart> {
    let head = pb::PutFileHead { volume: volume.to_owned(), path, permissions: 0o644, ..Default::default() };
    let pieces = (0..bytes).step_by(PART_BYTES);
    let data = pieces.map(|offset| {
        let data = vec![7; PART_BYTES.min(bytes - offset)];
        Part::Data(pb::PutFileData { offset: offset as u64, data })
    });
    let end = Part::End(pb::PutFileEnd { size_bytes: bytes as u64 });
    let parts = std::iter::once(Part::Head(head)).chain(data).chain(std::iter::once(end));
    parts.map(|part| pb::PutFilePart { part: Some(part) }).collect()
}

/// MiB a second of the same file.
async fn get(files: &Files, bytes: usize) -> Result<f64> {
    let start = Instant::now();
    let request = pb::GetFileRequest { volume: files.volume.clone(), path: b"/file".to_vec() };
    let mut parts = files.client.clone().get(request).await.context("get")?.into_inner();
    let mut got = 0;
    while let Some(part) = parts.message().await? {
        got += part.data.len();
    }
    if got != bytes {
        bail!("{got} bytes of {bytes} came back");
    }
    Ok(bytes as f64 / MIB as f64 / start.elapsed().as_secs_f64())
}
