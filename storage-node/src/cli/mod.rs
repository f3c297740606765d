//! The command line: `tandem node|witness` run the daemon, everything else speaks to one over the admin API.

mod arguments;
mod cluster;
mod daemon;
mod exit;
mod fs;
mod fs_arguments;
mod json;
mod nfs;
mod nfs_arguments;
mod nfs_statistics;
mod progress;
mod recover;
mod reset;
mod scrub;
mod session;
mod table;
mod text;
mod transfer;
mod volume;
mod watch;

use std::process::ExitCode;

use clap::Parser;
use replication::config::NodeKind;

use arguments::{Arguments, ClusterCommand, Command, DemoArguments, NodeArguments, NodeCommand};
use exit::{Failure, end};
use session::Session;

use crate::demo;

/// The whole program: parses the process's arguments, does what they say, and gives the exit code. `main.rs` is a call
/// of this.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.command {
        Command::Node(NodeArguments { config: Some(config), .. }) => daemon::supervise(&config, NodeKind::Storage),
        Command::Witness { config } => daemon::supervise(&config, NodeKind::Witness),
        Command::Worker { arguments } => daemon::work(arguments),
        Command::Node(NodeArguments { command: Some(NodeCommand::Reset { config, yes }), .. }) => {
            end(reset::run(&config, yes, arguments.json))
        }
        Command::RecoverQuorum { config, lost, yes } => end(recover::run(&config, &lost, yes, arguments.json)),
        Command::Demo(DemoArguments { seconds, keep, mount, kernel_client }) => {
            demo::main(demo::Options { seconds, keep, mount, kernel_client })
        }
        Command::DemoGuest { share, mount } => demo::guest_main(&share, &mount),
        command => {
            let session = Session::new(arguments.admin, arguments.json);
            end(runtime().and_then(|runtime| runtime.block_on(ask(&session, command))))
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Commands that speak to a node.
async fn ask(session: &Session, command: Command) -> Result<(), Failure> {
    match command {
        Command::Cluster(ClusterCommand::Init) => cluster::init(session).await,
        Command::Cluster(ClusterCommand::Join { member }) => cluster::join(session, &member).await,
        Command::Cluster(ClusterCommand::Status) => cluster::status(session).await,
        Command::Node(NodeArguments { command: Some(command), .. }) => match command {
            NodeCommand::List => cluster::list_nodes(session).await,
            NodeCommand::Join { member } => cluster::join(session, &member).await,
            NodeCommand::Remove { node, yes, force } => cluster::remove_node(session, &node, yes, force).await,
            NodeCommand::Reset { .. } => Err(Failure::Usage("this command runs by itself".into())),
            NodeCommand::Status => cluster::node_status(session).await,
            NodeCommand::Stop => cluster::stop_node(session).await,
        },
        Command::Volume(command) => volume::run(session, command).await,
        Command::Fs(command) => fs::run(session, command).await,
        Command::Nfs(command) => nfs::run(session, command).await,
        Command::Export(command) => nfs::run_export(session, command).await,
        Command::Watch { volume } => watch::watch(session, volume.unwrap_or_default()).await,
        Command::Node(_)
        | Command::Witness { .. }
        | Command::Worker { .. }
        | Command::Demo(_)
        | Command::DemoGuest { .. }
        | Command::RecoverQuorum { .. } => Err(Failure::Usage("this command runs by itself".into())),
    }
}
