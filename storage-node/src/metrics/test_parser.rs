//! A strict reader of the text format, for tests: whatever Prometheus might refuse or misunderstand is an error here.

use std::collections::{BTreeMap, BTreeSet};

/// A sample: name, labels in order, value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample {
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) value: f64,
}

/// Reads a whole exposition. Errors: the line, and what is wrong with it.
pub(super) fn parse(text: &str) -> Result<Vec<Sample>, String> {
    if !text.ends_with('\n') {
        return Err("the last line does not end".into());
    }
    let mut samples: Vec<Sample> = Vec::new();
    let mut families = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut family: Option<(String, Option<String>)> = None;
    for line in text.lines() {
        let wrong = |why: &str| Err(format!("{why}: {line}"));
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let Some((name, help)) = rest.split_once(' ') else { return wrong("no help") };
            if !families.insert(name.to_owned()) {
                return wrong("the family is there twice");
            }
            if help.is_empty() || !is_name(name) {
                return wrong("a bad name or no help");
            }
            family = Some((name.to_owned(), None));
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let Some((name, kind)) = rest.split_once(' ') else { return wrong("no type") };
            match &mut family {
                Some((current, told @ None)) if current == name => *told = Some(kind.to_owned()),
                _ => return wrong("a type without its help before it"),
            }
            if !["counter", "gauge", "histogram"].contains(&kind) || (kind == "counter") != name.ends_with("_total") {
                return wrong("counters, and nothing else, end with _total");
            }
        } else {
            let sample = sample(line)?;
            let Some((current, Some(kind))) = &family else { return wrong("a sample without a family") };
            let suffixes: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            if !suffixes.iter().any(|suffix| sample.name == format!("{current}{suffix}")) {
                return wrong("a sample of another family");
            }
            if !seen.insert((sample.name.clone(), sample.labels.clone())) {
                return wrong("the sample is there twice");
            }
            if sample.value < 0.0 || !sample.value.is_finite() {
                return wrong("not a value of ours");
            }
            samples.push(sample);
        }
    }
    histograms(&samples)?;
    Ok(samples)
}

/// Classes grow, and the last of them is the count.
fn histograms(samples: &[Sample]) -> Result<(), String> {
    let mut below: BTreeMap<(String, BTreeMap<String, String>), (f64, f64)> = BTreeMap::new();
    for sample in samples {
        let mut labels = sample.labels.clone();
        let Some(bound) = labels.remove("le") else { continue };
        let bound: f64 =
            if bound == "+Inf" { f64::INFINITY } else { bound.parse().map_err(|_| format!("le {bound}"))? };
        let name = sample.name.trim_end_matches("_bucket").to_owned();
        let last = below.entry((name, labels)).or_insert((f64::NEG_INFINITY, 0.0));
        if bound <= last.0 || sample.value < last.1 {
            return Err(format!("classes out of order: {sample:?}"));
        }
        *last = (bound, sample.value);
    }
    for ((name, labels), (bound, all)) in below {
        let count = samples.iter().find(|sample| sample.name == format!("{name}_count") && sample.labels == labels);
        if bound.is_finite() || count.map(|count| count.value) != Some(all) {
            return Err(format!("{name} has no count, or another one than its last class"));
        }
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    let mut characters = name.chars();
    characters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && characters.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn sample(line: &str) -> Result<Sample, String> {
    let wrong = |why: &str| format!("{why}: {line}");
    let end = line.find(['{', ' ']).ok_or_else(|| wrong("no value"))?;
    let (name, mut rest) = line.split_at(end);
    if !is_name(name) {
        return Err(wrong("a bad name"));
    }
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, value) = rest.split_once("=\"").ok_or_else(|| wrong("no label"))?;
            if !is_name(label) {
                return Err(wrong("a bad label"));
            }
            let (value, after) = quoted(value).ok_or_else(|| wrong("a value without its end"))?;
            if labels.insert(label.to_owned(), value).is_some() {
                return Err(wrong("a label twice"));
            }
            match after.split_at_checked(1) {
                Some((",", more)) => rest = more,
                Some(("}", more)) => {
                    rest = more;
                    break;
                }
                _ => return Err(wrong("neither another label nor the end")),
            }
        }
    }
    let value = rest.strip_prefix(' ').ok_or_else(|| wrong("no value"))?;
    let value = value.parse().map_err(|_| wrong("no number"))?;
    Ok(Sample { name: name.to_owned(), labels, value })
}

/// The text up to the quote that ends it, and what comes behind.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match characters.next()?.1 {
                'n' => '\n',
                c @ ('\\' | '"') => c,
                _ => return None,
            }),
            c => value.push(c),
        }
    }
    None
}

#[test]
fn what_prometheus_would_refuse_is_refused() {
    let good = "# HELP a_total A.\n# TYPE a_total counter\na_total{x=\"\\\"\\n\"} 1\n";
    assert_eq!(parse(good).map(|samples| samples.len()), Ok(1));
    let bad = [
        "a 1\n",
        "# HELP a A.\na 1\n",
        "# HELP a A.\n# TYPE a counter\na 1\n",
        "# HELP a A.\n# TYPE a gauge\nb 1\n",
        "# HELP a A.\n# TYPE a gauge\na 1\na 2\n",
        "# HELP a A.\n# TYPE a gauge\na{x=\"1\",x=\"2\"} 1\n",
        "# HELP a A.\n# TYPE a gauge\na{x=\"1} 1\n",
        "# HELP a A.\n# TYPE a gauge\na 1",
        "# HELP a A.\n# TYPE a histogram\na_bucket{le=\"1\"} 1\na_sum 1\na_count 1\n",
        "# HELP a A.\n# TYPE a histogram\na_bucket{le=\"1\"} 2\na_bucket{le=\"+Inf\"} 1\na_sum 1\na_count 1\n",
    ];
    for text in bad {
        assert!(parse(text).is_err(), "{text}");
    }
}
