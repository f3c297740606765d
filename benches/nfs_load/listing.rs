//! `ls -l` of a large directory by the calls that a Linux client makes for it: one READDIR after the other that asks for the
//! attributes of each entry too, with results that grow from a page on. The stats of `ls` are answered by what came with them; of
//! some servers the kernel asks again, by one GETATTR for each file: so does this, when it is told. Names are counted and must
//! all differ; each must come with its handle and its size.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use gateway_nfs::client::Handle;
use gateway_nfs::v4::attributes::number as n;
use gateway_nfs::v4::bitmap::Bitmap;
use serde_json::json;

use crate::creates;
use crate::latencies::Latencies;
use crate::measure::{Amount, Measured, Step, cpu, run};
use crate::processor::Processes;
use crate::server::Server;

/// What a Linux client asks for of each entry when it wants attributes with the names.
pub(crate) const OF_AN_ENTRY: Bitmap = Bitmap::of(&[
    n::TYPE,
    n::CHANGE,
    n::SIZE,
    n::FSID,
    n::RDATTR_ERROR,
    n::FILEHANDLE,
    n::FILEID,
    n::MODE,
    n::NUMLINKS,
    n::OWNER,
    n::OWNER_GROUP,
    n::RAWDEV,
    n::SPACE_USED,
    n::TIME_ACCESS,
    n::TIME_METADATA,
    n::TIME_MODIFY,
    n::MOUNTED_ON_FILEID,
]);
/// Bytes of the first result: a page.
const RESULT_BYTES_FIRST: u32 = 4096;
/// How much larger each is than the one before: Linux 6.12 takes six for 2 MB.
const RESULT_GROWTH: u32 = 4;
/// Files that are made at once, before anything is measured.
const MADE_AT_ONCE: usize = 32;
const NAME: &str = "many";

/// Makes what is missing of the directory's files.
async fn prepare(server: &Server, count: u64) -> Result<Handle> {
    let directory = server.make_directory(NAME).await?;
    let found = server.count(NAME).await? as u64;
    ensure!(found == 0 || found == count, "a directory with {found} files is there, not with {count}");
    if found == 0 {
        let (server, directory) = (server.clone(), directory.clone());
        run("make", MADE_AT_ONCE, Amount::Operations(count), &Processes::default(), move |step: Step| {
            let (server, directory) = (server.clone(), directory.clone());
            async move {
                creates::create(&server, step.task, &directory, &format!("file-{:06}", step.number)).await.map(|_| 0)
            }
        })
        .await?;
    }
    Ok(directory)
}

/// How a kernel lists.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    /// Bytes of one result at most.
    pub(crate) bytes_max: u32,
    /// One GETATTR for each file.
    pub(crate) getattr_each: bool,
}

/// Lists a directory of `count` files so many times.
pub(crate) async fn measure(
    server: &Server,
    count: u64,
    passes: usize,
    manner: Manner,
    processes: &Processes,
) -> Result<Measured> {
    let directory = Arc::new(prepare(server, count).await?);
    let before = cpu(processes)?;
    let (mut calls, mut took) = (Calls::default(), Vec::new());
    for _ in 0..passes {
        let start = Instant::now();
        list(server, &directory, count, manner, &mut calls).await?;
        took.push(start.elapsed().as_secs_f64());
    }
    let Calls { latencies, readdirs, getattrs, missing } = calls;
    let server_seconds = cpu(processes)?.zip(before).map(|(after, before)| after - before);
    Ok(Measured {
        workload: "listing",
        tasks: 1,
        seconds: took.iter().sum(),
        latencies,
        bytes: 0,
        server_seconds,
        unit: "entries",
        units: count * passes as u64,
        passes: took,
        notes: json!({
            "readdir_calls": readdirs,
            "getattr_calls": getattrs,
            "attributes_that_entries_lack": missing.iter().collect::<Vec<u32>>(),
        }),
    })
}

/// What was called.
#[derive(Default)]
struct Calls {
    latencies: Latencies,
    readdirs: u64,
    getattrs: u64,
    /// Attributes that were asked for, and did not come with an entry.
    missing: Bitmap,
}

async fn list(server: &Server, directory: &Handle, count: u64, manner: Manner, calls: &mut Calls) -> Result<()> {
    let client = server.client(0);
    let (mut cookie, mut verifier, mut bytes) = (0, [0; 8], RESULT_BYTES_FIRST.min(manner.bytes_max));
    let mut names = BTreeSet::new();
    loop {
        let began = Instant::now();
        let request = client.request().putfh(directory).readdir(cookie, verifier, bytes, OF_AN_ENTRY);
        let part = client.call(request).await.with_context(|| format!("READDIR at {cookie}"))?.entries()?;
        calls.latencies.add(began.elapsed());
        calls.readdirs += 1;
        verifier = part.verifier;
        ensure!(part.at_end || !part.entries.is_empty(), "READDIR at {cookie} gave nothing, and is not at the end");
        for entry in part.entries {
            cookie = entry.cookie;
            let attributes = entry.attributes.read()?;
            let is_whole = attributes.handle.is_some() && attributes.size.is_some() && attributes.fileid.is_some();
            ensure!(is_whole, "{:?} comes without attributes: {:?}", entry.name, attributes.error);
            names.insert(entry.name);
            calls.missing = calls.missing.or(OF_AN_ENTRY.without(attributes.named));
            if let Some(handle) = attributes.handle.filter(|_| manner.getattr_each) {
                let began = Instant::now();
                let request = client.request().putfh(&handle).getattr(OF_AN_ENTRY);
                client.call(request).await.context("GETATTR of an entry")?.attributes()?.read()?;
                calls.latencies.add(began.elapsed());
                calls.getattrs += 1;
            }
        }
        if part.at_end {
            break;
        }
        bytes = bytes.saturating_mul(RESULT_GROWTH).min(manner.bytes_max);
    }
    ensure!(names.len() as u64 == count, "{} names of {count} were listed", names.len());
    Ok(())
}
