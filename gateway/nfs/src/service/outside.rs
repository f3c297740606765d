//! Operations that wait for the device between what comes before and after them: READ, READ_PLUS, COMMIT, COPY.

use block_device::BlockDevice;
use filesystem::Stop;
use filesystem::engine::{Failure, Handle, Pending, Seek};

use super::compound::{Run, Unrecorded};
use super::group::{Limit, put_head, status_of};
use super::{Gone, Service};
use crate::v4::compound::Operation;
use crate::v4::context::{Context, Effects, Halt};
use crate::v4::operations::{commit, copy, read};
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
                    Operation::Read(arguments) => self.read(run, arguments, false).await,
                    Operation::ReadPlus(arguments) => self.read(run, arguments, true).await,
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
        match result {
            Ok(value) => Ok(value),
            Err(Halt::Status(status)) => Err(Failed::Status(status)),
            Err(Halt::InTheWay(refusal)) => {
                run.in_the_way = Some((run.next, refusal));
                Err(Failed::InTheWay)
            }
            Err(Halt::Stop(_)) => Err(Failed::Status(Status::ServerFault)),
        }
    }

    async fn read(&self, run: &mut Run<'_>, arguments: &read::Arguments, plus: bool) -> Result<(), Failed> {
        let (file, size, length) = self.begin(run, |context| read::begin(context, arguments)).await?;
        // What was put before has to leave room, and the client bounds the whole.
        let room = run.request.reply_bytes_max.saturating_sub(run.out.len() + READ_HEAD_BYTES);
        let length = length.min(room);
        let offset = arguments.offset;
        if plus && offset < size {
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
        match plus {
            true => read::put_plus(&mut run.out, at_end, offset, read::Found::Data(done.value)),
            false => read::put(&mut run.out, at_end, done.value),
        }
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
