//! The tests that need more than one crate: the end-to-end harness.

pub mod e2e;
