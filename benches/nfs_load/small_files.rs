//! Many small files: made once, then opened, read and closed one after the other, in the three compounds that a Linux client
//! sends for `cat`. The content of each is compared.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use gateway_nfs::client::Handle;
use gateway_nfs::client::arguments::Stable;
use gateway_nfs::client::attributes::AttributesToSet;

use crate::creates;
use crate::listing::OF_AN_ENTRY;
use crate::measure::{Amount, Measured, Step, run};
use crate::pattern;
use crate::processor::Processes;
use crate::server::{Server, open};

/// Bytes of a file.
const FILE_BYTES: usize = 1000;
/// Files of a directory.
pub(crate) const OF_A_DIRECTORY: u64 = 100;
/// Files that are made at once, before anything is measured.
const MADE_AT_ONCE: usize = 32;
/// ACCESS bits with an OPEN for reading.
const ACCESS_TO_READ: u32 = 1;
const OWNER: &[u8] = b"small-files";

/// Where the files are: a directory of directories.
pub(crate) const NAME: &str = "small";

/// Makes what is missing of `count` files, and gives the handles of their directories.
pub(crate) async fn prepare(server: &Server, count: u64) -> Result<Vec<Handle>> {
    let mut directories = Vec::new();
    for number in 0..count.div_ceil(OF_A_DIRECTORY) {
        directories.push(server.make_directory(&format!("{NAME}/d{number}")).await?);
    }
    let last = count.div_ceil(OF_A_DIRECTORY).saturating_sub(1);
    let has_last = server.count(&format!("{NAME}/d{last}")).await? as u64 == count - last * OF_A_DIRECTORY;
    if !has_last {
        let (server, made) = (server.clone(), Arc::new(directories.clone()));
        run("make", MADE_AT_ONCE, Amount::Operations(count), &Processes::default(), move |step: Step| {
            let (server, directories) = (server.clone(), Arc::clone(&made));
            async move { make(&server, &directories, step).await }
        })
        .await?;
    }
    Ok(directories)
}

/// Makes one file with its content. One that is there from a run that was broken off gets its content anew.
async fn make(server: &Server, directories: &[Handle], step: Step) -> Result<u64> {
    let directory = &directories[(step.number / OF_A_DIRECTORY) as usize];
    let name = format!("f{}", step.number);
    let client = server.client(step.task);
    let found = client.call(client.request().putfh(directory).lookup(name.as_bytes()).getfh()).await;
    let handle = match found {
        Ok(mut results) => results.handle()?,
        Err(_) => creates::create(server, step.task, directory, &name).await?,
    };
    let data = pattern::bytes(step.number, 0, FILE_BYTES);
    let stateid = gateway_nfs::ids::Stateid::ANONYMOUS;
    let request = client.request().putfh(&handle).setattr(stateid, &AttributesToSet::size(0));
    client.call(request.write(stateid, 0, Stable::File, data)).await.with_context(|| format!("writing {name}"))?;
    Ok(FILE_BYTES as u64)
}

/// Opens, reads and closes every one of them.
pub(crate) async fn measure(server: &Server, count: u64, tasks: usize, processes: &Processes) -> Result<Measured> {
    let directories = Arc::new(prepare(server, count).await?);
    let clients = server.clone();
    run("open-read-close", tasks, Amount::Operations(count), processes, move |step: Step| {
        let (server, directories) = (clients.clone(), Arc::clone(&directories));
        async move { read(&server, &directories[(step.number / OF_A_DIRECTORY) as usize], step).await }
    })
    .await
}

async fn read(server: &Server, directory: &Handle, step: Step) -> Result<u64> {
    let (client, name) = (server.client(step.task), format!("f{}", step.number));
    let request = client.request().putfh(directory).open(&open(&name, false, OWNER)).getfh();
    let request = request.access(ACCESS_TO_READ).getattr(OF_AN_ENTRY);
    let mut results = client.call(request).await.with_context(|| format!("opening {name}"))?;
    let (stateid, handle) = (results.opened()?.stateid, results.handle()?);
    let request = client.request().putfh(&handle).read(stateid, 0, pattern::BLOCK_BYTES as u32);
    let (at_end, data) = client.call(request).await.with_context(|| format!("reading {name}"))?.read()?;
    client.call(client.request().putfh(&handle).close(stateid)).await.with_context(|| format!("closing {name}"))?;
    let is_right = at_end && data.len() == FILE_BYTES && pattern::is_right(step.number, 0, &data);
    ensure!(is_right, "{name} gave {} bytes, and not those that were written", data.len());
    Ok(data.len() as u64)
}
