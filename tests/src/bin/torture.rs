//! Torture.

use std::path::Path;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["disk", mount_point] => Ok(tandem_tests::torture::disk::serve(Path::new(mount_point))?),
        _ => anyhow::bail!("unknown"),
    }
}
