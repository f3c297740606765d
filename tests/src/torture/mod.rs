//! Torture: real processes on disks that lose what was not flushed, under faults at random moments.

pub mod disk;
