//! When a scheduled message is due: `@at`, `@every`, six-field cron and its short names.
//!
//! Pure: the time comes in, and the rules of time zones are part of the program.

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Zoned};

use crate::api::duration_text::parse_duration;
use crate::api::error::ApiError;
use crate::time::{Nanos, Timestamp};

/// How far ahead the next time is looked for.
const YEARS_MAX: i16 = 5;
const SECOND: i64 = 1_000_000_000;

/// A pattern of times.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Schedule {
    /// Once.
    At(Timestamp),
    /// Again and again after this span, of at least a second.
    Every(Nanos),
    /// Whenever the clock of a zone shows this.
    Cron(Box<Cron>),
}

impl Schedule {
    /// Reads a pattern; `zone` is an IANA name and only for patterns that follow a clock.
    pub fn parse(pattern: &str, zone: Option<&str>) -> Result<Self, ApiError> {
        let invalid = ApiError::schedule_pattern_invalid;
        let pattern = pattern.trim();
        if let Some(time) = pattern.strip_prefix("@at ") {
            let time = once(time.trim()).filter(|_| zone.is_none());
            return time.map(Self::At).ok_or_else(invalid);
        }
        if let Some(span) = pattern.strip_prefix("@every ") {
            let span = parse_duration(span.trim()).filter(|span| span.0 >= SECOND && zone.is_none());
            return span.map(Self::Every).ok_or_else(invalid);
        }
        let fields = match pattern {
            "@yearly" | "@annually" => "0 0 0 1 1 *",
            "@monthly" => "0 0 0 1 * *",
            "@weekly" => "0 0 0 * * 0",
            "@daily" | "@midnight" => "0 0 0 * * *",
            "@hourly" => "0 0 * * * *",
            fields => fields,
        };
        let mut cron = Cron::parse(fields).ok_or_else(invalid)?;
        cron.zone = match zone {
            None | Some("Local") => TimeZone::UTC,
            Some(zone) => TimeZone::get(zone).map_err(|_| ApiError::schedule_time_zone_invalid())?,
        };
        Ok(Self::Cron(Box::new(cron)))
    }

    /// When a message that was stored at `stored` is due for the first time; `None` is never.
    #[must_use]
    pub fn first(&self, stored: Timestamp) -> Option<Timestamp> {
        match self {
            Self::At(time) => Some(*time),
            Self::Every(span) => Some(whole_second(stored).plus(*span)),
            Self::Cron(cron) => cron.next(stored),
        }
    }

    /// When it is due again after it was due at `due` and that was seen to at `now`. What was missed in between is made
    /// up for once. `None` is never.
    #[must_use]
    pub fn next(&self, due: Timestamp, now: Timestamp) -> Option<Timestamp> {
        match self {
            Self::At(_) => None,
            Self::Every(span) => {
                let next = due.plus(*span);
                Some(if next > now { next } else { whole_second(now).plus(*span) })
            }
            Self::Cron(cron) => cron.next(now),
        }
    }
}

/// The time of `@at`. One that is too late for a `Timestamp` is the last one there is.
fn once(text: &str) -> Option<Timestamp> {
    let time = Timestamp::parse(text).ok().filter(|_| text.contains('T'))?;
    // A time that does not fit reads as `ZERO`; which way it does not, the four digits of the year say.
    let is_late = time == Timestamp::ZERO && text.get(..4).is_some_and(|year| year > "2000");
    Some(if is_late { Timestamp(i64::MAX) } else { time })
}

fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp(time.0 - time.0.rem_euclid(SECOND))
}

/// What the clock of a zone has to show.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cron {
    second: u64,
    minute: u64,
    hour: u64,
    day: u64,
    month: u64,
    weekday: u64,
    /// A day is meant if both day fields have it, rather than one of them: one of them means every day.
    days_intersect: bool,
    zone: TimeZone,
}

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

impl Cron {
    /// Six fields: second, minute, hour, day of the month, month, day of the week.
    fn parse(text: &str) -> Option<Self> {
        let fields: Vec<&str> = text.split_ascii_whitespace().collect();
        let [second, minute, hour, day, month, weekday] = fields[..] else { return None };
        let cron = Self {
            second: field(second, (0, 59), &[])?,
            minute: field(minute, (0, 59), &[])?,
            hour: field(hour, (0, 23), &[])?,
            day: field(day, (1, 31), &[])?,
            month: field(month, (1, 12), &MONTHS)?,
            weekday: field(weekday, (0, 6), &WEEKDAYS)?,
            days_intersect: is_any(day) || is_any(weekday),
            zone: TimeZone::UTC,
        };
        // A day that no month has.
        cron.next(Timestamp(0)).map(|_| cron)
    }

