//! The admin API: tonic services over [`NodeOperations`], one file a service.

pub mod operations;

pub use operations::{
    Adoption, NODE_EVENTS_MAX, NodeEvent, NodeEventKind, NodeFacts, NodeOperations, OperationError, ReplicaReport,
    StoreState,
};
