//! The shell around a session: its socket and its clock. One task owns both; callers hand it requests and wait for the answers,
//! as many at once as the session has slots.
//!
//! It rides through a failover as a kernel's client does: a connection that breaks, or is silent while something is asked for,
//! is made again, with pauses that grow, and what had no answer is sent again. It gives up only after [`Options::patience`].

use std::collections::{BTreeMap, VecDeque};
use std::io::IoSlice;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::arguments::Channel;
use super::callback::Notice;
use super::request::{OPERATIONS_MAX, Request};
use super::result::{Failure, Reply, Results};
use super::session::{Event, Identity, RequestError, RequestId, Session};
use super::statistics::Statistics;
use crate::ids::Moment;
use crate::rpc::auth::SysCredential;
use crate::rpc::record::{self, RecordReader};
use crate::v4::status::Status;
use crate::xdr::XdrError;

/// Requests on their way to the task.
const COMMANDS_MAX: usize = 256;
/// What the server told and nobody has taken; of more the oldest are lost.
const NOTICES_MAX: usize = 256;
/// Parts of messages that wait for the socket; with more, nothing is read from it.
const OUTGOING_PARTS_MAX: usize = 16 << 10;
/// Parts that one system call sends.
const SLICES_MAX: usize = 64;
/// Room for what comes.
const READ_BYTES: usize = 256 << 10;
/// Bytes around a reply's data that do not count into the session's bound.
const RECORD_BYTES_EXTRA: usize = 4096;
/// How long a client that is dropped tries to give its session back.
const CLOSE_TIME: Duration = Duration::from_secs(2);
/// No deadline.
const LONG: Duration = Duration::from_secs(3600);

/// How a client is made, and how it waits.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its name for itself: two clients of one name take each other's place.
    pub owner: Bytes,
    /// Who calls.
    pub credential: SysCredential,
    /// 1 or 2.
    pub minor: u32,
    /// What the session is asked to grant.
    pub channel: Channel,
    /// How long an attempt at a connection may take.
    pub connect_time: Duration,
    /// Other addresses of the same service, for one that has no floating address: they are tried in turn.
    pub alternatives: Vec<SocketAddr>,
    /// How long a connection may be silent while something is asked for.
    pub silence: Duration,
    /// Pause before the next attempt at a connection: it doubles from the first to the last.
    pub pauses: (Duration, Duration),
    /// How long somebody waits without any progress before the client gives up; none for ever, as a kernel does.
    pub patience: Option<Duration>,
    /// How long a client may do nothing before it says that it is still there: less than the lease.
    pub renewal: Duration,
    /// How long nothing is answered, while something is asked for, to be called a stall.
    pub stall: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            owner: Bytes::from_static(b"tandem-client"),
            credential: SysCredential::default(),
            minor: 2,
            channel: Channel {
                request_bytes_max: (1 << 20) + 4096,
                reply_bytes_max: (1 << 20) + 4096,
                cached_reply_bytes_max: 8192,
                operations_max: OPERATIONS_MAX as u32,
                requests_max: 64,
            },
            connect_time: Duration::from_millis(500),
            alternatives: Vec::new(),
            silence: Duration::from_secs(5),
            pauses: (Duration::from_millis(10), Duration::from_millis(500)),
            patience: Some(Duration::from_secs(60)),
            renewal: Duration::from_secs(20),
            stall: Duration::from_millis(50),
        }
    }
}

/// Why a call has no results.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ClientError {
    /// An operation was answered so.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// There is no answer.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The results are not those of what was asked.
    #[error("the results cannot be read: {0}")]
    Results(#[from] XdrError),
    /// The server was not there for too long, or the client is closed.
    #[error("the server cannot be reached")]
    Unreachable,
}

impl ClientError {
    /// What an operation was answered, if one was.
    pub fn status(&self) -> Option<Status> {
        match self {
            Self::Failed(failure) => Some(failure.status),
            _ => None,
        }
    }
}

enum Command {
    Call(Request, oneshot::Sender<Result<Reply, RequestError>>),
    Statistics(oneshot::Sender<Statistics>),
    Limits(oneshot::Sender<Option<(Channel, bool)>>),
    Close(oneshot::Sender<()>),
}