    /// The first time after `after`, in whole seconds.
    fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let start = jiff::Timestamp::from_second(after.0.div_euclid(SECOND) + 1).ok()?;
        let mut at = Zoned::new(start, self.zone.clone());
        let last_year = at.year() + YEARS_MAX;
        while at.year() <= last_year {
            if !has(self.month, at.month()) {
                let (year, month) =
                    if at.month() == 12 { (at.year() + 1, 1) } else { (at.year(), at.month() + 1) };
                at = self.midnight(Date::new(year, month, 1).ok()?)?;
            } else if !self.has_day(at.date()) {
                at = self.midnight(at.date().tomorrow().ok()?)?;
            } else if !has(self.hour, at.hour()) {
                let passed = i64::from(at.minute()) * 60 + i64::from(at.second());
                at = at.checked_add(SignedDuration::from_secs(3600 - passed)).ok()?;
            } else if !has(self.minute, at.minute()) {
                at = at.checked_add(SignedDuration::from_secs(60 - i64::from(at.second()))).ok()?;
            } else if !has(self.second, at.second()) {
                at = at.checked_add(SignedDuration::from_secs(1)).ok()?;
            } else {
                return Some(Timestamp(at.timestamp().as_second().checked_mul(SECOND)?));
            }
        }
        None
    }

    fn midnight(&self, date: Date) -> Option<Zoned> {
        DateTime::from(date).to_zoned(self.zone.clone()).ok()
    }

    fn has_day(&self, date: Date) -> bool {
        let day = has(self.day, date.day());
        let weekday = has(self.weekday, date.weekday().to_sunday_zero_offset());
        if self.days_intersect { day && weekday } else { day || weekday }
    }
}

fn has(set: u64, number: i8) -> bool {
    set & (1 << number) != 0
}

/// Whether a field does not restrict anything.
fn is_any(field: &str) -> bool {
    field.split(',').any(|part| matches!(part, "*" | "?" | "*/1" | "?/1"))
}

/// A field as a set of numbers: lists of `*`, `?`, numbers, names and ranges, each with `/step`.
fn field(text: &str, (least, most): (u32, u32), names: &[&str]) -> Option<u64> {
    let mut set = 0;
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(step.parse::<u32>().ok().filter(|step| *step > 0)?)),
            None => (part, None),
        };
        let number = |text: &str| number(text, least, names);
        let (first, last) = match range.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None if matches!(range, "*" | "?") => (least, most),
            // A single number with a step goes on to the end.
            None => (number(range)?, if step.is_some() { most } else { number(range)? }),
        };
        if first < least || last > most || first > last {
            return None;
        }
        set |= (first..=last).step_by(step.unwrap_or(1) as usize).fold(0, |set, number| set | 1 << number);
    }
    Some(set)
}

