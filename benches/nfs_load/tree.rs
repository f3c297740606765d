//! A walk over a tree that asks for the attributes of everything by its name: LOOKUP, GETFH and GETATTR in one compound for each
//! file, as a Linux client looks up what it does not know. The tree is that of the small files.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use gateway_nfs::client::Handle;

use crate::listing::OF_AN_ENTRY;
use crate::measure::{Amount, Measured, Step, run};
use crate::processor::Processes;
use crate::server::Server;
use crate::small_files::{self, OF_A_DIRECTORY};

/// Looks every file up.
pub(crate) async fn measure(server: &Server, count: u64, tasks: usize, processes: &Processes) -> Result<Measured> {
    let directories = Arc::new(small_files::prepare(server, count).await?);
    let clients = server.clone();
    run("tree-walk", tasks, Amount::Operations(count), processes, move |step: Step| {
        let (server, directories) = (clients.clone(), Arc::clone(&directories));
        async move { look_up(&server, &directories[(step.number / OF_A_DIRECTORY) as usize], step).await }
    })
    .await
}

async fn look_up(server: &Server, directory: &Handle, step: Step) -> Result<u64> {
    let (client, name) = (server.client(step.task), format!("f{}", step.number));
    let request = client.request().putfh(directory).lookup(name.as_bytes()).getfh().getattr(OF_AN_ENTRY);
    let mut results = client.call(request).await.with_context(|| format!("looking up {name}"))?;
    results.handle()?;
    let size = results.attributes()?.read()?.size;
    ensure!(size.is_some_and(|size| size > 0), "{name} has {size:?} bytes");
    Ok(0)
}
