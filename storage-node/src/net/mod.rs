//! The node on the network: `transport` is the seam through which every listener and link goes, so that TLS enters in
//! one place; `address` is the floating addresses that follow the primary.

pub mod address;
pub mod transport;

#[cfg(test)]
pub(crate) mod test_network;
