//! Durable creates: OPEN that makes a file, then CLOSE, in the two compounds that a Linux client sends for `open(O_CREAT|O_EXCL)`
//! and `close`. Each client works in a directory of its own. What was acknowledged is counted afterwards.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use gateway_nfs::client::Handle;

use crate::listing::OF_AN_ENTRY;
use crate::measure::{Amount, Measured, Step, run};
use crate::processor::Processes;
use crate::server::{Server, open};

/// ACCESS bits that a Linux client asks for with an OPEN: read, modify, extend, execute.
const ACCESS_OF_A_FILE: u32 = 0x2d;
const OWNER: &[u8] = b"creates";

/// Creates for as long as it is told, one at a time in each of `tasks` tasks.
pub(crate) async fn measure(server: &Server, tasks: usize, amount: Amount, processes: &Processes) -> Result<Measured> {
    let run_name = format!("creates-{}", std::process::id());
    let directories: Arc<Vec<Handle>> = {
        let mut all = Vec::new();
        for client in 0..server.clients() {
            all.push(server.make_directory(&format!("{run_name}/{client}")).await?);
        }
        Arc::new(all)
    };
    let clients = server.clone();
    let measured = run("creates", tasks, amount, processes, move |step: Step| {
        let (server, directories) = (clients.clone(), Arc::clone(&directories));
        async move {
            let directory = &directories[step.task % server.clients()];
            create(&server, step.task, directory, &format!("f{}", step.number)).await.map(|_| 0)
        }
    });
    let measured = measured.await?;
    let mut found = 0;
    for client in 0..server.clients() {
        found += server.count(&format!("{run_name}/{client}")).await?;
    }
    let made = measured.latencies.count();
    ensure!(found as u64 == made, "{made} creates were acknowledged, {found} files are there");
    Ok(measured)
}

/// Makes one file, which must not be there, and closes it.
pub(crate) async fn create(server: &Server, task: usize, directory: &Handle, name: &str) -> Result<Handle> {
    let client = server.client(task);
    let request = client.request().putfh(directory).open(&open(name, true, OWNER)).getfh();
    let request = request.access(ACCESS_OF_A_FILE).getattr(OF_AN_ENTRY);
    let mut results = client.call(request).await.with_context(|| format!("creating {name}"))?;
    let (stateid, handle) = (results.opened()?.stateid, results.handle()?);
    client.call(client.request().putfh(&handle).close(stateid)).await.with_context(|| format!("closing {name}"))?;
    Ok(handle)
}
