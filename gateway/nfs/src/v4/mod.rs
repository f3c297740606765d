//! NFSv4.1 (RFC 8881) and 4.2 (RFC 7862, RFC 8276).

pub mod status;
