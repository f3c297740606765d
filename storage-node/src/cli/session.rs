//! One command's connection to the cluster, and its way of printing.

use std::future::Future;
use std::io::{self, BufRead, IsTerminal, Write};

use proto::admin as pb;
use tonic::Status;
use tonic::transport::Channel;

use super::exit::Failure;
use crate::admin::client::follow;
use crate::net::transport::Transport;

/// Used when neither `--admin` nor the environment names a node.
pub(crate) const ADMIN_DEFAULT: &str = "127.0.0.1:7401";
/// Environment variable that names the node to ask.
pub(crate) const ADMIN_VARIABLE: &str = "TANDEM_ADMIN";
/// Environment variable that, set to 1, allows asking a node on another machine without encryption.
pub(crate) const PLAINTEXT_VARIABLE: &str = "TANDEM_INSECURE_PLAINTEXT";

/// Whom to ask and how to print.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    /// Admin API asked first.
    pub(crate) address: String,
    /// JSON instead of text.
    pub(crate) json: bool,
    /// The seam.
    pub(crate) transport: Transport,
}

impl Session {
    /// `admin` goes before the environment.
    pub(crate) fn new(admin: Option<String>, json: bool) -> Self {
        let address = admin.or_else(|| std::env::var(ADMIN_VARIABLE).ok().filter(|address| !address.is_empty()));
        let insecure_plaintext = std::env::var_os(PLAINTEXT_VARIABLE).is_some_and(|value| value == "1");
        let address = address.unwrap_or_else(|| ADMIN_DEFAULT.to_owned());
        Session { address, json, transport: Transport { insecure_plaintext } }
    }

    /// The same, asking another node.
    pub(crate) fn at(&self, address: &str) -> Self {
        Session { address: address.to_owned(), ..self.clone() }
    }

    /// Calls the cluster, following redirects.
    pub(crate) async fn call<T, C, F>(&self, call: C) -> Result<T, Failure>
    where
        C: Fn(Channel) -> F,
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        Ok(follow(&self.transport, &self.address, call).await?.into_inner())
    }

    /// Everything about a volume.
    pub(crate) async fn show(&self, volume: &str) -> Result<pb::ShowVolumeReply, Failure> {
        self.call(|channel| async move {
            let request = pb::ShowVolumeRequest { volume: volume.to_owned() };
            pb::volume_client::VolumeClient::new(channel).show(request).await
        })
        .await
    }

    /// Every node.
    pub(crate) async fn nodes(&self) -> Result<Vec<pb::NodeView>, Failure> {
        let reply = self
            .call(|channel| async move {
                pb::cluster_client::ClusterClient::new(channel).list_nodes(pb::ListNodesRequest {}).await
            })
            .await?;
        Ok(reply.nodes)
    }

    /// Prints `value` with `--json`, else `text`.
    pub(crate) fn print(&self, value: &serde_json::Value, text: &str) -> Result<(), Failure> {
        match self.json {
            true => emit(&format!("{value:#}\n")),
            false => emit(text),
        }
    }
}

/// Writes to standard output. A reader that went away (`| head`) ends the program quietly.
pub(crate) fn emit(text: &str) -> Result<(), Failure> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        result => Ok(result?),
    }
}

/// Asks for a typed word before something that cannot be undone. Without a terminal `--yes` is required.
pub(crate) fn confirm(question: &str, word: &str) -> Result<(), Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::Usage("nobody to ask: say --yes".into()));
    }
    eprint!("{question}\nType {word:?} to go on: ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    match answer.trim() == word {
        true => Ok(()),
        false => Err(Failure::Refused("not confirmed; nothing was done".into())),
    }
}
