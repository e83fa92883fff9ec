// SPDX-License-Identifier: Apache-2.0
//! Cost over the number of Services, as a table for programs (CSV) and as a picture (SVG), both axes
//! logarithmic.

use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};

use super::mode::Mode;

/// The measurements at each size, in microseconds of the instruction clock; one column each.
pub const COLUMNS: [&str; 6] = [
    "cold, agent",
    "cold, limit",
    "endpoint comes, agent",
    "endpoint goes, agent",
    "endpoint, limit",
    "audit",
];
const COLOURS: [&str; 6] = ["#c0392b", "#e59866", "#1f618d", "#5dade2", "#7f8c8d", "#239b56"];
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 520.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 60.0;

/// The costs at one size.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Services.
    pub services: u32,
    /// Microseconds, as in [`COLUMNS`].
    pub costs: [f64; 6],
}

/// The samples as CSV, with a line of headings.
pub fn to_csv(samples: &[Sample]) -> String {
    let mut text = format!("services,{}\n", COLUMNS.map(|column| format!("\"{column} (us)\"")).join(","));
    for sample in samples {
        let costs = sample.costs.map(|cost| format!("{cost:.1}"));
        // Writing to a string does not fail.
        let _ = writeln!(text, "{},{}", sample.services, costs.join(","));
    }
    text
}

/// Parses the text of [`to_csv`].
///
/// # Errors
/// If a line is not a sample.
pub fn from_csv(text: &str) -> Result<Vec<Sample>> {
    text.lines().skip(1).map(|line| sample(line).with_context(|| format!("no sample: {line}"))).collect()
}

fn sample(line: &str) -> Option<Sample> {
    let mut fields = line.split(',');
    let services = fields.next()?.parse().ok()?;
    let mut costs = [0.0; 6];
    for cost in &mut costs {
        *cost = fields.next()?.parse().ok()?;
    }
    fields.next().is_none().then_some(Sample { services, costs })
}

/// A logarithmic scale from values to coordinates.
struct Scale {
    from: f64,
    to: f64,
    place: (f64, f64),
}

impl Scale {
    fn at(&self, value: f64) -> f64 {
        let share = (value.log10() - self.from) / (self.to - self.from);
        self.place.0 + share * (self.place.1 - self.place.0)
    }

    /// Powers of ten within the scale.
    fn ticks(&self) -> impl Iterator<Item = f64> {
        (self.from.ceil() as i32..=self.to.floor() as i32).map(|power| 10f64.powi(power))
    }
}

/// The SVG.
///
/// # Errors
/// If there are no samples.
pub fn to_svg(mode: Mode, samples: &[Sample]) -> Result<String> {
    ensure!(samples.len() > 1, "two sizes at least are needed for a plot");
    let ends = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)))
    };
    let (few, many) = ends(&mut samples.iter().map(|s| f64::from(s.services)));
    let (low, high) = ends(&mut samples.iter().flat_map(|s| s.costs).filter(|cost| *cost > 0.0));
    let x = Scale { from: few.log10(), to: many.log10(), place: (LEFT, WIDTH - RIGHT) };
    let y = Scale { from: low.log10().floor(), to: high.log10().ceil(), place: (HEIGHT - BOTTOM, TOP) };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"{LEFT}\" y=\"24\" \
         font-size=\"15\">{mode}: cost over the number of Services (5 endpoints each, instruction clock)</text>\n"
    );
    axes(&mut svg, &x, &y);
    let mut labels = Vec::new();
    for (column, (name, colour)) in COLUMNS.iter().zip(COLOURS).enumerate() {
        let points: Vec<(f64, f64)> =
            samples.iter().map(|s| (x.at(f64::from(s.services)), y.at(s.costs[column]))).collect();
        if let Some(end) = points.last() {
            labels.push(Label { end: *end, y: end.1, name, colour });
        }
        line(&mut svg, &points, colour);
    }
    spread(&mut labels);
    labels.iter().for_each(|label| label.draw(&mut svg));
    svg.push_str("</svg>\n");
    Ok(svg)
}

