//! MOUNT: handles of directories for clients of NFSv3.

use block_device::BlockDevice;
use filesystem::engine::Failure;
use tracing::{debug, info};

use super::group::status_of;
use super::{Answer, Gone, Origin, Service};
use crate::access::Caller;
use crate::mount::list::Mount;
use crate::mount::path::{Path, walk};
use crate::mount::procedure::{Procedure, put_exports, put_mounted, put_mounts, put_no_exports};
use crate::rpc::call::Call;
use crate::rpc::reply::Unaccepted;
use crate::v3::procedure::BadCall;
use crate::v4::context::{Context, Effects, Halt, OtherVolume, Others, Position};
use crate::v4::file_handle::FileHandle;
use crate::v4::status::Status;
use crate::xdr::{Decoder, Encoder};

impl<D: BlockDevice + 'static> Service<D> {
    /// Answers a call of MOUNT, whose arguments are next in the decoder.
    pub(super) async fn call_mount(&self, origin: Origin, call: &Call, mut decoder: Decoder) -> Result<Answer, Gone> {
        let procedure = match Procedure::decode(call.procedure, &mut decoder) {
            Ok(procedure) => procedure,
            Err(BadCall::Unavailable) => return Ok(Answer::Unaccepted(Unaccepted::ProcedureUnavailable)),
            Err(BadCall::Garbage) => return Ok(Answer::Unaccepted(Unaccepted::GarbageArguments)),
        };
        let caller = (self.world.caller)(origin.address, &call.credential);
        let client = origin.address.to_canonical().to_string();
        let mut out = Encoder::new();
        match procedure {
            Procedure::Null => {}
            Procedure::Mount(path) => match self.mount(&caller, &path).await? {
                Ok(handle) => {
                    info!(%client, path = %path.0.escape_ascii(), "mounted");
                    put_mounted(&mut out, handle);
                    self.mounts.borrow_mut().add(Mount { client, path: path.0 });
                }
                Err(status) => {
                    debug!(%client, path = %path.0.escape_ascii(), "not mounted: {status}");
                    out.u32(crate::mount::code(status));
                }
            },
            Procedure::Unmount(path) => self.mounts.borrow_mut().remove(&Mount { client, path: path.0 }),
            Procedure::UnmountAll => self.mounts.borrow_mut().remove_all_of(&client),
            // Whom no export names learns nothing of those that are named.
            Procedure::Dump | Procedure::Export if caller.refused => put_no_exports(&mut out),
            Procedure::Dump => put_mounts(&mut out, &self.mounts.borrow()),
            Procedure::Export => put_exports(&mut out, &self.facts.name, &(self.world.exports)()),
        }
        Ok(Answer::Result(out))
    }

    /// The handle of a directory.
    async fn mount(&self, caller: &Caller, path: &Path) -> Result<Result<FileHandle, Status>, Gone> {
        if caller.refused {
            return Ok(Err(Status::Access));
        }
        let (volume, names) = match path.parts() {
            Ok(parts) => parts,
            Err(status) => return Ok(Err(status)),
        };
        if volume != self.facts.name {
            // NFSv3 has no referrals.
            if let Some(other) = (self.world.others)().iter().find(|other| other.name == volume) {
                info!(servers = ?other.location.servers, "the volume is served elsewhere");
            }
            return Ok(Err(Status::NoEntry));
        }
        let (statistics, none) = (self.files.statistics(), Vec::<OtherVolume>::new);
        let others = Others::new(&none);
        let request = self.request_of_nobody(caller, (&others, &statistics));
        let walked = self.change(|handle, state| {
            let (at, effects) = (Position::default(), Effects::default());
            let mut context = Context { files: handle, state, request, at, effects };
            match walk(&mut context, &names) {
                Ok(directory) => Ok(Ok(context.handle_of(directory))),
                Err(Halt::Stop(stop)) => Err(stop),
                Err(Halt::Status(status)) => Ok(Err(status)),
                Err(Halt::InTheWay(refusal)) => Ok(Err(refusal.status())),
            }
        });
        match walked.await {
            Ok((found, observed)) => {
                self.files.kept(observed).await.map_err(Gone)?;
                Ok(found)
            }
            Err(Failure::Device(error)) => Err(Gone(Failure::Device(error))),
            Err(failure) => Ok(Err(status_of(&failure))),
        }
    }
}
