//! The phases of many writes as a table and as figures.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::{Value, json};

use super::cut::{Cut, PHASES, Write};

/// Of many values, in microseconds. The medians of the phases do not add up to the median of the whole; the means do.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub(super) struct Quantiles {
    pub(super) mean: f64,
    pub(super) p10: f64,
    pub(super) median: f64,
    pub(super) p90: f64,
}

impl Quantiles {
    /// None of no values.
    pub(super) fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let last = values.len().checked_sub(1)?;
        let at = |part: f64| values[(part * last as f64).round() as usize];
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        Some(Self { mean, p10: at(0.1), median: at(0.5), p90: at(0.9) })
    }
}

/// What fio says of the same writes, and what the machine does without Tandem. Microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Surroundings {
    /// Means without the trace, before and after.
    pub(super) untraced_before_us: f64,
    pub(super) untraced_after_us: f64,
    /// The mean of the run that was traced.
    pub(super) traced_us: f64,
    /// A raw file on the same disk, median.
    pub(super) disk_us: f64,
    pub(super) round_trip_us: f64,
}

impl Surroundings {
    fn untraced_us(&self) -> f64 {
        f64::midpoint(self.untraced_before_us, self.untraced_after_us)
    }

    /// What a traced phase is multiplied by, so that all of them add up to what a write takes without the trace. Assumes
    /// that the trace makes every phase longer by the same part, which is not so: phases with many system calls suffer more.
    fn scale(&self) -> f64 {
        self.untraced_us() / self.traced_us
    }

    fn floor_us(&self) -> f64 {
        self.disk_us + 2.0 * self.round_trip_us
    }
}

