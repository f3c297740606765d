//! `fuse-ext4 IMAGE MOUNT_POINT [--direct] [--cache BYTES] [--data BYTES]`: mounts the ext4 filesystem in a file with the
//! project's engine.
//!
//! Says `mounted` when it is, and unmounts when its standard input ends. `cargo xtask posix` starts it.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use tandem_tests::fuse_ext4::{Request, serve};

const USAGE: &str = "fuse-ext4 IMAGE MOUNT_POINT [--direct] [--cache BYTES] [--data BYTES]";
const CACHE_BYTES: usize = 64 << 20;
const DATA_BYTES: usize = 64 << 20;

fn main() -> ExitCode {
    match execute() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute() -> Result<()> {
    let mut request = None;
    let (mut direct, mut cache_bytes_max, mut data_bytes_max) = (false, CACHE_BYTES, DATA_BYTES);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--direct" => direct = true,
            "--cache" => cache_bytes_max = words.next().context(USAGE)?.parse().context(USAGE)?,
            "--data" => data_bytes_max = words.next().context(USAGE)?.parse().context(USAGE)?,
            image if request.is_none() => request = Some((image.to_owned(), words.next().context(USAGE)?)),
            _ => bail!(USAGE),
        }
    }
    let (image, mount_point) = request.context(USAGE)?;
    let request =
        Request { image: image.into(), mount_point: mount_point.into(), direct, cache_bytes_max, data_bytes_max };
    serve(&request, || {
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "mounted")?;
        Ok(stdout.flush()?)
    })
}
