//! The demo's way to the admin API: the same calls that the command line makes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use proto::admin as pb;
use proto::admin::cluster_client::ClusterClient;
use proto::admin::files_client::FilesClient;
use proto::admin::nfs_client::NfsClient;
use proto::admin::node_client::NodeClient;
use proto::admin::volume_client::VolumeClient;
use tokio::sync::Mutex;
use tonic::transport::Channel;

use super::ground::Service;
use crate::admin::client::{connect, follow};
use crate::net::transport::Transport;

/// Between two looks at something that is awaited.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Between two looks for the primary, while clients wait.
const LOCATE_INTERVAL: Duration = Duration::from_millis(10);
/// One node's answer is awaited this long.
const ANSWER_PATIENCE: Duration = Duration::from_millis(500);
/// Clients look for a primary this long.
const LOCATE_PATIENCE: Duration = Duration::from_secs(60);

/// Calls to the cluster through its first node, or any other that answers.
#[derive(Clone, Debug)]
pub(super) struct Control {
    /// The seam.
    pub(super) transport: Transport,
    /// Admin addresses of all nodes.
    pub(super) addresses: Vec<String>,
    /// The volume that it speaks of.
    pub(super) volume: String,
}

impl Control {
    /// Waits until every node answers.
    pub(super) async fn await_nodes(&self, patience: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + patience;
        for address in &self.addresses {
            while let Err(why) = self.node_status(address).await {
                if Instant::now() > deadline {
                    return Err(why.context(format!("the node at {address} does not answer")));
                }
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        }
        Ok(())
    }

    /// The first node makes the cluster, the others join.
    pub(super) async fn build_cluster(&self) -> anyhow::Result<()> {
        let [first, others @ ..] = &self.addresses[..] else { bail!("no nodes") };
        follow(
            &self.transport,
            first,
            |channel| async move { ClusterClient::new(channel).init(pb::InitRequest {}).await },
        )
        .await
        .map_err(words)
        .context("cluster init")?;
        for address in others {
            follow(&self.transport, address, |channel| async move {
                ClusterClient::new(channel).join(pb::JoinRequest { member_address: first.clone() }).await
            })
            .await
            .map_err(words)
            .context("cluster join")?;
        }
        Ok(())
    }

    /// Creates the volume, and waits until it serves.
    pub(super) async fn create_volume(&self, size_bytes: u64, patience: Duration) -> anyhow::Result<()> {
        let request = pb::CreateVolumeRequest { name: self.volume.clone(), size_bytes, ..Default::default() };
        self.any(|channel| {
            let request = request.clone();
            async move { VolumeClient::new(channel).create(request).await }
        })
        .await
        .context("volume create")?;
        self.await_volume("the new volume serves", patience, |volume| {
            volume.replicas.iter().any(|replica| replica.serving)
        })
        .await?;
        Ok(())
    }

    /// Makes a filesystem on the volume.
    pub(super) async fn make_filesystem(&self) -> anyhow::Result<()> {
        let request = pb::MakeFilesystemRequest { volume: self.volume.clone(), force: false };
        let parts = self.any(|channel| {
            let request = request.clone();
            async move { FilesClient::new(channel).make(request).await }
        });
        let mut parts = parts.await.context("fs make")?.into_inner();
        // The last message has no stage.
        while let Some(part) = parts.message().await.map_err(words).context("fs make")? {
            if part.stage.is_empty() {
                return Ok(());
            }
        }
        bail!("fs make: the node ended while it made the filesystem")
    }

    /// Serves the volume's files.
    pub(super) async fn serve_nfs(&self, service: &Service) -> anyhow::Result<()> {
        let request = pb::ServeNfsRequest {
            volume: self.volume.clone(),
            addresses: service.floating.iter().cloned().collect(),
            own_address: service.floating.is_none(),
            port: service.port.into(),
        };
        self.any(|channel| {
            let request = request.clone();
            async move { NfsClient::new(channel).serve(request).await }
        })
        .await
        .context("nfs serve")?;
        let rule = pb::ExportRule {
            client: service.clients.clone(),
            access: pb::ExportAccess::ReadWrite.into(),
            squash: pb::ExportSquash::None.into(),
            ..Default::default()
        };
        let request = pb::AddExportRequest { volume: self.volume.clone(), rule: Some(rule) };
        self.any(|channel| {
            let request = request.clone();
            async move { NfsClient::new(channel).add_export(request).await }
        })
        .await
        .context("export add")?;
        Ok(())
    }

    /// Everything about the volume.
    pub(super) async fn show(&self) -> anyhow::Result<pb::ShowVolumeReply> {
        let volume = &self.volume;
        let reply = self
            .any(|channel| async move {
                VolumeClient::new(channel).show(pb::ShowVolumeRequest { volume: volume.clone() }).await
            })
            .await?;
        Ok(reply.into_inner())
    }

    /// Looks until the volume is as wanted; the last look.
    pub(super) async fn await_volume(
        &self,
        what: &str,
        patience: Duration,
        wanted: impl Fn(&pb::ShowVolumeReply) -> bool,
    ) -> anyhow::Result<pb::ShowVolumeReply> {
        let deadline = Instant::now() + patience;
        loop {
            let volume = self.show().await;
            match volume {
                Ok(volume) if wanted(&volume) => return Ok(volume),
                Ok(volume) if Instant::now() > deadline => {
                    let health = volume.summary.and_then(|summary| summary.health).unwrap_or_default();
                    bail!("waited {patience:?} in vain until {what}; the cluster says: {}", health.text);
                }
                Err(error) if Instant::now() > deadline => return Err(error),
                _ => tokio::time::sleep(LOOK_INTERVAL).await,
            }
        }
    }

    /// Hands the primary role to the other box.
    pub(super) async fn switchover(&self) -> anyhow::Result<pb::SwitchoverReply> {
        let request = pb::SwitchoverRequest { volume: self.volume.clone(), ..Default::default() };
        let reply = self
            .any(|channel| {
                let request = request.clone();
                async move { VolumeClient::new(channel).switchover(request).await }
            })
            .await
            .context("volume switchover")?;
        Ok(reply.into_inner())
    }

    /// A node's report on itself.
    pub(super) async fn node_status(&self, address: &str) -> anyhow::Result<pb::NodeStatusReply> {
        let call = async {
            let channel = connect(&self.transport, address).await?;
            NodeClient::new(channel).status(pb::NodeStatusRequest {}).await
        };
        let reply = tokio::time::timeout(ANSWER_PATIENCE, call).await.context("no answer in time")?;
        Ok(reply.map_err(words)?.into_inner())
    }

    /// Asks one node after the other, until one answers.
    async fn any<T, C, F>(&self, call: C) -> anyhow::Result<T>
    where
        C: Fn(Channel) -> F,
        F: Future<Output = Result<T, tonic::Status>>,
    {
        let mut last = None;
        for address in &self.addresses {
            match follow(&self.transport, address, &call).await {
                Ok(reply) => return Ok(reply),
                Err(status) if status.code() == tonic::Code::Unavailable => last = Some(status),
                Err(status) => return Err(words(status)),
            }
        }
        match last {
            Some(status) => Err(words(status)),
            None => bail!("no nodes to ask"),
        }
    }
}

fn words(status: tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("{} ({})", status.message(), status.code())
}

/// Finds the primary for the clients: one search at a time, its result shared.
#[derive(Debug)]
pub(super) struct Locator {
    control: Control,
    /// Another volume may be served elsewhere.
    volume_id: String,
    /// Admin address and NBD address of each box.
    boxes: Vec<(String, String)>,
    found: Mutex<Found>,
}

#[derive(Debug, Default)]
struct Found {
    generation: u64,
    nbd: String,
    channels: BTreeMap<usize, Channel>,
}

impl Locator {
    /// Looks for the volume of this id among these boxes.
    pub(super) fn new(control: Control, volume_id: String, boxes: Vec<(String, String)>) -> Self {
        Locator { control, volume_id, boxes, found: Mutex::new(Found::default()) }
    }

