//! Placeholder.
/// x
pub fn main(_seconds: u64, _keep: Option<std::path::PathBuf>) -> std::process::ExitCode { std::process::ExitCode::FAILURE }
