//! Durations as Go writes them: `1h2m3.5s`, `250ms`.

use std::time::Duration;

/// A text that is no duration.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("time: invalid duration {0:?}")]
pub struct InvalidDuration(String);

/// Reads a duration. Negative ones are refused: nothing here takes one.
pub fn parse_duration(text: &str) -> Result<Duration, InvalidDuration> {
    parse(text).ok_or_else(|| InvalidDuration(text.to_owned()))
}

fn parse(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut nanos: u128 = 0;
    while !rest.is_empty() {
        let number_len = rest.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
        let (number, tail) = rest.split_at(number_len);
        let unit_len = tail.bytes().take_while(|b| !b.is_ascii_digit() && *b != b'.').count();
        let (unit, tail) = tail.split_at(unit_len);
        let unit: u128 = match unit {
            "ns" => 1,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') || number_len > 40 {
            return None;
        }
        let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        nanos = nanos.checked_add(whole.checked_mul(unit)?)?;
        // Digits past the fifteenth are below a nanosecond in every unit.
        let fraction = &fraction[..fraction.len().min(15)];
        if !fraction.is_empty() {
            let scale = 10_u128.pow(fraction.len() as u32);
            nanos = nanos.checked_add(fraction.parse::<u128>().ok()? * unit / scale)?;
        }
        rest = tail;
    }
    // Go counts nanoseconds in an i64.
    let nanos = i64::try_from(nanos).ok()?;
    Some(Duration::from_nanos(nanos.unsigned_abs()))
}

/// Writes a duration as Go does: `2m0s`, `1.5s`, `250ms`.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".to_owned();
    }
    for (unit, name) in [(1_000_u128, "ns"), (1_000_000, "\u{b5}s"), (1_000_000_000, "ms")] {
        if nanos < unit {
            return decimal(nanos, unit / 1000, name);
        }
    }
    let minutes = nanos / 60_000_000_000;
    let seconds = decimal(nanos % 60_000_000_000, 1_000_000_000, "s");
    match (minutes / 60, minutes % 60) {
        (0, 0) => seconds,
        (0, minutes) => format!("{minutes}m{seconds}"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
    }
}

fn decimal(nanos: u128, unit: u128, name: &str) -> String {
    let (whole, fraction) = (nanos / unit, nanos % unit);
    if fraction == 0 {
        return format!("{whole}{name}");
    }
    let digits = unit.ilog10() as usize;
    let fraction = format!("{fraction:0digits$}");
    format!("{whole}.{}{name}", fraction.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        let check = |text: &str, nanos: Option<u64>| {
            assert_eq!(parse_duration(text).ok(), nanos.map(Duration::from_nanos), "{text}");
        };
        check("0", Some(0));
        check("10s", Some(10_000_000_000));
        check("1h2m3s4ms", Some(3_723_004_000_000));
        check("1.5s", Some(1_500_000_000));
        check(".5s", Some(500_000_000));
        check("100us", Some(100_000));
        check("", None);
        check("10", None);
        check("abc", None);
        check("1..5s", None);
        check("-5s", None);
        check("5x", None);
        check("99999999999999999999h", None);
    }

    #[test]
    fn durations_are_written_as_go_writes_them() {
        let check = |nanos: u64, text: &str| assert_eq!(format_duration(Duration::from_nanos(nanos)), text);
        check(0, "0s");
        check(150, "150ns");
        check(1_500, "1.5\u{b5}s");
        check(150_483_854, "150.483854ms");
        check(1_000_000_000, "1s");
        check(120_000_000_000, "2m0s");
        check(3_723_004_000_000, "1h2m3.004s");
    }
}
