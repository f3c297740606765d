//! Running fio on a target and reading its result.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use super::targets::Target;
use crate::shell;

/// What one fio run measured.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub(super) struct Sample {
    pub(super) iops: f64,
    pub(super) bytes_per_second: f64,
    pub(super) latency_mean_us: f64,
    pub(super) latency_p99_us: f64,
}

/// Runs a job file of `benches/fio` on a target for some seconds.
pub(super) fn run(target: &Target, job: &Path, size_bytes: u64, seconds: u64, scratch: &Path) -> Result<Sample> {
    let body = fs::read_to_string(job).with_context(|| format!("reading {}", job.display()))?;
    let header = format!(
        "[global]\n{}size={size_bytes}\nruntime={seconds}\ntime_based=1\nramp_time=1\nnorandommap=1\nrandrepeat=0\n",
        target.fio_globals()
    );
    parse(&invoke(&format!("{header}{body}"), scratch)?)
}

/// Writes the whole target once, so that nobody is measured on blocks that are not allocated yet.
pub(super) fn fill(target: &Target, size_bytes: u64, scratch: &Path) -> Result<()> {
    let job = format!("[global]\n{}size={size_bytes}\n[fill]\nrw=write\nbs=1m\niodepth=8\n", target.fio_globals());
    invoke(&job, scratch).map(|_| ())
}

fn invoke(job: &str, scratch: &Path) -> Result<Vec<u8>> {
    let path = scratch.join("job.fio");
    fs::write(&path, job)?;
    // fio leaves files named after the job behind in its working directory.
    let output = shell::output(Command::new("fio").arg("--output-format=json").arg(&path).current_dir(scratch))?;
    Ok(output.stdout)
}

/// Reads fio's JSON; lines before the object (fio's own notes) are passed over.
fn parse(output: &[u8]) -> Result<Sample> {
    let text = String::from_utf8_lossy(output);
    let start = text.find('{').context("fio printed no JSON")?;
    let json: Value = serde_json::from_str(&text[start..]).context("fio's JSON")?;
    let job = &json["jobs"][0];
    let side = if job["read"]["total_ios"].as_u64().unwrap_or(0) > 0 { &job["read"] } else { &job["write"] };
    let number = |value: &Value| value.as_f64().context("a figure is missing in fio's JSON");
    Ok(Sample {
        iops: number(&side["iops"])?,
        bytes_per_second: number(&side["bw_bytes"])?,
        latency_mean_us: number(&side["lat_ns"]["mean"])? / 1000.0,
        latency_p99_us: number(&side["clat_ns"]["percentile"]["99.000000"])? / 1000.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fio_output_is_read_past_its_notes() {
        let output = br#"note: both iodepth >= 1
            {"jobs":[{"read":{"total_ios":0},"write":{"total_ios":5,"iops":10.5,"bw_bytes":4096,
            "lat_ns":{"mean":2000.0},"clat_ns":{"percentile":{"99.000000":9000}}}}]}"#;
        let sample = parse(output).expect("valid");
        let wanted = Sample { iops: 10.5, bytes_per_second: 4096.0, latency_mean_us: 2.0, latency_p99_us: 9.0 };
        assert_eq!(sample, wanted);
        assert!(parse(b"fio: failed").is_err());
        assert!(parse(b"{\"jobs\":[]}").is_err());
    }
}
