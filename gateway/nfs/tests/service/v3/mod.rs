//! NFSv3 and MOUNT, as their clients see them.

mod beside_v4;
mod client;
mod directories;
mod files;
mod hostile;
mod limits;
mod mount;
mod once;
mod statistics;
