//! The node on the network: `transport` is the seam through which every listener and link goes, so that TLS enters in
//! one place; `address` is the floating addresses that follow the primary, `address_text` how addresses are written and read,
//! `namespaces` a network of namespaces on one machine, for the demo and for tests.

pub mod address;
pub mod address_text;
pub(crate) mod namespaces;
pub mod transport;

#[cfg(test)]
pub(crate) mod test_network;
