//! Figures of both servers side by side: ratios within each round, medians of them, and whether an aim is met.

use std::fs;
use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

/// What a line has to reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Aim {
    /// So many times what the other server does.
    Ratio(f64),
    /// So many a second.
    Rate(f64),
    /// So many for each second of one core's time.
    RateOnOneCore(f64),
    /// Nothing: it is told for comparison.
    None,
}

/// One work, as both servers did it in each round.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) client: &'static str,
    pub(crate) work: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) aim: Aim,
    pub(crate) tandem: Vec<f64>,
    pub(crate) ganesha: Vec<f64>,
    /// What the load generator told, or the calls that the kernel has sent, round by round: both servers'.
    pub(crate) details: Vec<(Value, Value)>,
}

impl Line {
    /// The ratio of each round.
    fn ratios(&self) -> Vec<f64> {
        self.tandem.iter().zip(&self.ganesha).map(|(own, other)| own / other).collect()
    }

    /// What a second of one core's time carried, round by round.
    fn on_one_core(&self) -> Vec<f64> {
        self.details.iter().filter_map(|(own, _)| own["rate_on_one_core"].as_f64()).collect()
    }

    /// Whether the aim is met; nothing without one.
    fn is_met(&self) -> Option<bool> {
        match self.aim {
            Aim::Ratio(aim) => Some(median(self.ratios()) >= aim),
            Aim::Rate(aim) => Some(median(self.tandem.clone()) >= aim),
            Aim::RateOnOneCore(aim) => Some(median(self.on_one_core()) >= aim),
            Aim::None => None,
        }
    }

    fn aim_text(&self) -> String {
        let aim = match self.aim {
            Aim::Ratio(aim) => format!("{aim:.1} ×"),
            Aim::Rate(aim) => format!("{aim:.0}/s"),
            Aim::RateOnOneCore(aim) => format!("{aim:.0}/s on one core, {:.0} measured", median(self.on_one_core())),
            Aim::None => return String::new(),
        };
        format!("{aim}: {}", if self.is_met() == Some(true) { "met" } else { "**not met**" })
    }

    fn to_json(&self) -> Value {
        let details: Vec<Value> =
            self.details.iter().map(|(own, other)| json!({ "tandem": own, "ganesha": other })).collect();
        json!({
            "client": self.client,
            "work": self.work,
            "unit": self.unit,
            "tandem": self.tandem,
            "ganesha": self.ganesha,
            "ratios": self.ratios(),
            "ratio": median(self.ratios()),
            "aim": self.aim_text(),
            "met": self.is_met(),
            "details": details,
        })
    }
}

/// The middle one; 0 of none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(0.0)
}

/// Prints the table.
pub(crate) fn print(lines: &[Line]) {
    println!("\n| client | work | tandem, two boxes | ganesha, one | ratio | aim |\n|---|---|---|---|---|---|");
    for line in lines {
        let ratios = line.ratios();
        let (low, high) = ratios.iter().fold((f64::INFINITY, 0.0_f64), |(low, high), at| (low.min(*at), high.max(*at)));
        println!(
            "| {} | {} | {} | {} | {:.2} ({low:.2}–{high:.2}) | {} |",
            line.client,
            line.work,
            figure(median(line.tandem.clone()), line.unit),
            figure(median(line.ganesha.clone()), line.unit),
            median(ratios),
            line.aim_text()
        );
    }
}

fn figure(rate: f64, unit: &str) -> String {
    if unit == "bytes" { format!("{:.0} MB/s", rate / 1e6) } else { format!("{rate:.0} {unit}/s") }
}

/// Writes all figures.
pub(crate) fn write(lines: &[Line], facts: &Value, output: &Path) -> Result<()> {
    let lines: Vec<Value> = lines.iter().map(Line::to_json).collect();
    fs::write(output, serde_json::to_string_pretty(&json!({ "facts": facts, "lines": lines }))? + "\n")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_aim_is_judged_by_the_median_of_the_ratios() {
        let details = Vec::new();
        let (tandem, ganesha) = (vec![10.0, 30.0, 20.0], vec![10.0, 10.0, 10.0]);
        let line = Line { client: "kernel", work: "w", unit: "files", aim: Aim::Ratio(2.0), tandem, ganesha, details };
        assert_eq!(line.is_met(), Some(true));
        assert_eq!(Line { aim: Aim::Ratio(2.1), ..line.clone() }.is_met(), Some(false));
        assert_eq!(Line { aim: Aim::None, ..line }.is_met(), None);
    }
}