/// The phases of the writes of a trace, together with what surrounds them.
pub(super) struct Budget {
    phases: Vec<Quantiles>,
    /// Phases of one place together, of each write.
    places: Vec<(&'static str, Quantiles)>,
    whole: Quantiles,
    own: [(&'static str, Quantiles); 3],
    own_last: f64,
    complete: usize,
    begun: usize,
    surroundings: Surroundings,
}

impl Budget {
    /// None without a complete write.
    pub(super) fn new(cut: &Cut, surroundings: Surroundings) -> Option<Self> {
        let writes = &cut.writes;
        let of = |figure: &dyn Fn(&Write) -> f64| Quantiles::of(writes.iter().map(figure).collect());
        let phase = |index: usize| of(&|write| write.phases().nth(index).unwrap_or(0) as f64);
        let together = |wanted: &'static str| {
            let of_place = |write: &Write| -> u64 {
                PHASES.iter().zip(write.phases()).filter(|((place, _), _)| *place == wanted).map(|(_, us)| us).sum()
            };
            Some((wanted, of(&|write| of_place(write) as f64)?))
        };
        let mut names: Vec<&'static str> = Vec::new();
        for (place, _) in PHASES {
            if !names.contains(&place) {
                names.push(place);
            }
        }
        Some(Self {
            phases: (0..PHASES.len()).map(phase).collect::<Option<_>>()?,
            places: names.into_iter().map(together).collect::<Option<_>>()?,
            whole: of(&|write| write.whole() as f64)?,
            own: [
                ("io_uring_enter, until it has it", of(&|write| write.own_disk().submission as f64)?),
                ("until it has done it", of(&|write| write.own_disk().disk as f64)?),
                ("from there until the primary runs", of(&|write| write.own_disk().completion as f64)?),
            ],
            own_last: writes.iter().filter(|write| write.own_disk().was_last).count() as f64 / writes.len() as f64,
            complete: writes.len(),
            begun: cut.begun,
            surroundings,
        })
    }

    /// The figures for `bench-budget.json`.
    pub(super) fn summary(&self) -> Value {
        let scale = self.surroundings.scale();
        let phase = |((place, what), figures): (&(&str, &str), &Quantiles)| json!({ "place": place, "phase": what, "traced_us": figures, "scaled_mean_us": figures.mean * scale });
        let named = |(name, figures): &(&str, Quantiles)| json!({ "name": name, "traced_us": figures, "scaled_mean_us": figures.mean * scale });
        json!({
            "writes": { "complete": self.complete, "begun": self.begun },
            "phases": PHASES.iter().zip(&self.phases).map(phase).collect::<Vec<_>>(),
            "places": self.places.iter().map(named).collect::<Vec<_>>(),
            "whole_traced_us": self.whole,
            "own_disk": self.own.iter().map(named).collect::<Vec<_>>(),
            "own_disk_was_last": self.own_last,
            "fio": self.surroundings,
            "scale": scale,
            "floor_us": self.surroundings.floor_us(),
        })
    }

    /// A table for people.
    pub(super) fn table(&self) -> String {
        let scale = self.surroundings.scale();
        let mut text = format!(
            "\none 4 KiB write at depth 1, along the way through the peer; microseconds, {} of {} writes of the trace\n\n",
            self.complete, self.begun
        );
        let _ = writeln!(
            text,
            "{:10}  {:56} {:>6} {:>6} {:>6} {:>7} {:>7}",
            "where", "phase", "median", "p10", "p90", "mean", "scaled"
        );
        let line = |place: &str, what: &str, figures: &Quantiles| {
            let Quantiles { mean, p10, median, p90 } = figures;
            let scaled = mean * scale;
            format!("{place:10}  {what:56} {median:>6.0} {p10:>6.0} {p90:>6.0} {mean:>7.1} {scaled:>7.1}\n")
        };
        text.extend(PHASES.iter().zip(&self.phases).map(|((place, what), figures)| line(place, what, figures)));
        text += &line("sum", "the whole write, client to client", &self.whole);
        text.push('\n');
        text.extend(self.places.iter().map(|(place, figures)| line(place, "its phases together", figures)));
        text.push('\n');
        let beside = |what: &str| format!("primary's own disk: {what}");
        text.extend(self.own.iter().map(|(what, figures)| line("beside it", &beside(what), figures)));
        let medians: f64 = self.phases.iter().map(|figures| figures.median).sum();
        let _ = writeln!(
            text,
            "\nsum of the medians {medians:.0}; the primary's own disk was last in {:.0} % of the writes",
            self.own_last * 100.0
        );
        text + &self.notes()
    }

    fn notes(&self) -> String {
        let Surroundings { untraced_before_us, untraced_after_us, traced_us, disk_us, round_trip_us } =
            self.surroundings;
        format!(
            "fio's own mean: {untraced_before_us:.0} before and {untraced_after_us:.0} after without the trace, {traced_us:.0} \
             with it. \"scaled\" is the mean times {:.2}, the\nratio of these, as if the trace lengthened every phase alike: it \
             does not, and runs differ by themselves too.\n\
             bare floor: disk (median) {disk_us:.0} + 2 x round trip {round_trip_us:.0} = {:.0}; above it without the trace {:.0}\n",
            self.surroundings.scale(),
            self.surroundings.floor_us(),
            self.surroundings.untraced_us() - self.surroundings.floor_us(),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::cut::{Side, cut};
    use super::super::events::Trace;
    use super::super::events::tests::{RECORDED, SAMPLE};
    use super::*;

    const SURROUNDINGS: Surroundings = Surroundings {
        untraced_before_us: 90.0,
        untraced_after_us: 110.0,
        traced_us: 200.0,
        disk_us: 30.0,
        round_trip_us: 20.0,
    };

    #[test]
    fn quantiles_of_many_and_of_none() {
        let figures = Quantiles::of((0..=10).rev().map(f64::from).collect()).expect("some");
        assert_eq!(figures, Quantiles { mean: 5.0, p10: 1.0, median: 5.0, p90: 9.0 });
        assert_eq!(Quantiles::of(Vec::new()), None);
    }

    #[test]
    fn phases_and_places_both_add_up_to_the_whole() {
        let threads = BTreeMap::from([(14100, Side::Client), (13030, Side::Node(0)), (13038, Side::Node(1))]);
        let budget = Budget::new(&cut(&Trace::parse(SAMPLE, &RECORDED), &threads), SURROUNDINGS).expect("two writes");
        let phases: f64 = budget.phases.iter().map(|figures| figures.mean).sum();
        let places: f64 = budget.places.iter().map(|(_, figures)| figures.mean).sum();
        assert!((phases - budget.whole.mean).abs() < 1e-6, "{phases}");
        assert!((places - budget.whole.mean).abs() < 1e-6, "{places}");
        let table = budget.table();
        assert!(table.contains("2 of 2 writes"), "{table}");
        assert!(table.contains("times 0.50") && table.contains("= 70; above it without the trace 30"), "{table}");
        assert_eq!(budget.summary()["phases"].as_array().map(Vec::len), Some(PHASES.len()));
    }

    #[test]
    fn nothing_can_be_said_without_a_complete_write() {
        let none = cut(&Trace::parse("", &RECORDED), &BTreeMap::new());
        assert!(Budget::new(&none, SURROUNDINGS).is_none());
    }
}
