//! What the runs came to: medians and spreads, ratios, whether aims are met, tables, and the page.

use crate::figures::Figure;
use crate::results::Results;
use crate::rows::{Row, Target};
use crate::servers::Side;

pub mod chart;
pub mod page;
pub mod table;

/// The runs of one row.
pub struct Measured<'a> {
    /// What ran.
    pub row: &'a Row,
    results: &'a Results,
}

/// One figure over several runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The middle one, or the mean of the middle two.
    pub median: f64,
    /// The lowest.
    pub low: f64,
    /// The highest.
    pub high: f64,
}

/// An aim and what came of it.
pub struct Verdict {
    /// Which figure.
    pub figure: Figure,
    /// What was aimed at.
    pub aim: String,
    /// What was measured.
    pub measured: String,
    /// Whether that is good enough.
    pub met: bool,
}

impl<'a> Measured<'a> {
    /// The runs of a row, if both sides have any.
    #[must_use]
    pub fn of(row: &'a Row, results: &'a Results) -> Option<Self> {
        let measured = Self { row, results };
        let has_runs = |side| !results.outcomes(&row.name, side).is_empty();
        (has_runs(Side::Levee) && has_runs(row.against)).then_some(measured)
    }

    /// Our figure.
    #[must_use]
    pub fn ours(&self, figure: Figure) -> Option<Spread> {
        self.figure(figure, Side::Levee)
    }

    /// Their figure.
    #[must_use]
    pub fn theirs(&self, figure: Figure) -> Option<Spread> {
        self.figure(figure, self.row.against)
    }

    /// Our median divided by theirs, if neither is zero.
    #[must_use]
    pub fn ratio(&self, figure: Figure) -> Option<f64> {
        // CPU is counted in hundredths of a second: of a very short run there may be none.
        let ratio = self.ours(figure)?.median / self.theirs(figure)?.median;
        (ratio.is_finite() && ratio > 0.0).then_some(ratio)
    }

    /// Each aim of the row.
    #[must_use]
    pub fn verdicts(&self) -> Vec<Verdict> {
        self.row.targets.iter().filter_map(|target| self.verdict(target)).collect()
    }

    fn verdict(&self, target: &Target) -> Option<Verdict> {
        // What is shown is what is judged.
        let ratio = |figure| self.ratio(figure).map(|ratio| (ratio * 100.0).round() / 100.0);
        let verdict = match target {
            Target::AtLeast(figure, aim) => {
                let ratio = ratio(*figure)?;
                Verdict {
                    figure: *figure,
                    aim: format!(">= {aim}x"),
                    measured: format!("{ratio:.2}x"),
                    met: ratio >= *aim,
                }
            }
            Target::AtMost(figure, aim) => {
                let ratio = ratio(*figure)?;
                Verdict {
                    figure: *figure,
                    aim: format!("<= {aim}x"),
                    measured: format!("{ratio:.2}x"),
                    met: ratio <= *aim,
                }
            }
            Target::Limit(figure, aim) => {
                let ours = self.ours(*figure)?.median;
                Verdict {
                    figure: *figure,
                    aim: format!("<= {aim}"),
                    measured: number(ours),
                    met: ours <= *aim,
                }
            }
            Target::NotBelow(figure, row) => {
                let other = spread(&self.results.outcomes(row, Side::Levee), *figure)?.median;
                let ratio = (self.ours(*figure)?.median / other * 100.0).round() / 100.0;
                Verdict {
                    figure: *figure,
                    aim: ">= 1x of our file row".to_owned(),
                    measured: format!("{ratio:.2}x"),
                    met: ratio >= 1.0,
                }
            }
        };
        Some(verdict)
    }

    fn figure(&self, figure: Figure, side: Side) -> Option<Spread> {
        spread(&self.results.outcomes(&self.row.name, side), figure)
    }
}

fn spread(outcomes: &[&crate::figures::Outcome], figure: Figure) -> Option<Spread> {
    let mut values: Vec<f64> = outcomes.iter().filter_map(|outcome| outcome.get(figure)).collect();
    values.sort_by(f64::total_cmp);
    let (low, high) = (*values.first()?, *values.last()?);
    let middle = values.len() / 2;
    let median = if values.len().is_multiple_of(2) {
        (values[middle - 1] + values[middle]) / 2.0
    } else {
        values[middle]
    };
    Some(Spread { median, low, high })
}

impl Spread {
    /// The median, and the range if there is one.
    #[must_use]
    pub fn text(self) -> String {
        let (median, low, high) = (number(self.median), number(self.low), number(self.high));
        if low == high { median } else { format!("{median} ({low} - {high})") }
    }
}

/// Three digits, more or less, with a unit for thousands.
#[must_use]
pub fn number(value: f64) -> String {
    if value >= 9.995e5 {
        format!("{:.2}M", value / 1e6)
    } else if value >= 9.95e4 {
        format!("{:.0}k", value / 1e3)
    } else if value >= 9.95e3 {
        format!("{:.1}k", value / 1e3)
    } else if value >= 99.5 {
        format!("{value:.0}")
    } else if value >= 9.95 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::Outcome;

    fn outcomes(values: &[f64]) -> Vec<Outcome> {
        let outcome = |value: &f64| {
            let mut outcome = Outcome::default();
            outcome.set(Figure::Rate, *value);
            outcome
        };
        values.iter().map(outcome).collect()
    }

    #[test]
    fn the_median_is_the_middle_or_the_mean_of_the_middle_two() {
        let check = |values: &[f64], median| {
            let outcomes = outcomes(values);
            let spread = spread(&outcomes.iter().collect::<Vec<_>>(), Figure::Rate);
            assert_eq!(spread.map(|spread| spread.median), median);
        };

        check(&[3.0, 1.0, 2.0], Some(2.0));
        check(&[4.0, 1.0], Some(2.5));
        check(&[], None);
    }

    #[test]
    fn numbers_have_about_three_digits() {
        let check = |value, text: &str| assert_eq!(number(value), text);

        check(12_345_678.0, "12.35M");
        check(999_900.0, "1.00M");
        check(123_456.0, "123k");
        check(12_345.0, "12.3k");
        check(1234.0, "1234");
        check(12.34, "12.3");
        check(0.066, "0.07");
    }
}