/// A client of one server. Its clones are the same client; with the last of them it ends.
#[derive(Clone, Debug)]
pub struct Client {
    commands: mpsc::Sender<Command>,
    notices: broadcast::Sender<Notice>,
    minor: u32,
}

impl Client {
    /// A client with a session at the server of this address. Errors: [`ClientError::Unreachable`] when there is none within
    /// [`Options::patience`]; [`RequestError::NoSession`].
    pub async fn connect(address: SocketAddr, options: Options) -> Result<Self, ClientError> {
        let (commands, received) = mpsc::channel(COMMANDS_MAX);
        let (notices, _) = broadcast::channel(NOTICES_MAX);
        let minor = options.minor;
        let shell = Shell::new(address, options, received, notices.clone());
        tokio::spawn(shell.run());
        let client = Self { commands, notices, minor };
        // Nothing but SEQUENCE: it is answered as soon as there is a session.
        client.call(client.request()).await?;
        Ok(client)
    }

    /// A request of the client's minor version.
    pub fn request(&self) -> Request {
        Request::new(self.minor)
    }

    /// What a request was answered, success or not.
    pub async fn reply(&self, request: Request) -> Result<Reply, ClientError> {
        let (sender, receiver) = oneshot::channel();
        self.command(Command::Call(request, sender)).await?;
        Ok(receiver.await.map_err(|_| ClientError::Unreachable)??)
    }

    /// The results of a request whose operations all succeed. Errors: [`ClientError::Failed`] if one does not.
    pub async fn call(&self, request: Request) -> Result<Results, ClientError> {
        Ok(self.reply(request).await?.into_results()?)
    }

    /// What has happened so far.
    pub async fn statistics(&self) -> Result<Statistics, ClientError> {
        let (sender, receiver) = oneshot::channel();
        self.command(Command::Statistics(sender)).await?;
        receiver.await.map_err(|_| ClientError::Unreachable)
    }

    /// What the session grants, and whether it lasts beyond the server's process; none while there is no session.
    pub async fn limits(&self) -> Result<Option<(Channel, bool)>, ClientError> {
        let (sender, receiver) = oneshot::channel();
        self.command(Command::Limits(sender)).await?;
        receiver.await.map_err(|_| ClientError::Unreachable)
    }

    /// What the server tells from now on.
    pub fn notices(&self) -> broadcast::Receiver<Notice> {
        self.notices.subscribe()
    }

    /// Gives session and client id back. Requests that are under way are completed first; later ones are refused.
    pub async fn close(self) -> Result<(), ClientError> {
        let (sender, receiver) = oneshot::channel();
        self.command(Command::Close(sender)).await?;
        receiver.await.map_err(|_| ClientError::Unreachable)
    }

    async fn command(&self, command: Command) -> Result<(), ClientError> {
        self.commands.send(command).await.map_err(|_| ClientError::Unreachable)
    }
}

/// Why a connection is served no more.
#[derive(PartialEq, Eq)]
enum End {
    /// Another one is to be made. Tells whether anything came over this one.
    Broken(bool),
    /// The client ends.
    Closed,
}

/// What the task owns.
struct Shell {
    address: SocketAddr,
    options: Options,
    session: Session,
    commands: mpsc::Receiver<Command>,
    notices: broadcast::Sender<Notice>,
    /// Who waits for which request.
    waiting: BTreeMap<RequestId, oneshot::Sender<Result<Reply, RequestError>>>,
    closing: Option<oneshot::Sender<()>>,
    /// When closing has to be done.
    close_by: Option<Instant>,
    started: Instant,
    /// When a request was completed last, or nobody waited.
    progress: Instant,
    is_closed: bool,
}

