//! A cluster on loopback to play with or to measure: `cluster --dir DIR --size BYTES [--volumes N]`.
//!
//! Prints one line of JSON once all volumes serve: `{"uris": […], "nodes": [{"name", "pid", "admin", "nbd"}, …]}`, and runs
//! until its standard input closes.

use std::io::{Read, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::json;
use tandem_tests::e2e::cluster::ALPHA;
use tandem_tests::e2e::{Cluster, ClusterOptions};

struct Options {
    directory: PathBuf,
    size_bytes: u64,
    volumes: usize,
}

fn main() -> Result<()> {
    let options = parse(std::env::args().skip(1))?;
    std::fs::create_dir_all(&options.directory).context("creating the directory")?;
    let cluster_options = ClusterOptions { directory: Some(options.directory), ..ClusterOptions::default() };
    let mut cluster = Cluster::start(&cluster_options);
    let names: Vec<String> = match options.volumes {
        1 => vec!["vol".to_owned()],
        count => (0..count).map(|index| format!("vol{index}")).collect(),
    };
    for name in &names {
        cluster.create_volume(name, &options.size_bytes.to_string());
    }
    let uris: Vec<String> = names.iter().map(|name| cluster.uri(ALPHA, name)).collect();
    let nodes: Vec<_> = cluster
        .nodes
        .iter_mut()
        .map(|node| {
            let (admin, nbd) = (node.addresses.admin.to_string(), node.addresses.nbd.to_string());
            json!({ "name": node.name, "pid": node.process().pid(), "admin": admin, "nbd": nbd })
        })
        .collect();
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{}", json!({ "uris": uris, "nodes": nodes }))?;
    stdout.flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Options> {
    let (mut directory, mut size_bytes, mut volumes) = (None, None, 1);
    while let Some(name) = args.next() {
        let value = args.next().with_context(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--dir" => directory = Some(PathBuf::from(value)),
            "--size" => size_bytes = Some(value.parse().context("--size in bytes")?),
            "--volumes" => volumes = value.parse().context("--volumes")?,
            _ => bail!("unknown option {name}"),
        }
    }
    Ok(Options {
        directory: directory.context("--dir is missing")?,
        size_bytes: size_bytes.context("--size is missing")?,
        volumes,
    })
}
