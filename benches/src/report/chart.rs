//! Line charts as SVG: both axes logarithmic, medians as lines, ranges of the runs as bars.

use std::fmt::Write as _;

use crate::report::{Spread, number};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 76.0;
const BOTTOM: f64 = 56.0;

/// A chart.
pub struct Chart {
    /// Above it.
    pub title: String,
    /// What runs to the right.
    pub x_label: String,
    /// What runs upwards.
    pub y_label: String,
    /// Values of x that are measured, with their names.
    pub ticks: Vec<(f64, String)>,
    /// What is drawn.
    pub lines: Vec<Line>,
}

/// A line of a chart.
pub struct Line {
    /// For the legend.
    pub name: String,
    /// As SVG writes colors.
    pub color: &'static str,
    /// Whether the line is broken.
    pub dashed: bool,
    /// x, and what was measured there.
    pub points: Vec<(f64, Spread)>,
}

impl Chart {
    /// The file's text.
    #[must_use]
    pub fn svg(&self) -> String {
        let (x, y) = self.axes();
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
             height=\"{HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\" role=\"img\">\n\
             <title>{title}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
             <text x=\"{LEFT}\" y=\"24\" font-size=\"16\" font-weight=\"bold\" fill=\"#1f2328\">{title}</text>\n",
            title = escape(&self.title),
        );
        self.draw_grid(&mut svg, &x, &y);
        for (at, line) in self.lines.iter().enumerate() {
            line.draw(&mut svg, &x, &y);
            line.draw_legend(&mut svg, at);
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn axes(&self) -> (Axis, Axis) {
        let values = self.lines.iter().flat_map(|line| &line.points);
        let (low, high) = values.fold((f64::MAX, f64::MIN_POSITIVE), |(low, high), (_, spread)| {
            (low.min(spread.low), high.max(spread.high))
        });
        let ticks = self.ticks.iter().map(|(value, _)| *value);
        let (first, last) = ticks.fold((f64::MAX, f64::MIN_POSITIVE), |(a, b), x| (a.min(x), b.max(x)));
        let x = Axis { low: first, high: last, from: LEFT + 16.0, to: WIDTH - RIGHT - 16.0 };
        let y = Axis {
            low: 10_f64.powf(low.log10().floor()),
            high: 10_f64.powf(high.log10().ceil()),
            from: HEIGHT - BOTTOM,
            to: TOP,
        };
        (x, y)
    }

    fn draw_grid(&self, svg: &mut String, x: &Axis, y: &Axis) {
        let right = WIDTH - RIGHT;
        let mut power = y.low;
        while power <= y.high * 1.001 {
            for part in [1.0, 2.0, 5.0] {
                let value = power * part;
                if value > y.high * 1.001 {
                    break;
                }
                let at = y.at(value);
                let color = if part == 1.0 { "#d0d7de" } else { "#eef1f4" };
                let _ = writeln!(
                    svg,
                    "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\" stroke=\"{color}\"/>"
                );
                if part == 1.0 {
                    let _ = writeln!(
                        svg,
                        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#59636e\">{}</text>",
                        LEFT - 8.0,
                        at + 4.0,
                        power_of_ten(value)
                    );
                }
            }
            power *= 10.0;
        }
        let bottom = HEIGHT - BOTTOM;
        for (value, name) in &self.ticks {
            let at = x.at(*value);
            let _ = writeln!(
                svg,
                "<line x1=\"{at:.1}\" y1=\"{bottom}\" x2=\"{at:.1}\" y2=\"{:.1}\" stroke=\"#59636e\"/>\n\
                 <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#59636e\">{}</text>",
                bottom + 5.0,
                bottom + 20.0,
                escape(name)
            );
        }
        let (middle_x, middle_y) = ((LEFT + right) / 2.0, (TOP + bottom) / 2.0);
        let _ = writeln!(
            svg,
            "<text x=\"{middle_x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#1f2328\">{}</text>\n\
             <text transform=\"translate(16 {middle_y:.1}) rotate(-90)\" text-anchor=\"middle\" \
             fill=\"#1f2328\">{}</text>",
            HEIGHT - 12.0,
            escape(&self.x_label),
            escape(&self.y_label)
        );
    }
}

impl Line {
    fn draw(&self, svg: &mut String, x: &Axis, y: &Axis) {
        let color = self.color;
        let at = |(value, spread): &(f64, Spread)| format!("{:.1},{:.1}", x.at(*value), y.at(spread.median));
        let points: Vec<String> = self.points.iter().map(at).collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"{}/>",
            points.join(" "),
            self.dashes()
        );
        for (value, spread) in &self.points {
            let _ = writeln!(
                svg,
                "<line x1=\"{0:.1}\" y1=\"{1:.1}\" x2=\"{0:.1}\" y2=\"{2:.1}\" stroke=\"{color}\"/>\n\
                 <circle cx=\"{0:.1}\" cy=\"{3:.1}\" r=\"3.5\" fill=\"{color}\"><title>{4}: {5}</title></circle>",
                x.at(*value),
                y.at(spread.low),
                y.at(spread.high),
                y.at(spread.median),
                escape(&self.name),
                number(spread.median)
            );
        }
    }

