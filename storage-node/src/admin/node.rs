//! The Node service: the node addressed itself.

use proto::admin as pb;
use tonic::{Request, Response, Status};

use super::context::Context;

/// See the module.
pub(super) struct NodeService {
    context: Context,
}

impl NodeService {
    pub(super) fn new(context: Context) -> Self {
        Self { context }
    }
}

#[tonic::async_trait]
impl pb::node_server::Node for NodeService {
    async fn status(&self, _: Request<pb::NodeStatusRequest>) -> Result<Response<pb::NodeStatusReply>, Status> {
        Ok(Response::new(self.context.node_status().await))
    }

    async fn stop(&self, _: Request<pb::StopRequest>) -> Result<Response<pb::StopReply>, Status> {
        self.context.operations.stop();
        Ok(Response::new(pb::StopReply {}))
    }
}
