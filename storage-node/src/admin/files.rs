//! The Files service.

use std::rc::Rc;

use filesystem::Refusal;
use filesystem::directory::Cookie;
use filesystem::engine::{Failure, Filesystem};
use filesystem::layout::file_kind::FileKind;
use filesystem::layout::timestamp::Timestamp;
use proto::VolumeId;
use proto::admin as pb;
use proto::admin::put_file_part;
use replication::config::{Phase, VolumeConfig};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::context::{Context, find_volume};
use super::operations::OperationError;
use crate::files::content::{self, NewContent, NewPart};
use crate::files::error::FilesError;
use crate::files::make::Stage;
use crate::files::mounted::Device;
use crate::files::path::Follow;
use crate::files::shell::{self, Entry, FileInfo};

/// Parts of an answer that may wait to be sent.
const PARTS_QUEUED_MAX: usize = 4;
/// Reports of progress that may wait; more are dropped.
const PROGRESS_QUEUED_MAX: usize = 16;

type Parts<T> = ReceiverStream<Result<T, Status>>;

/// See the module.
pub(super) struct FilesService {
    context: Context,
}

impl FilesService {
    pub(super) fn new(context: Context) -> Self {
        Self { context }
    }

    /// The volume, if this node is its primary.
    fn volume(&self, name: &str) -> Result<VolumeId, OperationError> {
        let state = self.context.state();
        let config = find_volume(&state, name)?;
        if config.phase == Phase::Creating {
            return Err(OperationError::Refused(format!("{} is still being created", config.name)));
        }
        self.context.require_node(config.primary, "is primary")?;
        Ok(config.id)
    }

    /// The volume, if nobody uses its files over NFS: whatever closes its filesystem would get in their way, and they in its.
    fn unserved_volume(&self, name: &str, what: &str) -> Result<VolumeId, OperationError> {
        let volume = self.volume(name)?;
        match self.context.state().volumes.get(&volume).filter(|config| config.nfs.is_some()) {
            None => Ok(volume),
            Some(VolumeConfig { name, .. }) => Err(OperationError::Refused(format!(
                "{name} is served over NFS, and cannot be {what} meanwhile; when its clients can do without it: tandem nfs stop {name}"
            ))),
        }
    }

    /// Runs a job on the volume's open filesystem.
    async fn run<T, J, F>(&self, volume: &str, job: J) -> Result<T, OperationError>
    where
        T: Send + 'static,
        J: FnOnce(Rc<Filesystem<Device>>) -> F + Send + 'static,
        F: Future<Output = Result<T, FilesError>> + 'static,
    {
        let files = self.context.operations.files(self.volume(volume)?).await?;
        Ok(files.run(job).await?)
    }
}

#[tonic::async_trait]
impl pb::files_server::Files for FilesService {
    type MakeStream = Parts<pb::MakeFilesystemProgress>;
    type ListStream = Parts<pb::ListFilesPart>;
    type GetStream = Parts<pb::GetFilePart>;

