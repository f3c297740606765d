//! What several measurements of NFS share: the replicated pair that serves a volume.
#![forbid(unsafe_code)]

pub mod served;
