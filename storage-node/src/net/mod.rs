//! The node on the network: `transport` is the seam through which every listener and link goes, so that TLS enters in
//! one place; `address` is the floating addresses that follow the primary, `address_text` how addresses are written and read.

pub mod address;
pub mod address_text;
pub mod transport;

#[cfg(test)]
pub(crate) mod test_network;
