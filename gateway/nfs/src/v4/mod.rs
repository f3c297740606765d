//! NFSv4.1 (RFC 8881) and 4.2 (RFC 7862, RFC 8276).

pub mod attributes;
pub mod bitmap;
pub mod callback;
pub mod compound;
pub mod context;
pub mod dispatch;
pub mod exclusive;
pub mod file_handle;
pub mod listing;
pub mod name;
pub mod operations;
pub mod owner;
pub mod stateid;
pub mod status;
