//! The `tandem-torture` binary: `tandem` with fault points, for tests only.

use std::process::ExitCode;

fn main() -> ExitCode {
    storage_node::cli::main()
}
