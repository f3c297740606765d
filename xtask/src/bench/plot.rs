//! A picture of a measurement: Tandem's ratios to its peers.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use plotters::prelude::*;

use super::report::{PEERS, Report, Spread};

const ROW_PIXELS: usize = 22;
const WIDTH_PIXELS: u32 = 860;
const MARGIN_PIXELS: usize = 90;
/// On the left, for the names of the bars.
const LABEL_PIXELS: u32 = 220;
/// The ratios shown; what lies outside ends at the border.
const RATIOS: std::ops::Range<f64> = 0.05..10.0;

/// Draws, for each workload and peer, a bar from 1 to Tandem's ratio on a logarithmic scale, and a line from the lowest to
/// the highest ratio of the rounds.
///
/// Errors: the file cannot be written.
pub(super) fn draw(report: &Report, file: &Path) -> Result<()> {
    let bars = bars(report);
    let height = (bars.len() * ROW_PIXELS + MARGIN_PIXELS) as u32;
    let area = SVGBackend::new(file, (WIDTH_PIXELS, height)).into_drawing_area();
    area.fill(&WHITE).map_err(|e| anyhow!("drawing: {e}"))?;
    let drawn = draw_bars(&area, &bars).map_err(|e| anyhow!("drawing: {e}"));
    drawn
        .and_then(|()| area.present().map_err(|e| anyhow!("{e}")))
        .with_context(|| format!("writing {}", file.display()))
}

/// Label, peer and ratios, from top to bottom.
fn bars(report: &Report) -> Vec<(String, usize, Spread)> {
    let mut bars = Vec::new();
    for workload in report.workloads() {
        let ratios = PEERS.iter().enumerate().filter_map(|(at, peer)| Some((at, peer, report.ratio(workload, peer)?)));
        bars.extend(ratios.map(|(at, peer, ratio)| (format!("{workload} / {peer}"), at, ratio)));
    }
    bars
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw_bars(area: &Area<'_>, bars: &[(String, usize, Spread)]) -> Result<(), Box<dyn std::error::Error>> {
    let mut chart = ChartBuilder::on(area)
        .caption("Tandem's IOPS over those of each peer", ("sans-serif", 16))
        .margin(10)
        .margin_left(LABEL_PIXELS)
        .x_label_area_size(30)
        .build_cartesian_2d(RATIOS.log_scale(), 0.0..bars.len() as f64)?;
    chart.configure_mesh().disable_y_mesh().x_desc("ratio; 1 is as fast").draw()?;
    let within = |ratio: f64| ratio.clamp(RATIOS.start, RATIOS.end);
    for (at, (label, peer, ratio)) in bars.iter().enumerate() {
        let top = (bars.len() - at) as f64;
        let bar = [(1.0, top - 0.15), (within(ratio.median), top - 0.85)];
        chart.draw_series([Rectangle::new(bar, Palette99::pick(*peer).mix(0.6).filled())])?;
        let middle = |x| (within(x), top - 0.5);
        chart.draw_series([PathElement::new([middle(ratio.min), middle(ratio.max)], BLACK)])?;
        let text = |at, words: String, offset| EmptyElement::at(at) + Text::new(words, offset, ("sans-serif", 12));
        chart.draw_series([
            text(middle(ratio.max), format!("{:.2}", ratio.median), (4, -6)),
            text(middle(RATIOS.start), label.clone(), (4 - LABEL_PIXELS as i32, -6)),
        ])?;
    }
    chart.draw_series([PathElement::new([(1.0, 0.0), (1.0, bars.len() as f64)], BLACK)])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::row;
    use super::*;

    #[test]
    fn every_peer_that_was_measured_has_a_bar() {
        let mut report = Report::new(1, 1, 1);
        for (target, iops) in [("tandem", 30.0), ("raw", 60.0), ("quorum", 1.0)] {
            report.add(row(target, iops));
        }
        let home = tempfile::tempdir().expect("temporary directory");
        let file = home.path().join("plot.svg");
        draw(&report, &file).expect("drawn");
        let svg = std::fs::read_to_string(&file).expect("a file");
        for words in ["w / raw", "0.50", "w / quorum", "30.00"] {
            assert!(svg.contains(words), "{words}");
        }
        assert!(!svg.contains("w / qemu"));
    }
}
