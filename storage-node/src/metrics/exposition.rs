//! The text format of Prometheus, version 0.0.4: families of samples, each with its help and type before it.

use std::fmt::{self, Display, Write};

/// What a family's values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Only grows, from 0; the name ends with `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by classes.
    Histogram,
}

/// A value: whole numbers stay exact.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value {
    Whole(u64),
    Real(f64),
}

/// The text so far.
#[derive(Debug, Default)]
pub(super) struct Exposition {
    text: String,
}

/// A family whose samples follow.
pub(super) struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
}

/// Names and values that tell the samples of a family apart.
pub(super) type Labels<'a> = &'a [(&'static str, &'a str)];

impl Exposition {
    /// Begins a family. Its name is used once.
    pub(super) fn family(&mut self, name: &'static str, kind: Kind, help: &str) -> Family<'_> {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        put(&mut self.text, format_args!("# HELP {name} {}\n# TYPE {name} {kind}\n", Escaped(help, false)));
        Family { text: &mut self.text, name }
    }

    /// A family with one sample, without labels.
    pub(super) fn single(&mut self, name: &'static str, kind: Kind, help: &str, value: impl Into<Value>) {
        self.family(name, kind, help).sample(&[], value);
    }

    /// All of it.
    pub(super) fn into_text(self) -> String {
        self.text
    }
}

impl Family<'_> {
    /// Adds a sample.
    pub(super) fn sample(&mut self, labels: Labels<'_>, value: impl Into<Value>) {
        self.line("", labels, None, value.into());
    }

    /// Adds a histogram: its classes as upper bound in microseconds and how many are in the class itself, the count of all, and
    /// their sum in microseconds. The bounds are told in seconds.
    pub(super) fn histogram(
        &mut self,
        labels: Labels<'_>,
        classes: impl Iterator<Item = (u64, u64)>,
        count: u64,
        sum_micros: u64,
    ) {
        let mut below = 0;
        for (bound, in_class) in classes {
            below += in_class;
            self.line("_bucket", labels, Some(&seconds(bound).to_string()), Value::Whole(below));
        }
        self.line("_bucket", labels, Some("+Inf"), Value::Whole(count));
        self.line("_sum", labels, None, Value::Real(seconds(sum_micros)));
        self.line("_count", labels, None, Value::Whole(count));
    }

    fn line(&mut self, suffix: &str, labels: Labels<'_>, bound: Option<&str>, value: Value) {
        put(self.text, format_args!("{}{suffix}", self.name));
        let all = labels.iter().copied().chain(bound.map(|bound| ("le", bound)));
        for (index, (name, value)) in all.clone().enumerate() {
            let before = if index == 0 { '{' } else { ',' };
            put(self.text, format_args!("{before}{name}=\"{}\"", Escaped(value, true)));
        }
        let after = if all.count() > 0 { "}" } else { "" };
        put(self.text, format_args!("{after} {value}\n"));
    }
}

/// Microseconds as seconds, the base unit.
pub(super) fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

fn put(text: &mut String, part: fmt::Arguments<'_>) {
    text.write_fmt(part).expect("a string takes everything");
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Self::Whole(value as u64)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Whole(value.into())
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Real(value)
    }
}

impl Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(value) => value.fmt(f),
            Self::Real(value) => value.fmt(f),
        }
    }
}

/// A help text, or (true) the value of a label, in which quotes are escaped too.
struct Escaped<'a>(&'a str, bool);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '\\' => f.write_str("\\\\")?,
                '\n' => f.write_str("\\n")?,
                '"' if self.1 => f.write_str("\\\"")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_stand_behind_help_and_type_and_labels_are_escaped() {
        let mut out = Exposition::default();
        out.single("up", Kind::Gauge, "One.\nTwo \\ \"three\"", true);
        let mut family = out.family("b_total", Kind::Counter, "B.");
        family.sample(&[("volume", "a\"b\\c\nd"), ("x", "")], 3_u64);
        family.sample(&[], 0.5);
        let expected = "# HELP up One.\\nTwo \\\\ \"three\"\n# TYPE up gauge\nup 1\n\
                        # HELP b_total B.\n# TYPE b_total counter\nb_total{volume=\"a\\\"b\\\\c\\nd\",x=\"\"} 3\nb_total 0.5\n";
        assert_eq!(out.into_text(), expected);
    }

    #[test]
    fn a_histogram_counts_all_up_to_each_bound() {
        let mut out = Exposition::default();
        let mut family = out.family("t_seconds", Kind::Histogram, "T.");
        family.histogram(&[("o", "X")], [(16, 2), (32, 1)].into_iter(), 4, 1_500_000);
        let text = out.into_text();
        let lines: Vec<_> = text.lines().skip(2).collect();
        let expected = [
            "t_seconds_bucket{o=\"X\",le=\"0.000016\"} 2",
            "t_seconds_bucket{o=\"X\",le=\"0.000032\"} 3",
            "t_seconds_bucket{o=\"X\",le=\"+Inf\"} 4",
            "t_seconds_sum{o=\"X\"} 1.5",
            "t_seconds_count{o=\"X\"} 4",
        ];
        assert_eq!(lines, expected);
    }
}