impl Shell {
    fn new(
        address: SocketAddr,
        options: Options,
        commands: mpsc::Receiver<Command>,
        notices: broadcast::Sender<Notice>,
    ) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let started_at = since.as_nanos() as u64;
        let identity = Identity {
            owner: options.owner.clone(),
            verifier: started_at.to_be_bytes(),
            credential: options.credential.clone(),
            minor: options.minor,
            fore: options.channel,
        };
        let now = Instant::now();
        Self {
            address,
            options,
            session: Session::new(identity, started_at as u32),
            commands,
            notices,
            waiting: BTreeMap::new(),
            closing: None,
            close_by: None,
            started: now,
            progress: now,
            is_closed: false,
        }
    }

    async fn run(mut self) {
        let (first, last) = self.options.pauses;
        let mut pause = first;
        let addresses: Vec<_> = std::iter::once(self.address).chain(self.options.alternatives.clone()).collect();
        let mut untried = addresses.iter().cycle().skip(1).copied();
        let (mut address, mut failed) = (self.address, 0);
        loop {
            if self.waiting.is_empty() && self.commands.is_empty() {
                self.progress = Instant::now();
            }
            let end = match timeout(self.options.connect_time, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    self.session.connected();
                    let end = self.serve(stream).await;
                    self.session.disconnected();
                    end
                }
                _ => End::Broken(false),
            };
            // A client that nobody has any more needs no other connection.
            let is_left = self.commands.is_closed() && self.commands.is_empty() && self.waiting.is_empty();
            if end == End::Closed || is_left || self.is_to_give_up() {
                return;
            }
            if end == End::Broken(true) {
                // It was a good one: the next may be there at once.
                (pause, failed) = (first, 0);
            } else {
                failed += 1;
                address = untried.next().unwrap_or(self.address);
                if failed % addresses.len() != 0 {
                    continue;
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(last);
        }
    }

    /// Nobody waits for ever, and a client that is closed for a moment only.
    fn is_to_give_up(&self) -> bool {
        let now = Instant::now();
        // While no connection is there, requests wait in the channel.
        let is_asked = !self.waiting.is_empty() || !self.commands.is_empty();
        let is_late = self.options.patience.is_some_and(|patience| now.duration_since(self.progress) > patience);
        (is_asked && is_late) || self.close_by.is_some_and(|by| now >= by)
    }

    async fn serve(&mut self, stream: TcpStream) -> End {
        // Small requests go at once. A socket that refuses is slower, no more.
        let _ = stream.set_nodelay(true);
        let (mut reader, mut writer) = stream.into_split();
        let mut records = RecordReader::new(self.options.channel.reply_bytes_max as usize + RECORD_BYTES_EXTRA);
        let (mut received, mut outgoing) = (BytesMut::new(), VecDeque::new());
        let mut heard = Instant::now();
        let mut last_use = heard;
        let mut came = false;
        loop {
            while let Some(message) = self.session.next_outgoing() {
                push(&mut outgoing, message);
            }
            self.deliver();
            if self.is_closed {
                return End::Closed;
            }
            let now = Instant::now();
            if !self.session.is_waiting_for_server() {
                heard = now;
            }
            if now.duration_since(heard) > self.options.silence {
                self.session.statistics().silences += 1;
                return End::Broken(came);
            }
            if self.is_to_give_up() {
                return End::Closed;
            }
            let deadline = self.deadline(heard, last_use);
            if received.capacity() - received.len() < READ_BYTES / 16 {
                received.reserve(READ_BYTES);
            }
            tokio::select! {
                command = self.commands.recv(), if self.session.has_room() && self.close_by.is_none() => {
                    last_use = Instant::now();
                    self.on_command(command);
                }
                read = reader.read_buf(&mut received), if outgoing.len() < OUTGOING_PARTS_MAX => {
                    if !matches!(read, Ok(1..)) || !self.on_received(&mut records, &mut received) {
                        return End::Broken(came);
                    }
                    (came, heard) = (true, Instant::now());
                }
                written = write_some(&mut writer, &outgoing), if !outgoing.is_empty() => match written {
                    Ok(count @ 1..) => take_written(&mut outgoing, count),
                    _ => return End::Broken(came),
                },
                () = sleep_until(deadline) => {
                    let now = Instant::now();
                    self.session.on_time(self.moment(now));
                    if now.duration_since(last_use) >= self.options.renewal {
                        last_use = now;
                        self.session.renew();
                    }
                }
            }
        }
    }

    /// When something is to be looked at although nothing came.
    fn deadline(&self, heard: Instant, last_use: Instant) -> Instant {
        let mut deadline = last_use + self.options.renewal;
        if let Some(moment) = self.session.next_timer() {
            deadline = deadline.min(self.started + Duration::from_millis(moment.0) + Duration::from_millis(1));
        }
        if self.session.is_waiting_for_server() {
            deadline = deadline.min(heard + self.options.silence + Duration::from_millis(1));
        }
        if !self.waiting.is_empty() {
            let patience = self.options.patience.unwrap_or(LONG);
            deadline = deadline.min(self.progress + patience + Duration::from_millis(1));
        }
        self.close_by.map_or(deadline, |by| deadline.min(by))
    }

    fn moment(&self, at: Instant) -> Moment {
        Moment(at.duration_since(self.started).as_millis() as u64)
    }

    /// Takes what callers want, all of it that is there.
    fn on_command(&mut self, command: Option<Command>) {
        let Some(first) = command else { return self.begin_to_close(None) };
        let mut next = Some(first);
        while let Some(command) = next.take() {
            match command {
                Command::Call(request, sender) => {
                    if self.waiting.is_empty() {
                        self.progress = Instant::now();
                    }
                    let id = self.session.submit(request);
                    self.waiting.insert(id, sender);
                }
                // Whoever asked may have gone meanwhile.
                Command::Statistics(sender) => drop(sender.send(self.session.statistics().clone())),
                Command::Limits(sender) => drop(sender.send(self.session.limits())),
                Command::Close(sender) => return self.begin_to_close(Some(sender)),
            }
            if self.session.has_room() {
                next = self.commands.try_recv().ok();
            }
        }
    }

    fn begin_to_close(&mut self, sender: Option<oneshot::Sender<()>>) {
        self.closing = sender;
        self.close_by = Some(Instant::now() + CLOSE_TIME);
        self.session.close();
    }

    /// Gives what came to the session; false if the connection is of no use any more.
    fn on_received(&mut self, records: &mut RecordReader, received: &mut BytesMut) -> bool {
        let now = self.moment(Instant::now());
        loop {
            match records.next(received) {
                Ok(Some(message)) => {
                    if let Err(error) = self.session.on_message(message, now) {
                        tracing::warn!(server = %self.address, %error, "the connection is closed");
                        return false;
                    }
                }
                Ok(None) => return true,
                Err(error) => {
                    tracing::warn!(server = %self.address, %error, "the connection is closed");
                    return false;
                }
            }
        }
    }

    /// Tells callers what has happened.
    fn deliver(&mut self) {
        while let Some(event) = self.session.next_event() {
            match event {
                Event::Completed(id, result) => {
                    let now = Instant::now();
                    let took = now.duration_since(self.progress);
                    if took >= self.options.stall {
                        self.session.statistics().stall(took);
                    }
                    self.progress = now;
                    if let Some(sender) = self.waiting.remove(&id) {
                        // Whoever asked may have gone meanwhile.
                        let _ = sender.send(result);
                    }
                }
                // Without anybody who listens nothing is lost.
                Event::Told(notice) => drop(self.notices.send(notice)),
                Event::Closed => {
                    self.is_closed = true;
                    if let Some(sender) = self.closing.take() {
                        let _ = sender.send(());
                    }
                }
            }
        }
    }
}

/// Puts a message, with the mark of its record, behind the others.
fn push(outgoing: &mut VecDeque<Bytes>, message: Vec<Bytes>) {
    let length = message.iter().map(Bytes::len).sum();
    outgoing.push_back(Bytes::copy_from_slice(&record::mark(length)));
    outgoing.extend(message.into_iter().filter(|part| !part.is_empty()));
}

async fn write_some(writer: &mut OwnedWriteHalf, outgoing: &VecDeque<Bytes>) -> std::io::Result<usize> {
    let mut slices = [IoSlice::new(&[]); SLICES_MAX];
    let count = outgoing.len().min(SLICES_MAX);
    for (slice, part) in slices.iter_mut().zip(outgoing) {
        *slice = IoSlice::new(part);
    }
    writer.write_vectored(&slices[..count]).await
}

/// Forgets what was sent.
fn take_written(outgoing: &mut VecDeque<Bytes>, mut count: usize) {
    while let Some(part) = outgoing.front_mut() {
        if part.len() > count {
            let _sent = part.split_to(count);
            return;
        }
        count -= part.len();
        outgoing.pop_front();
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