    /// The NBD address of the box that serves, found after the one of `stale` (0: none yet) proved wrong; with the number
    /// by which it may be called stale in turn.
    pub(super) async fn locate(&self, stale: u64) -> anyhow::Result<(u64, String)> {
        let mut found = self.found.lock().await;
        if found.generation > stale {
            return Ok((found.generation, found.nbd.clone()));
        }
        let deadline = Instant::now() + LOCATE_PATIENCE;
        loop {
            for (index, (admin, nbd)) in self.boxes.iter().enumerate() {
                if self.serves(&mut found, index, admin).await {
                    found.generation += 1;
                    found.nbd.clone_from(nbd);
                    return Ok((found.generation, nbd.clone()));
                }
            }
            if Instant::now() > deadline {
                bail!("no box serves the volume for {LOCATE_PATIENCE:?}");
            }
            tokio::time::sleep(LOCATE_INTERVAL).await;
        }
    }

    async fn serves(&self, found: &mut Found, index: usize, admin: &str) -> bool {
        let answer = tokio::time::timeout(ANSWER_PATIENCE, async {
            let channel = match found.channels.get(&index) {
                Some(channel) => channel.clone(),
                None => connect(&self.control.transport, admin).await?,
            };
            found.channels.insert(index, channel.clone());
            NodeClient::new(channel).status(pb::NodeStatusRequest {}).await
        })
        .await;
        match answer {
            Ok(Ok(status)) => {
                let replicas = status.into_inner().replicas;
                let mut of_volume = replicas.iter().filter(|local| local.volume_id == self.volume_id);
                of_volume.any(|local| local.view.as_ref().is_some_and(|view| view.serving))
            }
            _ => {
                found.channels.remove(&index);
                false
            }
        }
    }
}