fn number(text: &str, least: u32, names: &[&str]) -> Option<u32> {
    let named = names.iter().position(|name| text.eq_ignore_ascii_case(name));
    match named {
        Some(position) => Some(u32::try_from(position).ok()? + least),
        None if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Timestamp {
        Timestamp::parse(text).unwrap()
    }

    #[test]
    fn patterns_are_read_as_nats_reads_them() {
        for pattern in [
            "@every 1s",
            "@every 1500ms",
            "@every 1s ",
            "@at 2009-11-10T23:00:00Z",
            "@at 2050-01-01T00:00:00+02:00",
            "@hourly",
            "@yearly",
            "@annually",
            "@monthly",
            "@weekly",
            "@daily",
            "@midnight",
            "* * * * * *",
            "*/5 * * * * *",
            "0 0 0 1 JAN MON",
            "0 0 0 1 jan-mar mon,tue",
            "0 0 0 ? * *",
            "1/2 * * * * *",
        ] {
            assert!(Schedule::parse(pattern, None).is_ok(), "{pattern:?}");
        }
        for pattern in [
            "",
            "@every 500ms",
            "@every x",
            "@every 0s",
            "@every -1s",
            "@EVERY 1s",
            "@at x",
            "@at 2050-01-01 00:00:00Z",
            "@foo",
            "0 0 * * *",
            "60 * * * * *",
            "0 0 0 0 * *",
            "0 0 0 * * 7",
            "0 0 0 31 2 *",
            "5-1 * * * * *",
            "+1 * * * * *",
            "*/0 * * * * *",
            "1- * * * * *",
        ] {
            assert_eq!(Schedule::parse(pattern, None).unwrap_err().err_code, 10189, "{pattern:?}");
        }
    }

    #[test]
    fn zones_are_for_patterns_that_follow_a_clock() {
        let code =
            |pattern, zone| Schedule::parse(pattern, Some(zone)).map(|_| ()).map_err(|error| error.err_code);

        assert_eq!(code("@hourly", "Europe/Berlin"), Ok(()));
        assert_eq!(code("@hourly", "Local"), Ok(()));
        assert_eq!(code("@hourly", "Nowhere/Else"), Err(10223));
        assert_eq!(code("@every 1h", "UTC"), Err(10189));
        assert_eq!(code("@at 2050-01-01T00:00:00Z", "UTC"), Err(10189));
    }

    #[test]
    fn times_that_do_not_fit_are_the_first_or_the_last_there_is() {
        for (text, expected) in [
            ("@at 0001-01-01T00:00:00Z", Timestamp::ZERO),
            ("@at 1600-01-01T00:00:00Z", Timestamp::ZERO),
            ("@at 2262-04-12T00:00:00Z", Timestamp(i64::MAX)),
            ("@at 9999-12-31T23:59:59Z", Timestamp(i64::MAX)),
        ] {
            assert_eq!(Schedule::parse(text, None).unwrap(), Schedule::At(expected), "{text}");
        }
    }

    #[test]
    fn the_next_time_is_the_first_that_the_clock_shows() {
        let check = |pattern, zone, after, expected| {
            let schedule = Schedule::parse(pattern, zone).unwrap();
            let next = schedule.first(time(after)).unwrap();
            assert_eq!(next.to_string(), expected, "{pattern} after {after}");
        };

        check("*/2 * * * * *", None, "2026-11-21T18:10:22.5Z", "2026-11-21T18:10:24Z");
        check("* * * * * *", None, "2026-12-31T23:59:59Z", "2027-01-01T00:00:00Z");
        check("0 30 4 29 2 *", None, "2026-01-01T00:00:00Z", "2028-02-29T04:30:00Z");
        check("0 0 0 13 * fri", None, "2026-11-21T00:00:00Z", "2026-11-27T00:00:00Z");
        check("0 0 0 13 * *", None, "2026-11-21T00:00:00Z", "2026-12-13T00:00:00Z");
        check("@weekly", None, "2026-11-21T00:00:00Z", "2026-11-22T00:00:00Z");
        check("0 0 9 * * *", Some("Europe/Berlin"), "2026-07-01T08:00:00Z", "2026-07-02T07:00:00Z");
        check("0 0 9 * * *", Some("Europe/Berlin"), "2026-12-01T07:00:00Z", "2026-12-01T08:00:00Z");
        // The hour from two to three does not exist on the first of these days, and comes twice on the second.
        check("0 30 2 * * *", Some("Europe/Berlin"), "2026-03-29T00:00:00Z", "2026-03-30T00:30:00Z");
        check("0 0 * * * *", Some("Europe/Berlin"), "2026-10-25T00:30:00Z", "2026-10-25T01:00:00Z");
    }

    #[test]
    fn intervals_begin_at_whole_seconds_and_make_up_for_what_was_missed_once() {
        let every = Schedule::parse("@every 10s", None).unwrap();
        let first = every.first(time("2026-11-21T18:10:22.9Z")).unwrap();
        assert_eq!(first.to_string(), "2026-11-21T18:10:32Z");
        let next = every.next(first, time("2026-11-21T18:10:32.4Z")).unwrap();
        assert_eq!(next.to_string(), "2026-11-21T18:10:42Z");
        let late = every.next(first, time("2026-11-21T19:00:01.4Z")).unwrap();
        assert_eq!(late.to_string(), "2026-11-21T19:00:11Z");

        let once = Schedule::parse("@at 2009-11-10T23:00:00Z", None).unwrap();
        assert_eq!(once.first(Timestamp(0)), Some(time("2009-11-10T23:00:00Z")));
        assert_eq!(once.next(Timestamp(0), Timestamp(0)), None);
    }
}
