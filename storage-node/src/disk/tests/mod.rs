//! Tests of the disk engine on real files.
