//! `tandem fs cat|get|put|cp`: the content of files, as parts over the admin API, with a progress bar.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use indicatif::ProgressBar;
use proto::admin as pb;
use proto::admin::files_client::FilesClient;
use proto::admin::put_file_part::Part;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::exit::Failure;
use super::fs_arguments::Location;
use super::progress;
use super::session::Session;
use crate::admin::client::connect;

/// Bytes in one part.
const PART_BYTES: usize = 1 << 20;
/// Parts that may wait to be sent.
const PARTS_QUEUED_MAX: usize = 4;
/// Permissions of a file that comes from no file.
const PERMISSIONS: u32 = 0o644;
/// Stands for standard input or output in the place of a local file.
const STANDARD: &str = "-";

/// A file of the volume on its way here.
struct Incoming {
    parts: Streaming<pb::GetFilePart>,
    size: u64,
    permissions: u32,
}

async fn open(session: &Session, from: &Location) -> Result<Incoming, Failure> {
    let request = &pb::GetFileRequest { volume: from.volume.clone(), path: from.path.clone() };
    let mut parts = session.call(|channel| async move { FilesClient::new(channel).get(request.clone()).await }).await?;
    // The first part has no data; an error comes in its place.
    let head = parts.message().await?.ok_or_else(|| broken(from))?;
    Ok(Incoming { parts, size: head.size_bytes, permissions: head.permissions })
}

fn broken(from: &Location) -> Failure {
    Failure::Unreachable(format!("{}: the node ended while the file was on its way", from.shown()))
}

fn bar(session: &Session, what: &str, size: u64) -> Option<ProgressBar> {
    let bar = (!session.json && io::stderr().is_terminal()).then(progress::bar)?;
    bar.set_message(what.to_owned());
    bar.set_length(size);
    Some(bar)
}

/// Writes a file to standard output.
pub(super) async fn cat(session: &Session, from: &Location) -> Result<(), Failure> {
    let mut incoming = open(session, from).await?;
    let mut output = io::stdout().lock();
    let mut at = 0;
    let written = async {
        while let Some(part) = incoming.parts.message().await? {
            zeros(&mut output, part.offset.saturating_sub(at))?;
            output.write_all(&part.data)?;
            at = part.offset + part.data.len() as u64;
        }
        zeros(&mut output, incoming.size.saturating_sub(at))?;
        Ok(output.flush()?)
    };
    match written.await {
        // As in a shell: whoever reads has seen enough.
        Err(CatError::Output(why)) if why.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(CatError::Output(why)) => Err(why.into()),
        Err(CatError::Node(status)) => Err(status.into()),
        Ok(()) => Ok(()),
    }
}

enum CatError {
    Output(io::Error),
    Node(tonic::Status),
}

