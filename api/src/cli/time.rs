//! Times and spans of time as people type them.

use std::time::Duration;

use jiff::civil::Date;
use jiff::tz::TimeZone;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TimeError {
    #[error("{0:?} is no span of time such as 90s, 30m, 1h or 7d")]
    Span(String),
    #[error("{0:?} is no time such as 2026-11-01, 2026-11-01T12:00:00Z, 1h or 7d")]
    Time(String),
}

/// A whole number and `s`, `m`, `h` or `d`.
pub(super) fn span(text: &str) -> Result<Duration, TimeError> {
    let bad = || TimeError::Span(text.to_owned());
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => 86_400,
        _ => return Err(bad()),
    };
    let digits = &text[..text.len() - 1];
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    let count: u64 = digits.parse().map_err(|_| bad())?;
    count.checked_mul(unit).map(Duration::from_secs).ok_or_else(bad)
}

/// The start of a day (UTC), a time (RFC 3339), or so long before `now`.
pub(super) fn since(text: &str, now: jiff::Timestamp) -> Result<jiff::Timestamp, TimeError> {
    let bad = || TimeError::Time(text.to_owned());
    if let Ok(span) = span(text) {
        return now.checked_sub(span).map_err(|_| bad());
    }
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Ok(time);
    }
    // A date and nothing more: a date with a time of day but no zone would be read as a date too.
    if text.len() != 10 {
        return Err(bad());
    }
    let date: Date = text.parse().map_err(|_| bad())?;
    date.to_zoned(TimeZone::UTC)
        .map(|midnight| midnight.timestamp())
        .map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_one_unit() {
        assert_eq!(span("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(span("2d"), Ok(Duration::from_secs(172_800)));
        for bad in [
            "",
            "5",
            "h",
            "-1h",
            "+1h",
            "1h30m",
            "1.5h",
            "99999999999999999999s",
            "9999999999999999999d",
            "1é",
        ] {
            assert!(span(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn since_takes_days_times_and_spans() {
        let now: jiff::Timestamp = "2026-11-20T12:00:00Z".parse().unwrap();
        for (text, expected) in [
            ("2026-11-01", "2026-11-01T00:00:00Z"),
            ("2026-11-01T06:00:00+02:00", "2026-11-01T04:00:00Z"),
            ("1h", "2026-11-20T11:00:00Z"),
        ] {
            assert_eq!(since(text, now), Ok(expected.parse().unwrap()), "{text}");
        }
        for bad in ["yesterday", "2026-13-01", "2026-11-01T06:00:00", "1w"] {
            assert!(since(bad, now).is_err(), "{bad}");
        }
    }
}