    async fn make(&self, request: Request<pb::MakeFilesystemRequest>) -> Result<Response<Self::MakeStream>, Status> {
        let request = request.into_inner();
        let volume = self.unserved_volume(&request.volume, "given a new filesystem")?;
        let operations = self.context.operations.clone();
        let (parts, stream) = mpsc::channel(PARTS_QUEUED_MAX);
        let (progress, mut told) = mpsc::channel(PROGRESS_QUEUED_MAX);
        let to_client = parts.clone();
        tokio::spawn(async move {
            while let Some(at) = told.recv().await {
                let stage = match at {
                    crate::files::make::Progress { stage: Stage::Clearing, .. } => "clearing",
                    crate::files::make::Progress { stage: Stage::Writing, .. } => "writing",
                };
                let part =
                    pb::MakeFilesystemProgress { stage: stage.into(), done_bytes: at.done, total_bytes: at.total };
                if to_client.send(Ok(part)).await.is_err() {
                    return;
                }
            }
        });
        // It goes on when the client goes away: half a filesystem is of no use to anybody.
        tokio::spawn(async move {
            let made = operations.make_filesystem(volume, request.force, progress).await;
            let part = made.map(|()| pb::MakeFilesystemProgress::default());
            let _ = parts.send(part.map_err(|why| OperationError::from(why).into())).await;
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn check(
        &self,
        request: Request<pb::CheckFilesystemRequest>,
    ) -> Result<Response<pb::CheckFilesystemReply>, Status> {
        let volume = self.unserved_volume(&request.into_inner().volume, "checked")?;
        let checked = self.context.operations.check_filesystem(volume).await;
        let (verdict, not_opened) = checked.map_err(OperationError::from)?;
        Ok(Response::new(pb::CheckFilesystemReply {
            clean: verdict.clean,
            problems: verdict.problems,
            summary: verdict.summary,
            looked_at_bytes: verdict.looked_at_bytes,
            not_opened: not_opened.unwrap_or_default(),
        }))
    }

    async fn close(
        &self,
        request: Request<pb::CloseFilesystemRequest>,
    ) -> Result<Response<pb::CloseFilesystemReply>, Status> {
        let volume = self.unserved_volume(&request.into_inner().volume, "closed")?;
        match self.context.operations.close_files(volume).await {
            true => Ok(Response::new(pb::CloseFilesystemReply {})),
            false => Err(OperationError::Timeout("it is still being closed; see the node's log".into()).into()),
        }
    }

    async fn usage(&self, request: Request<pb::UsageRequest>) -> Result<Response<pb::UsageReply>, Status> {
        let counts = self.run(&request.into_inner().volume, |engine| async move { Ok(engine.statistics()) }).await?;
        let bytes = |blocks: u64| blocks.saturating_mul(counts.block_size.into());
        Ok(Response::new(pb::UsageReply {
            total_bytes: bytes(counts.blocks),
            free_bytes: bytes(counts.blocks_free),
            available_bytes: bytes(counts.blocks_available),
            inodes: counts.files.into(),
            free_inodes: counts.files_free.into(),
            block_bytes: counts.block_size,
        }))
    }

    async fn stat(&self, request: Request<pb::StatRequest>) -> Result<Response<pb::FileEntry>, Status> {
        let pb::StatRequest { volume, path, follow } = request.into_inner();
        let follow = if follow { Follow::Always } else { Follow::NotLast };
        let file = self.run(&volume, move |engine| async move { shell::stat(&engine, &path, follow).await }).await?;
        Ok(Response::new(file_entry(Vec::new(), &file)))
    }

    async fn list(&self, request: Request<pb::ListFilesRequest>) -> Result<Response<Self::ListStream>, Status> {
        let pb::ListFilesRequest { volume, path } = request.into_inner();
        let files = self.context.operations.files(self.volume(&volume)?).await.map_err(OperationError::from)?;
        let (parts, stream) = mpsc::channel(PARTS_QUEUED_MAX);
        tokio::spawn(async move {
            let mut after = Cookie::START;
            loop {
                let path = path.clone();
                let listed = files.run(move |engine| async move { shell::list(&engine, &path, after).await }).await;
                let part = match listed {
                    Ok((_, next)) if next == after => return,
                    Ok((entries, next)) => {
                        after = next;
                        let entries = entries.into_iter().map(|Entry { name, file }| file_entry(name, &file));
                        Ok(pb::ListFilesPart { entries: entries.collect() })
                    }
                    Err(why) => Err(OperationError::from(why).into()),
                };
                let failed = part.is_err();
                if parts.send(part).await.is_err() || failed {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn make_directory(
        &self,
        request: Request<pb::MakeDirectoryRequest>,
    ) -> Result<Response<pb::MakeDirectoryReply>, Status> {
        let pb::MakeDirectoryRequest { volume, path, parents } = request.into_inner();
        let made =
            move |engine: Rc<Filesystem<Device>>| async move { shell::make_directory(&engine, &path, parents).await };
        self.run(&volume, made).await?;
        Ok(Response::new(pb::MakeDirectoryReply {}))
    }

    async fn remove(&self, request: Request<pb::RemoveFileRequest>) -> Result<Response<pb::RemoveFileReply>, Status> {
        let pb::RemoveFileRequest { volume, path, recursive, directory } = request.into_inner();
        let removing = move |engine: Rc<Filesystem<Device>>| async move {
            shell::remove(&engine, &path, recursive, directory).await
        };
        let removed = self.run(&volume, removing).await?;
        Ok(Response::new(pb::RemoveFileReply { files: removed.files, directories: removed.directories }))
    }

    async fn get(&self, request: Request<pb::GetFileRequest>) -> Result<Response<Self::GetStream>, Status> {
        let pb::GetFileRequest { volume, path } = request.into_inner();
        let files = self.context.operations.files(self.volume(&volume)?).await.map_err(OperationError::from)?;
        let (to_client, stream) = mpsc::channel(PARTS_QUEUED_MAX);
        tokio::spawn(async move {
            let (sender, mut parts) = mpsc::channel(content::PARTS_QUEUED_MAX);
            let reading = files.run(move |engine| async move { content::get(&engine, &path, &sender).await });
            let sending = async {
                while let Some(content::Part { size, permissions, offset, data }) = parts.recv().await {
                    let permissions = permissions.into();
                    let part = pb::GetFilePart { size_bytes: size, permissions, offset, data: data.into() };
                    if to_client.send(Ok(part)).await.is_err() {
                        // The engine sees that nobody takes its parts.
                        parts.close();
                        return;
                    }
                }
            };
            if let (Err(why), ()) = tokio::join!(reading, sending) {
                let _ = to_client.send(Err(OperationError::from(why).into())).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn put(&self, request: Request<Streaming<pb::PutFilePart>>) -> Result<Response<pb::PutFileReply>, Status> {
        let mut stream = request.into_inner();
        let Some(pb::PutFilePart { part: Some(put_file_part::Part::Head(head)) }) = stream.message().await? else {
            return Err(OperationError::Invalid("a put begins with its head".into()).into());
        };
        let permissions = (head.permissions & 0o7777) as u16;
        let new = NewContent { path: head.path, name: head.name, permissions };
        let files = self.context.operations.files(self.volume(&head.volume)?).await.map_err(OperationError::from)?;
        let (sender, mut parts) = mpsc::channel(content::PARTS_QUEUED_MAX);
        let writing = files.run(move |engine| async move { content::put(&engine, &new, &mut parts).await });
        let receiving = async move {
            while let Ok(Some(pb::PutFilePart { part: Some(part) })) = stream.message().await {
                let part = match part {
                    put_file_part::Part::Data(data) => NewPart::Data { offset: data.offset, data: data.data.into() },
                    put_file_part::Part::End(end) => NewPart::End { size: end.size_bytes },
                    put_file_part::Part::Head(_) => return,
                };
                if sender.send(part).await.is_err() {
                    return;
                }
            }
        };
        tokio::pin!(writing);
        let written = tokio::select! {
            written = &mut writing => written,
            () = receiving => writing.await,
        };
        Ok(Response::new(pb::PutFileReply { path: written.map_err(OperationError::from)? }))
    }
}

impl From<FilesError> for OperationError {
    fn from(why: FilesError) -> Self {
        let text = why.to_string();
        match why {
            FilesError::Ended | FilesError::Busy => Self::Unavailable(text),
            FilesError::Clients(_) | FilesError::NotEmpty(_) | FilesError::Nfs(_) => Self::Refused(text),
            FilesError::NoFilesystem | FilesError::Refused { why: Refusal::NotFound, .. } => Self::NotFound(text),
            FilesError::Refused { why: Refusal::Exists, .. } => Self::AlreadyExists(text),
            FilesError::Refused { why: Refusal::BadName, .. } | FilesError::BadPath { .. } => Self::Invalid(text),
            FilesError::Refused { .. } | FilesError::Failed { why: Failure::ReadOnly(_), .. } => Self::Refused(text),
            FilesError::Open(_) | FilesError::Make(_) | FilesError::Failed { .. } | FilesError::Tool(_) => {
                Self::Failed(text)
            }
        }
    }
}

fn time(time: Timestamp) -> pb::FileTime {
    pb::FileTime { seconds: time.seconds, nanoseconds: time.nanoseconds }
}

fn file_entry(name: Vec<u8>, file: &FileInfo) -> pb::FileEntry {
    let fields = &file.fields;
    let mut entry = pb::FileEntry {
        name,
        kind: 0,
        permissions: fields.mode.permissions().into(),
        inode: file.inode.0,
        generation: fields.generation,
        links: fields.links.into(),
        user: fields.user,
        group: fields.group,
        size_bytes: fields.size,
        allocated_bytes: fields.sectors.saturating_mul(512),
        accessed: Some(time(fields.accessed)),
        modified: Some(time(fields.modified)),
        changed: Some(time(fields.changed)),
        created: fields.created.map(time),
        version: fields.version,
        target: file.target.clone(),
        device_major: file.device.map_or(0, |device| device.major),
        device_minor: file.device.map_or(0, |device| device.minor),
    };
    entry.set_kind(match file.kind {
        FileKind::Regular => pb::FileKind::Regular,
        FileKind::Directory => pb::FileKind::Directory,
        FileKind::Symlink => pb::FileKind::Symlink,
        FileKind::CharacterDevice => pb::FileKind::CharacterDevice,
        FileKind::BlockDevice => pb::FileKind::BlockDevice,
        FileKind::Fifo => pb::FileKind::Fifo,
        FileKind::Socket => pb::FileKind::Socket,
    });
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_sorted_by_what_the_caller_can_do() {
        let refused = |why| OperationError::from(FilesError::Refused { path: "/a".into(), why });
        assert!(matches!(refused(Refusal::NotFound), OperationError::NotFound(text) if text.starts_with("/a: ")));
        assert!(matches!(refused(Refusal::Exists), OperationError::AlreadyExists(_)));
        assert!(matches!(refused(Refusal::IsDirectory), OperationError::Refused(text) if text.contains("/a")));
        assert!(matches!(OperationError::from(FilesError::Ended), OperationError::Unavailable(_)));
        assert!(matches!(OperationError::from(FilesError::Clients(2)), OperationError::Refused(_)));
    }
}