    fn draw_legend(&self, svg: &mut String, at: usize) {
        let x = LEFT + 165.0 * at as f64;
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"48\" x2=\"{:.1}\" y2=\"48\" stroke=\"{}\" stroke-width=\"2\"{}/>\n\
             <text x=\"{:.1}\" y=\"52\" fill=\"#1f2328\">{}</text>",
            x + 26.0,
            self.color,
            self.dashes(),
            x + 32.0,
            escape(&self.name)
        );
    }

    fn dashes(&self) -> &'static str {
        if self.dashed { " stroke-dasharray=\"6 4\"" } else { "" }
    }
}

/// A logarithmic axis: where values lie in the picture.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn at(&self, value: f64) -> f64 {
        let range = (self.high / self.low).ln();
        let part = if range > 0.0 { (value.max(self.low) / self.low).ln() / range } else { 0.5 };
        self.from + part * (self.to - self.from)
    }
}

fn power_of_ten(value: f64) -> String {
    match value {
        value if value >= 999_999.0 => format!("{:.0}M", value / 1e6),
        value if value >= 999.0 => format!("{:.0}k", value / 1e3),
        value if value >= 1.0 => format!("{value:.0}"),
        value => format!("{value}"),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, Spread)>) -> Chart {
        Chart {
            title: "a < b".to_owned(),
            x_label: "x".to_owned(),
            y_label: "y".to_owned(),
            ticks: vec![(1.0, "one".to_owned()), (100.0, "hundred".to_owned())],
            lines: vec![Line { name: "line".to_owned(), color: "#000000", dashed: false, points }],
        }
    }

    #[test]
    fn a_power_of_ten_is_the_same_distance_everywhere() {
        let axis = Axis { low: 1.0, high: 1000.0, from: 300.0, to: 0.0 };

        assert_eq!(axis.at(1.0), 300.0);
        assert_eq!(axis.at(10.0).round(), 200.0);
        assert_eq!(axis.at(100.0).round(), 100.0);
    }

    #[test]
    fn points_lie_where_their_values_are_and_text_is_escaped() {
        let point = |value| Spread { median: value, low: value, high: value };

        let svg = chart(vec![(1.0, point(10.0)), (100.0, point(1000.0))]).svg();

        let bottom = HEIGHT - BOTTOM;
        let expected = format!("{:.1},{bottom:.1} {:.1},{TOP:.1}", LEFT + 16.0, WIDTH - RIGHT - 16.0);
        assert!(svg.contains(&expected), "{expected} in {svg}");
        assert!(svg.contains("a &lt; b"));
    }
}