impl From<io::Error> for CatError {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl From<tonic::Status> for CatError {
    fn from(status: tonic::Status) -> Self {
        Self::Node(status)
    }
}

fn zeros(output: &mut impl Write, count: u64) -> io::Result<()> {
    io::copy(&mut io::repeat(0).take(count), output).map(drop)
}

/// Writes a file of the volume to a local one, which is there only when it is whole.
pub(super) async fn get(session: &Session, from: &Location, to: &Path) -> Result<(), Failure> {
    if to == Path::new(STANDARD) {
        return cat(session, from).await;
    }
    let mut to = to.to_path_buf();
    if to.is_dir() {
        to.push(std::ffi::OsStr::from_bytes(last_name(&from.path)));
    }
    let mut incoming = open(session, from).await?;
    let directory = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut local = tempfile::Builder::new().prefix(".tandem-get-").tempfile_in(directory).map_err(at_local(&to))?;
    let bar = bar(session, "get", incoming.size);
    let mut end = 0;
    while let Some(part) = incoming.parts.message().await? {
        let file = local.as_file_mut();
        file.seek(SeekFrom::Start(part.offset)).and_then(|_| file.write_all(&part.data)).map_err(at_local(&to))?;
        end = part.offset + part.data.len() as u64;
        bar.as_ref().inspect(|bar| bar.set_position(end));
    }
    let file = local.as_file_mut();
    let permissions = std::fs::Permissions::from_mode(incoming.permissions & 0o777);
    let size = incoming.size.max(end);
    file.set_len(size).and_then(|()| file.set_permissions(permissions)).map_err(at_local(&to))?;
    local.persist(&to).map_err(|error| at_local(&to)(error.error))?;
    bar.inspect(|bar| bar.finish_and_clear());
    session.print(&json!({ "path": to.display().to_string(), "size_bytes": size }), "")
}

fn at_local(path: &Path) -> impl Fn(io::Error) -> Failure {
    let path = path.display().to_string();
    move |error| Failure::Failed(format!("{path}: {error}"))
}

fn last_name(path: &[u8]) -> &[u8] {
    path.split(|byte| *byte == b'/').rfind(|name| !name.is_empty()).unwrap_or_default()
}

/// Writes a local file, or standard input, to the volume. When this returns it is durable on both boxes.
pub(super) async fn put(session: &Session, from: &Path, to: &Location) -> Result<(), Failure> {
    let is_standard = from == Path::new(STANDARD);
    let (size, permissions) = match is_standard {
        true => (0, PERMISSIONS),
        false => {
            let known = std::fs::metadata(from).map_err(at_local(from))?;
            if known.is_dir() {
                return Err(Failure::Usage(format!("{}: it is a directory; put takes one file", from.display())));
            }
            (known.len(), known.permissions().mode() & 0o777)
        }
    };
    let name = from.file_name().filter(|_| !is_standard).map(|name| name.as_bytes().to_vec()).unwrap_or_default();
    let bar = bar(session, "put", size);
    let (sender, parts) = mpsc::channel(PARTS_QUEUED_MAX);
    let (file, told) = (from.to_path_buf(), bar.clone());
    let reading = tokio::task::spawn_blocking(move || match is_standard {
        true => read_all(&mut io::stdin().lock(), &sender, told.as_ref()),
        false => read_all(&mut File::open(file)?, &sender, told.as_ref()),
    });
    let put = send(session, to, name, permissions, parts).await;
    // A local file that cannot be read breaks the transfer: its own error says more.
    if let Ok(Err(why)) = reading.await {
        return Err(at_local(from)(why));
    }
    let path = put?;
    bar.inspect(|bar| bar.finish_and_clear());
    session.print(&json!({ "volume": to.volume, "path": String::from_utf8_lossy(&path) }), "")
}

/// Sends a file's parts, but for those of zeros only: they become holes.
fn read_all(
    source: &mut impl Read,
    parts: &mpsc::Sender<pb::PutFilePart>,
    bar: Option<&ProgressBar>,
) -> io::Result<()> {
    let mut at = 0;
    loop {
        let mut data = Vec::with_capacity(PART_BYTES);
        source.by_ref().take(PART_BYTES as u64).read_to_end(&mut data)?;
        if data.is_empty() {
            break;
        }
        let offset = at;
        at += data.len() as u64;
        if data.iter().any(|byte| *byte != 0) && parts.blocking_send(data_part(offset, data)).is_err() {
            return Ok(());
        }
        bar.inspect(|bar| bar.set_position(at));
    }
    let _ = parts.blocking_send(end_part(at));
    Ok(())
}

fn data_part(offset: u64, data: Vec<u8>) -> pb::PutFilePart {
    pb::PutFilePart { part: Some(Part::Data(pb::PutFileData { offset, data })) }
}

fn end_part(size_bytes: u64) -> pb::PutFilePart {
    pb::PutFilePart { part: Some(Part::End(pb::PutFileEnd { size_bytes })) }
}

/// Sends a head and then the parts to the volume's primary; gives the path of the new file.
async fn send(
    session: &Session,
    to: &Location,
    name: Vec<u8>,
    permissions: u32,
    mut parts: mpsc::Receiver<pb::PutFilePart>,
) -> Result<Vec<u8>, Failure> {
    // A stream cannot be sent again to where a redirect points, so the primary is looked for first.
    let address = primary(session, &to.volume).await?;
    let head = pb::PutFileHead { volume: to.volume.clone(), path: to.path.clone(), name, permissions };
    let (sender, stream) = mpsc::channel(1);
    let sending = async move {
        let head = pb::PutFilePart { part: Some(Part::Head(head)) };
        let mut next = Some(head);
        while let Some(part) = next {
            if sender.send(part).await.is_err() {
                return;
            }
            next = parts.recv().await;
        }
    };
    let channel = connect(&session.transport, &address).await?;
    let mut client = FilesClient::new(channel);
    let (reply, ()) = tokio::join!(client.put(ReceiverStream::new(stream)), sending);
    Ok(reply?.into_inner().path)
}

/// Admin address of a volume's primary.
async fn primary(session: &Session, volume: &str) -> Result<String, Failure> {
    let primary = session.show(volume).await?.summary.unwrap_or_default().primary;
    let records = session.nodes().await?.into_iter().filter_map(|node| node.record);
    let record = records.into_iter().find(|record| record.id == primary);
    let unknown = || Failure::Unreachable(format!("{volume} has no primary now; see `tandem volume show {volume}`"));
    Ok(record.ok_or_else(unknown)?.admin_address)
}

/// Copies a file to another place, in the same volume or another one; the content passes through here.
pub(super) async fn copy(session: &Session, from: &Location, to: &Location) -> Result<(), Failure> {
    let Incoming { parts: mut incoming, size, permissions } = open(session, from).await?;
    let bar = bar(session, "copy", size);
    let (sender, parts) = mpsc::channel(PARTS_QUEUED_MAX);
    let told = bar.clone();
    let reading = async move {
        let mut end = 0;
        while let Some(part) = incoming.message().await? {
            end = part.offset + part.data.len() as u64;
            if sender.send(data_part(part.offset, part.data)).await.is_err() {
                return Ok(());
            }
            told.as_ref().inspect(|bar| bar.set_position(end));
        }
        let _ = sender.send(end_part(size.max(end))).await;
        Ok::<(), Failure>(())
    };
    // Without what would run as somebody else.
    let writing = send(session, to, last_name(&from.path).to_vec(), permissions & 0o777, parts);
    let (read, written) = tokio::join!(reading, writing);
    // What broke the reading broke the writing, too.
    read?;
    let path = written?;
    bar.inspect(|bar| bar.finish_and_clear());
    session.print(&json!({ "volume": to.volume, "path": String::from_utf8_lossy(&path) }), "")
}
