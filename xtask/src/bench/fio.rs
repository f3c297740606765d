//! Running fio on a target and reading its result.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;

use super::targets::Target;
use crate::shell;

/// Not counted at the start of a run.
pub(super) const RAMP_SECONDS: u64 = 1;

/// What one fio run measured.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub(super) struct Sample {
    pub(super) iops: f64,
    pub(super) bytes_per_second: f64,
    pub(super) latency_mean_us: f64,
    pub(super) latency_p50_us: f64,
    pub(super) latency_p99_us: f64,
    pub(super) latency_p999_us: f64,
    /// Processor time of the target's own processes for each operation; set by whoever watches them.
    pub(super) cpu_per_operation_us: f64,
    /// Operations that were counted.
    pub(super) operations: f64,
}

/// Runs a job file of `benches/fio` on a target for some seconds.
pub(super) fn run(target: &Target, job: &Path, size_bytes: u64, seconds: u64, scratch: &Path) -> Result<Sample> {
    let body = fs::read_to_string(job).with_context(|| format!("reading {}", job.display()))?;
    let header = format!(
        "[global]\n{}size={size_bytes}\nruntime={seconds}\ntime_based=1\nramp_time={RAMP_SECONDS}\nnorandommap=1\nrandrepeat=0\n",
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
    let number = |value: &Value| value.as_f64().context("a figure is missing in fio's JSON");
    let sides: Vec<&Value> =
        [&job["read"], &job["write"]].into_iter().filter(|side| side["total_ios"].as_u64().unwrap_or(0) > 0).collect();
    if sides.is_empty() {
        bail!("fio did nothing, or its JSON is not understood");
    }
    let sum = |figure: &str| sides.iter().map(|side| number(&side[figure])).sum::<Result<f64>>();
    let operations = sum("total_ios")?;
    // Of a mix: the mean over all operations, and the worse of the two percentiles.
    let weighed = |side: &&Value| Ok(number(&side["lat_ns"]["mean"])? * number(&side["total_ios"])? / operations);
    let percentile = |name: &str| -> Result<f64> {
        let of = |side: &&Value| number(&side["clat_ns"]["percentile"][name]);
        Ok(sides.iter().map(of).collect::<Result<Vec<_>>>()?.into_iter().fold(0.0, f64::max) / 1000.0)
    };
    Ok(Sample {
        iops: sum("iops")?,
        bytes_per_second: sum("bw_bytes")?,
        latency_mean_us: sides.iter().map(weighed).sum::<Result<f64>>()? / 1000.0,
        latency_p50_us: percentile("50.000000")?,
        latency_p99_us: percentile("99.000000")?,
        latency_p999_us: percentile("99.900000")?,
        cpu_per_operation_us: 0.0,
        operations,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fio_output_is_read_past_its_notes() {
        let output = br#"note: both iodepth >= 1
            {"jobs":[{"read":{"total_ios":0},"write":{"total_ios":5,"iops":10.5,"bw_bytes":4096,
            "lat_ns":{"mean":2000.0},"clat_ns":{"percentile":{"50.000000":1000,"99.000000":9000,"99.900000":9500}}}}]}"#;
        let sample = parse(output).expect("valid");
        let wanted = Sample {
            iops: 10.5,
            bytes_per_second: 4096.0,
            latency_mean_us: 2.0,
            latency_p50_us: 1.0,
            latency_p99_us: 9.0,
            latency_p999_us: 9.5,
            cpu_per_operation_us: 0.0,
            operations: 5.0,
        };
        assert_eq!(sample, wanted);
        assert!(parse(b"fio: failed").is_err());
        assert!(parse(b"{\"jobs\":[]}").is_err());
    }
}
