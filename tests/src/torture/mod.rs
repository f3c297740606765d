//! Torture: real processes on disks that lose what was not flushed, under faults at random moments.

pub mod campaign;
pub mod cuts;
pub mod disk;
pub mod fio;
pub mod flips;
pub mod image;
pub mod kills;
pub mod ledger;
pub mod load;
pub mod pattern;
pub mod points;
pub mod rig;
pub mod stores;
