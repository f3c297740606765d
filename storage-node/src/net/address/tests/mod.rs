//! Floating addresses in network namespaces, against the kernel's own idea of addresses, neighbours and connections.

mod addresses;
mod capabilities;
mod clients;
mod neighbours;
mod validity;
