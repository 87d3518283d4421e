//! Plots over time, as SVG.

use std::ops::Range;
use std::path::{Path, PathBuf};

use plotters::prelude::*;
use thiserror::Error;

use super::measure::Measures;
use super::scenario::Scenario;

/// Why a plot was not written.
#[derive(Debug, Error)]
pub enum PlotError {
    /// The directory cannot be made.
    #[error("{0}")]
    Dir(#[from] std::io::Error),
    /// The drawing failed, in its own words.
    #[error("{file}: {why}", file = file.display())]
    Draw {
        /// The file.
        file: PathBuf,
        /// What was said.
        why: String,
    },
}

const SIZE: (u32, u32) = (960, 440);
const FONT: (&str, u32) = ("sans-serif", 14);

/// Colours that differ for most eyes as well (Okabe and Ito), then by lightness.
const COLORS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
    RGBColor(150, 150, 150),
];

/// Writes `<name>-latency.svg`, with the 99th percentile over time of each policy, and
/// for each policy `<name>-share-<policy>.svg`, with each group's part of the tries.
/// Characters that file names should not have become `-`.
///
/// # Errors
/// [`PlotError`].
pub fn write(
    dir: &Path,
    name: &str,
    scenario: &Scenario,
    measured: &[(String, Measures)],
) -> Result<(), PlotError> {
    std::fs::create_dir_all(dir)?;
    let seconds = scenario.duration.as_secs_f64();
    let middle = |bin: usize, of: usize| (bin as f64 + 0.5) * seconds / of as f64;

    let latencies: Vec<Line> = measured
        .iter()
        .map(|(policy, measures)| {
            let bins = measures.timeline.len();
            let filled = measures.timeline.iter().enumerate();
            let points = filled
                .filter(|(_, bin)| bin.latency.count() > 0)
                .map(|(number, bin)| (middle(number, bins), bin.latency.quantile_s(0.99) * 1e3));
            Line { label: policy.clone(), points: points.collect() }
        })
        .collect();
    let chart = Chart {
        title: format!("{name}: 99th percentile of latency"),
        unit: "ms",
        seconds,
        lines: latencies,
    };
    chart.draw(dir.join(file_name(name, "latency")), Scale::Logarithmic)?;

    for (policy, measures) in measured {
        let bins = measures.timeline.len();
        let shares: Vec<_> = measures.timeline.iter().map(|bin| bin.shares()).collect();
        let groups = scenario.servers.iter().enumerate();
        let lines = groups.map(|(group, of)| Line {
            label: of.name.clone(),
            points: (0..bins).map(|bin| (middle(bin, bins), shares[bin][group] * 100.0)).collect(),
        });
        let chart = Chart {
            title: format!("{name}, {policy}: share of the tries"),
            unit: "%",
            seconds,
            lines: lines.collect(),
        };
        let file = file_name(name, &format!("share-{policy}"));
        chart.draw(dir.join(file), Scale::Linear)?;
    }
    Ok(())
}

fn file_name(name: &str, what: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = format!("{name}-{what}.svg").chars().map(plain).collect();
    name.replace("--", "-")
}

struct Line {
    label: String,
    points: Vec<(f64, f64)>,
}

struct Chart {
    title: String,
    unit: &'static str,
    seconds: f64,
    lines: Vec<Line>,
}

#[derive(Clone, Copy, PartialEq)]
enum Scale {
    Linear,
    Logarithmic,
}

impl Chart {
    fn draw(&self, file: PathBuf, scale: Scale) -> Result<(), PlotError> {
        self.try_draw(&file, scale)
            .map_err(|error| PlotError::Draw { file: file.clone(), why: error.to_string() })
    }

    fn try_draw(&self, file: &Path, scale: Scale) -> Result<(), Box<dyn std::error::Error>> {
        let values = || self.lines.iter().flat_map(|line| line.points.iter().map(|(_, y)| *y));
        let largest = values().fold(0.0, f64::max).max(1e-3);
        let least = values().filter(|y| *y > 0.0).fold(largest, f64::min);

        let area = SVGBackend::new(file, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut builder = ChartBuilder::on(&area);
        builder
            .caption(&self.title, ("sans-serif", 18))
            .margin(12)
            .margin_right(180)
            .x_label_area_size(40)
            .y_label_area_size(64);
        let label = |value: &f64| ((value * 1e3).round() / 1e3).to_string();
        // The two scales make charts of two types.
        macro_rules! draw {
            ($scale:expr) => {{
                let mut chart = builder.build_cartesian_2d(0.0..self.seconds, $scale)?;
                chart
                    .configure_mesh()
                    .x_desc("seconds")
                    .y_desc(self.unit)
                    .x_label_formatter(&label)
                    .y_label_formatter(&label)
                    .label_style(FONT)
                    .axis_desc_style(FONT)
                    .light_line_style(WHITE)
                    .draw()?;
                for (number, line) in self.lines.iter().enumerate() {
                    let color = COLORS[number % COLORS.len()];
                    let width = 2 - (number / COLORS.len()).min(1) as u32;
                    chart.draw_series(LineSeries::new(
                        line.points.iter().copied(),
                        color.stroke_width(width),
                    ))?;
                    // Beside the chart, in the margin.
                    let y = 48 + 20 * number as i32;
                    let x = SIZE.0 as i32 - 180;
                    let dash = PathElement::new([(x, y), (x + 18, y)], color.stroke_width(3));
                    area.draw(&dash)?;
                    let text = Text::new(line.label.clone(), (x + 24, y - 7), FONT.into_font());
                    area.draw(&text)?;
                }
            }};
        }
        match scale {
            Scale::Linear => draw!(0.0..largest * 1.05),
            Scale::Logarithmic => {
                let range = least * 0.8..largest * 1.25;
                draw!(range.clone().log_scale().with_key_points(steps(&range)))
            }
        }
        area.present()?;
        Ok(())
    }
}

/// 1, 2 and 5 times each power of ten within a range above 0: what plotters chooses
/// itself for a logarithmic scale is too many lines for a long one, and two or
/// three for a short one.
fn steps(range: &Range<f64>) -> Vec<f64> {
    let powers = range.start.log10().floor() as i32..=range.end.log10().ceil() as i32;
    powers
        .flat_map(|power| [1.0, 2.0, 5.0].map(|step| step * 10f64.powi(power)))
        .filter(|value| range.contains(value))
        .collect()
}
