//! Running fio on a target and reading its result.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};

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
    /// The operations of the volume that had the fewest, as a part of what an equal share would be; 1 with one volume.
    pub(super) least_share: f64,
}

/// Runs a job file of `benches/fio` on a target for some seconds; on all of its volumes at once.
pub(super) fn run(target: &Target, job: &Path, size_bytes: u64, seconds: u64, scratch: &Path) -> Result<Sample> {
    run_on(target, usize::MAX, job, size_bytes, seconds, scratch)
}

/// The same on the first volumes only.
pub(super) fn run_on(
    target: &Target,
    volumes_max: usize,
    job: &Path,
    size_bytes: u64,
    seconds: u64,
    scratch: &Path,
) -> Result<Sample> {
    let volumes: Vec<String> = target.fio_volumes().into_iter().take(volumes_max).collect();
    parse(&invoke(target, &job_on(&volumes, job, size_bytes, seconds)?, scratch)?)
}

/// A run of fio that goes on meanwhile.
pub(super) struct Running(Child);

impl Running {
    /// The same as `run`, without waiting for its end.
    pub(super) fn start(target: &Target, job: &Path, size: u64, seconds: u64, scratch: &Path) -> Result<Self> {
        let mut command = command(target, &job_on(&target.fio_volumes(), job, size, seconds)?, scratch)?;
        Ok(Self(command.stdout(Stdio::piped()).spawn().context("cannot start fio")?))
    }

    pub(super) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Waits for its end.
    pub(super) fn finish(mut self) -> Result<Sample> {
        let mut printed = Vec::new();
        self.0.stdout.take().context("no standard output")?.read_to_end(&mut printed)?;
        let status = self.0.wait()?;
        if !status.success() {
            bail!("fio ended with {status}");
        }
        parse(&printed)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A job file of `benches/fio` completed for some volumes.
fn job_on(volumes: &[String], job: &Path, size: u64, seconds: u64) -> Result<String> {
    let body = fs::read_to_string(job).with_context(|| format!("reading {}", job.display()))?;
    Ok(job_text(volumes, &body, size, seconds))
}

/// A complete job from the `body` of a file of `benches/fio`: on all `volumes` (fio's options for each) at once, within
/// their first `size` bytes, counted for `seconds`.
pub(super) fn job_text(volumes: &[String], body: &str, size: u64, seconds: u64) -> String {
    let header = format!(
        "[global]\nsize={size}\nruntime={seconds}\ntime_based=1\nramp_time={RAMP_SECONDS}\nnorandommap=1\nrandrepeat=0\n"
    );
    let options: Vec<&str> = body.lines().filter(|line| !line.starts_with(['[', ';'])).collect();
    let section = |volume: &String| format!("[volume]\n{volume}{}\n", options.join("\n"));
    header + &volumes.iter().map(section).collect::<String>()
}

/// A job that writes a volume once in full.
pub(super) fn fill_text(volume: &str, size: u64) -> String {
    format!("[fill]\n{volume}size={size}\nrw=write\nbs=1m\niodepth=8\n")
}

/// Writes the whole target once, so that nobody is measured on blocks that are not allocated yet.
pub(super) fn fill(target: &Target, size_bytes: u64, scratch: &Path) -> Result<()> {
    for volume in target.fio_volumes() {
        invoke(target, &fill_text(&volume, size_bytes), scratch)?;
    }
    Ok(())
}

fn invoke(target: &Target, job: &str, scratch: &Path) -> Result<Vec<u8>> {
    Ok(shell::output(&mut command(target, job, scratch)?)?.stdout)
}

fn command(target: &Target, job: &str, scratch: &Path) -> Result<Command> {
    let path = scratch.join("job.fio");
    fs::write(&path, job)?;
    // fio leaves files named after the job behind in its working directory.
    let scratch = fs::canonicalize(scratch)?;
    let mut words = target.prefix(&scratch.to_string_lossy());
    words.push("fio".to_owned());
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).arg("--output-format=json").arg(scratch.join("job.fio")).current_dir(scratch);
    Ok(command)
}

/// Reads fio's JSON; lines before the object (fio's own notes) are passed over.
pub(super) fn parse(output: &[u8]) -> Result<Sample> {
    let text = String::from_utf8_lossy(output);
    let start = text.find('{').context("fio printed no JSON")?;
    let json: Value = serde_json::from_str(&text[start..]).context("fio's JSON")?;
    let jobs = json["jobs"].as_array().context("fio's JSON has no jobs")?;
    let number = |value: &Value| value.as_f64().context("a figure is missing in fio's JSON");
    let did_something = |side: &&Value| side["total_ios"].as_u64().unwrap_or(0) > 0;
    let sides: Vec<&Value> = jobs.iter().flat_map(|job| [&job["read"], &job["write"]]).filter(did_something).collect();
    if sides.is_empty() {
        bail!("fio did nothing, or its JSON is not understood");
    }
    let sum = |figure: &str| sides.iter().map(|side| number(&side[figure])).sum::<Result<f64>>();
    let operations = sum("total_ios")?;
    // Of a mix, and of several volumes: the mean over all operations, and the worst of the percentiles.
    let weighed = |side: &&Value| Ok(number(&side["lat_ns"]["mean"])? * number(&side["total_ios"])? / operations);
    let percentile = |name: &str| -> Result<f64> {
        let of = |side: &&Value| number(&side["clat_ns"]["percentile"][name]);
        Ok(sides.iter().map(of).collect::<Result<Vec<_>>>()?.into_iter().fold(0.0, f64::max) / 1000.0)
    };
    let done_by =
        |job: &Value| number(&job["read"]["iops"]).unwrap_or(0.0) + number(&job["write"]["iops"]).unwrap_or(0.0);
    let least = jobs.iter().map(done_by).fold(f64::INFINITY, f64::min);
    let iops = sum("iops")?;
    Ok(Sample {
        iops,
        least_share: least * jobs.len() as f64 / iops,
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
            least_share: 1.0,
        };
        assert_eq!(sample, wanted);
        let side = |iops: f64| {
            serde_json::json!({ "write": { "total_ios": 5, "iops": iops, "bw_bytes": 1, "lat_ns": { "mean": 1.0 },
                "clat_ns": { "percentile": { "50.000000": 1, "99.000000": 1, "99.900000": 1 } } } })
        };
        let two = serde_json::json!({ "jobs": [side(10.0), side(30.0)] });
        let sample = parse(two.to_string().as_bytes()).expect("valid");
        assert_eq!((sample.iops, sample.least_share, sample.operations), (40.0, 0.5, 10.0));
        assert!(parse(b"fio: failed").is_err());
        assert!(parse(b"{\"jobs\":[]}").is_err());
    }
}
