//! Durations as text, the way NATS writes them: `1h30m`, `1.5s`, `250ms`.

use crate::time::Nanos;

const UNITS: [(&str, i64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60 * 1_000_000_000),
    ("h", 3600 * 1_000_000_000),
];

/// Reads a sequence of numbers with units, such as `1h30m` or `-1.5s`; a bare `0` is zero.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Nanos> {
    let (negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(Nanos::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total = 0_i64;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|end| *end > 0)?;
        let (number, after) = rest.split_at(number_end);
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit)?;
        total = total.checked_add(scaled(number, *scale)?)?;
        rest = after;
    }
    Some(Nanos(if negative { -total } else { total }))
}

/// `number` times `scale`, where the number may have a fraction; what is below a nanosecond is dropped.
fn scaled(number: &str, scale: i64) -> Option<i64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let value = if whole.is_empty() { 0 } else { whole.parse::<i64>().ok()?.checked_mul(scale)? };
    // Eighteen digits are below a nanosecond even of an hour.
    let digits = &fraction[..fraction.len().min(18)];
    if digits.is_empty() {
        return Some(value);
    }
    let numerator = digits.parse::<i128>().ok()? * i128::from(scale);
    let below_one = numerator / 10_i128.pow(u32::try_from(digits.len()).ok()?);
    value.checked_add(i64::try_from(below_one).ok()?)
}

/// Writes a span the way NATS prints it: `2m0s`, `1.5s`, `100ms`, `0s`.
#[must_use]
pub fn format_duration(span: Nanos) -> String {
    let sign = if span.0 < 0 { "-" } else { "" };
    let nanos = span.0.unsigned_abs();
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{sign}{nanos}ns"),
        1_000..1_000_000 => format!("{sign}{}\u{b5}s", with_fraction(nanos, 1_000)),
        1_000_000..1_000_000_000 => format!("{sign}{}ms", with_fraction(nanos, 1_000_000)),
        _ => {
            let minutes = nanos / 60_000_000_000;
            let seconds = with_fraction(nanos % 60_000_000_000, 1_000_000_000);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{sign}{seconds}s"),
                (0, minutes) => format!("{sign}{minutes}m{seconds}s"),
                (hours, minutes) => format!("{sign}{hours}h{minutes}m{seconds}s"),
            }
        }
    }
}

fn with_fraction(value: u64, unit: u64) -> String {
    let fraction = value % unit;
    if fraction == 0 {
        return (value / unit).to_string();
    }
    let width = unit.ilog10() as usize;
    let digits = format!("{fraction:0width$}");
    format!("{}.{}", value / unit, digits.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_are_read_as_nats_reads_them() {
        let check = |text: &str, nanos: Option<i64>| {
            assert_eq!(parse_duration(text), nanos.map(Nanos), "{text:?}");
        };

        check("1h30m", Some(5_400_000_000_000));
        check("1.5s", Some(1_500_000_000));
        check(".5s", Some(500_000_000));
        check("-250ms", Some(-250_000_000));
        check("0", Some(0));
        check("3us", Some(3_000));
        check("1.00000000000000000001s", Some(1_000_000_000));
        check("", None);
        check("-", None);
        check("5", None);
        check(".s", None);
        check("1.2.3s", None);
        check("5x", None);
        check("s", None);
        check("99999999999h", None);
    }

    #[test]
    fn durations_are_written_as_nats_writes_them() {
        let check = |nanos: i64, text: &str| assert_eq!(format_duration(Nanos(nanos)), text);

        check(0, "0s");
        check(60_000_000_000, "1m0s");
        check(120_000_000_000, "2m0s");
        check(100_000_000, "100ms");
        check(1_500_000_000, "1.5s");
        check(3_723_000_000_000, "1h2m3s");
        check(-1, "-1ns");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(nanos in -i64::MAX..i64::MAX) {
            prop_assert_eq!(parse_duration(&format_duration(Nanos(nanos))), Some(Nanos(nanos)));
        }

        #[test]
        fn arbitrary_text_never_panics(text in ".*") {
            let _ = parse_duration(&text);
        }
    }
}