fn axes(svg: &mut String, x: &Scale, y: &Scale) {
    for value in x.ticks() {
        let at = x.at(value);
        let _ = writeln!(
            svg,
            "<line x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{:.1}\" stroke=\"#dddddd\"/>\n\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{value}</text>",
            HEIGHT - BOTTOM,
            HEIGHT - BOTTOM + 18.0
        );
    }
    for value in y.ticks() {
        let at = y.at(value);
        let text = if value >= 1e6 {
            format!("{} s", value / 1e6)
        } else if value >= 1e3 {
            format!("{} ms", value / 1e3)
        } else {
            format!("{value} us")
        };
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{:.1}\" y2=\"{at:.1}\" stroke=\"#dddddd\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0
        );
    }
    let middle = (LEFT + WIDTH - RIGHT) / 2.0;
    let _ = writeln!(
        svg,
        "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">Services</text>",
        HEIGHT - BOTTOM + 42.0
    );
}

fn line(svg: &mut String, points: &[(f64, f64)], colour: &str) {
    let path: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    if path.is_empty() {
        return;
    }
    let _ = writeln!(
        svg,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
        path.join(" ")
    );
    for (x, y) in points {
        let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>");
    }
}

/// The name of a line, right of the picture.
struct Label {
    /// The end of the line.
    end: (f64, f64),
    /// The position of the name.
    y: f64,
    name: &'static str,
    colour: &'static str,
}

impl Label {
    /// The name, with a thin line to the end of its line.
    fn draw(&self, svg: &mut String) {
        let (Label { end: (x, from), y, name, colour }, right) = (self, WIDTH - RIGHT + 16.0);
        let _ = writeln!(
            svg,
            "<line x1=\"{:.1}\" y1=\"{from:.1}\" x2=\"{right:.1}\" y2=\"{y:.1}\" stroke=\"{colour}\" \
             stroke-width=\"0.7\" stroke-dasharray=\"2 3\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{name}</text>",
            x + 4.0,
            right + 4.0,
            y + 4.0
        );
    }
}

/// Moves names apart that would overlap.
fn spread(labels: &mut [Label]) {
    const APART: f64 = 15.0;
    labels.sort_by(|a, b| a.y.total_cmp(&b.y));
    for i in 1..labels.len() {
        labels[i].y = labels[i].y.max(labels[i - 1].y + APART);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Sample> {
        let sample = |services, factor: f64| Sample {
            services,
            costs: [100.0 * factor, 80.0 * factor, 5.0, 9.0, 1.0, 10.0 * factor],
        };
        vec![sample(100, 1.0), sample(1000, 10.0), sample(50_000, 900.0)]
    }

    #[test]
    fn csv_round_trips_and_invalid_text_is_rejected() {
        assert_eq!(from_csv(&to_csv(&samples())).unwrap(), samples());
        for bad in ["x\n1,2", "x\n1,1,1,,1,1,1", "x\na,1,1,1,1,1,1", "x\n1,1,1,1,1,1,b", "x\n1,1,1,1,1,1,1,1"]
        {
            assert!(from_csv(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_column_becomes_a_line_with_a_point_for_each_sample() {
        let svg = to_svg(Mode::NFTABLES, &samples()).unwrap();
        assert_eq!(svg.matches("<polyline").count(), 6);
        assert_eq!(svg.matches("<circle").count(), 18);
        assert!(to_svg(Mode::NFTABLES, &samples()[..1]).is_err());
    }

    #[test]
    fn the_axis_is_logarithmic() {
        let scale = Scale { from: 2.0, to: 5.0, place: (0.0, 300.0) };
        assert!((scale.at(1000.0) - 100.0).abs() < 1e-9 && (scale.at(10_000.0) - 200.0).abs() < 1e-9);
    }

    #[test]
    fn labels_do_not_overlap() {
        let label = |y| Label { end: (0.0, y), y, name: "", colour: "" };
        let mut labels = [label(102.0), label(100.0), label(300.0)];
        spread(&mut labels);
        assert_eq!(labels.each_ref().map(|l| l.y as i32), [100, 115, 300]);
        let svg = to_svg(Mode::NFTABLES, &samples()).unwrap();
        assert!(COLUMNS.iter().filter(|name| svg.contains(&format!(">{name}</text>"))).count() == 6);
    }
}
