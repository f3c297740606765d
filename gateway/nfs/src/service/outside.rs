//! Operations that wait for the device between what comes before and after them: READ, READ_PLUS, COMMIT, COPY.

use block_device::BlockDevice;
use filesystem::Stop;
use filesystem::engine::{Failure, Handle, Pending, Seek, Wanted};

use super::compound::{Run, Unrecorded};
use super::group::{Limit, put_head, status_of};
use super::{Gone, Service};
use crate::v4::compound::Operation;
use crate::v4::context::{Context, Effects, Halt};
use crate::v4::operations::{commit, copy, handles, read};
use crate::v4::status::Status;
use crate::xdr::Mark;

/// Bytes that COPY reads and writes at a time.
const COPY_PIECE_BYTES: u64 = 1 << 20;

impl<D: BlockDevice + 'static> Service<D> {
    /// Does one such operation. Errors: nothing can be done any more.
    pub(super) async fn outside(&self, run: &mut Run<'_>, operation: &Operation) -> Result<(), Gone> {
        let begin = run.out.mark();
        let limit = run.limit.take().filter(|limit| limit.step == run.next);
        let done = match limit {
            Some(Limit { status, .. }) => Err(Failed::Status(status)),
            None => {
                put_head(&mut run.out, operation.number(), None);
                match operation {
                    Operation::Read(arguments) => self.read(run, None, arguments).await,
                    Operation::ReadPlus(arguments) => self.read_plus(run, arguments).await,
                    Operation::Commit(arguments) => self.commit(run, arguments).await,
                    Operation::Copy(arguments) => self.copy(run, arguments, begin).await,
                    _ => Err(Failed::Status(Status::ServerFault)),
                }
            }
        };
        let status = match done {
            Ok(()) => {
                run.next += 1;
                return Ok(());
            }
            Err(Failed::Engine(Failure::Device(error))) => return Err(Gone(Failure::Device(error))),
            Err(Failed::Engine(failure)) => status_of(&failure),
            Err(Failed::Status(status)) => status,
            Err(Failed::InTheWay) => {
                run.out.truncate(begin);
                return Ok(());
            }
        };
        run.out.truncate(begin);
        put_head(&mut run.out, operation.number(), Some(status));
        run.failed = Some(status);
        Ok(())
    }

    /// Runs what comes before: checks, with the filesystem at hand.
    async fn begin<T>(
        &self,
        run: &mut Run<'_>,
        op: impl Fn(&mut Context<'_, '_>) -> Result<T, Halt>,
    ) -> Result<T, Failed> {
        let (request, at) = (run.request, run.at);
        let ran = self.change(|handle: &mut Handle<'_>, state| {
            let mut context = Context { files: handle, state, request, at, effects: Effects::default() };
            match op(&mut context) {
                Ok(value) => Ok(Ok(value)),
                Err(Halt::Stop(stop)) => Err::<_, Stop>(stop),
                Err(other) => Ok(Err(other)),
            }
        });
        let (result, observed) = ran.await?;
        run.observed = run.observed.and(observed);
        result.map_err(|halt| refusal_of(run, halt))
    }

    /// PUTFH and the READ behind it, which is most of what clients send, in one run of the filesystem. False when one of them is
    /// not to be answered with success: nothing was done then, and each by itself says why.
    pub(super) async fn put_and_read(
        &self,
        run: &mut Run<'_>,
        put: &handles::PutArguments,
        arguments: &read::Arguments,
    ) -> Result<bool, Gone> {
        let begin = run.out.mark();
        if run.limit.is_some() || run.out.len() + READ_HEAD_BYTES > run.request.reply_bytes_max {
            return Ok(false);
        }
        for operation in run.compound.steps.iter().skip(run.next).take(2) {
            put_head(&mut run.out, operation.number(), None);
        }
        match self.read(run, Some(put), arguments).await {
            Ok(()) => {
                run.next += 2;
                Ok(true)
            }
            Err(Failed::Engine(Failure::Device(error))) => Err(Gone(Failure::Device(error))),
            Err(_) => {
                run.out.truncate(begin);
                run.in_the_way = None;
                Ok(false)
            }
        }
    }

    /// Looks whether the caller may read, and where the data is, together; then reads it.
    async fn read(
        &self,
        run: &mut Run<'_>,
        put: Option<&handles::PutArguments>,
        arguments: &read::Arguments,
    ) -> Result<(), Failed> {
        let (request, at, offset) = (run.request, run.at, arguments.offset);
        let room = room_for_data(run);
        let found = self.files.read_found(|handle| {
            let mut state = self.state();
            let mut context = Context { files: handle, state: &mut state, request, at, effects: Effects::default() };
            let current = put.map_or(Ok(()), |put| handles::put(&mut context, put));
            match current.and_then(|()| read::begin(&mut context, arguments)) {
                Ok((file, size, length)) => {
                    let wanted = Wanted { file: file.inode, offset, length: length.min(room) };
                    Ok((Some(wanted), Ok((size, context.at))))
                }
                Err(Halt::Stop(stop)) => Err(stop),
                Err(other) => Ok((None, Err(other))),
            }
        });
        let done = found.await?;
        self.observe(run, done.pending);
        let (data, found) = done.value;
        let (size, at) = found.map_err(|halt| refusal_of(run, halt))?;
        run.at = at;
        run.read_bytes += data.len() as u64;
        read::put(&mut run.out, offset.saturating_add(data.len() as u64) >= size, data);
        Ok(())
    }

    async fn read_plus(&self, run: &mut Run<'_>, arguments: &read::Arguments) -> Result<(), Failed> {
        let (file, size, length) = self.begin(run, |context| read::begin(context, arguments)).await?;
        let length = length.min(room_for_data(run));
        let offset = arguments.offset;
        if offset < size {
            let seek = self.files.run(|handle| handle.seek(file.inode, offset, Seek::Data)).await?;
            let data = seek.value.unwrap_or(size);
            if data > offset {
                let end = offset.saturating_add(length as u64).min(data).min(size);
                read::put_plus(&mut run.out, end >= size, offset, read::Found::Hole(end - offset));
                return Ok(());
            }
        }
        let done = self.files.read(file.inode, offset, length).await?;
        self.observe(run, done.pending);
        run.read_bytes += done.value.len() as u64;
        let at_end = offset.saturating_add(done.value.len() as u64) >= size;
        read::put_plus(&mut run.out, at_end, offset, read::Found::Data(done.value));
        Ok(())
    }

    async fn commit(&self, run: &mut Run<'_>, arguments: &commit::Arguments) -> Result<(), Failed> {
        let file = self.begin(run, |context| commit::begin(context, arguments)).await?;
        self.files.fsync(file.inode).await?;
        commit::put(&mut run.out, &self.facts.write_verifier);
        Ok(())
    }

    async fn copy(&self, run: &mut Run<'_>, arguments: &copy::Arguments, begin: Mark) -> Result<(), Failed> {
        let plan = self.begin(run, |context| copy::begin(context, arguments)).await?;
        let now = run.request.now;
        let mut copied = 0;
        while copied < plan.count {
            let length = (plan.count - copied).min(COPY_PIECE_BYTES) as usize;
            let piece = self.files.read(plan.source.inode, arguments.from + copied, length).await?;
            self.observe(run, piece.pending);
            if piece.value.is_empty() {
                break;
            }
            let length = piece.value.len() as u64;
            let written = self.files.write(plan.target.inode, arguments.to + copied, piece.value, now).await;
            let written = match written {
                Ok(written) => written,
                // What was copied before stands: the client asks for the rest, and hears of it then.
                Err(Failure::NoSpace) if copied > 0 => break,
                Err(failure) => return Err(failure.into()),
            };
            copied += written.value as u64;
            if (written.value as u64) < length {
                break;
            }
        }
        run.changed = true;
        run.unrecorded = Some(Unrecorded { file: plan.target, begin });
        copy::put(&mut run.out, copied, &self.facts.write_verifier);
        Ok(())
    }

    fn observe(&self, run: &mut Run<'_>, observed: Pending) {
        run.observed = run.observed.and(observed);
    }
}

/// Bytes of a READ's result before its data, and of what may follow in the compound.
const READ_HEAD_BYTES: usize = 256;

/// Bytes of data that the reply has room for: what was put before leaves it, and the client bounds the whole.
fn room_for_data(run: &Run<'_>) -> usize {
    run.request.reply_bytes_max.saturating_sub(run.out.len() + READ_HEAD_BYTES)
}

/// Why the next operation has no result, as whoever looked before it says.
fn refusal_of(run: &mut Run<'_>, halt: Halt) -> Failed {
    match halt {
        Halt::Status(status) => Failed::Status(status),
        Halt::InTheWay(refusal) => {
            run.in_the_way = Some((run.next, refusal));
            Failed::InTheWay
        }
        // The engine has dealt with those.
        Halt::Stop(_) => Failed::Status(Status::ServerFault),
    }
}

/// Why there is no result.
enum Failed {
    Status(Status),
    Engine(Failure),
    /// Somebody else has what is wanted: `run.in_the_way`.
    InTheWay,
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        Self::Engine(failure)
    }
}
