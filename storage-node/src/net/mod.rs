//! The transport seam: every listener and every link of the node goes through here, so that TLS enters in one place.

pub mod transport;
