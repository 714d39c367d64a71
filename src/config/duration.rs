//! Durations as kube-proxy's flags take them.
//!
//! Go's `time.ParseDuration`: a sequence of decimal numbers, each with an
//! optional fraction and a unit, such as `1s`, `500ms`, `1m30s`, `1.5h`; `0`
//! needs no unit. Negative durations mean nothing to any option here and are
//! refused.

use std::time::Duration;

use thiserror::Error;

/// Why a text is no duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DurationError {
    /// Nothing was given.
    #[error("is empty; a duration looks like 500ms, 1s or 1m30s")]
    Empty,
    /// It starts with a minus sign.
    #[error("is negative")]
    Negative,
    /// A number was expected.
    #[error("is no duration; one looks like 500ms, 1s or 1m30s")]
    Number,
    /// A number without a unit, other than `0`.
    #[error("lacks a unit (ns, us, ms, s, m or h)")]
    UnitMissing,
    /// A unit that Go does not know either.
    #[error("has an unknown unit; known are ns, us, ms, s, m and h")]
    UnitUnknown,
    /// Longer than Go's durations can be, 2^63 - 1 ns (about 292 years).
    #[error("is too long")]
    TooLong,
}

/// Go keeps a duration in a signed 64-bit number of nanoseconds.
const LONGEST_NS: u128 = i64::MAX as u128;

/// An hour has 3.6e12 ns, so that later digits of a fraction never matter.
const FRACTION_DIGITS: usize = 18;

/// Reads a duration in Go's notation.
///
/// # Errors
///
/// [`DurationError`] says what is wrong with the text.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.starts_with('-') {
        return Err(DurationError::Negative);
    }
    if rest.is_empty() {
        return Err(DurationError::Empty);
    }
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let (term, after) = term(rest)?;
        total = total.checked_add(term).ok_or(DurationError::TooLong)?;
        if total > LONGEST_NS {
            return Err(DurationError::TooLong);
        }
        rest = after;
    }
    let nanos = u64::try_from(total).map_err(|_| DurationError::TooLong)?;
    Ok(Duration::from_nanos(nanos))
}

/// Writes a duration as [`parse`] reads it, in the largest unit that keeps it
/// whole.
pub fn format(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0".to_owned();
    }
    let (unit, name) = [
        (3_600_000_000_000, "h"),
        (60_000_000_000, "m"),
        (1_000_000_000, "s"),
        (1_000_000, "ms"),
        (1_000, "us"),
    ]
    .into_iter()
    .find(|(unit, _)| nanos.is_multiple_of(*unit))
    .unwrap_or((1, "ns"));
    format!("{}{name}", nanos / unit)
}

/// One number with its unit, in nanoseconds, and what follows it.
fn term(text: &str) -> Result<(u128, &str), DurationError> {
    let (whole, rest) = digits(text);
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(rest) => digits(rest),
        None => ("", rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return Err(DurationError::Number);
    }
    let end = rest
        .find(|c: char| c == '.' || c.is_ascii_digit())
        .unwrap_or(rest.len());
    let (unit, after) = rest.split_at(end);
    let unit = match unit {
        "" => return Err(DurationError::UnitMissing),
        "ns" => 1,
        // U+00B5 (micro sign) and U+03BC (mu), as Go takes both.
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000_u128,
        _ => return Err(DurationError::UnitUnknown),
    };
    let nanos = number(whole)?
        .checked_mul(unit)
        .ok_or(DurationError::TooLong)?;
    // Digits beyond these are below a nanosecond of any unit.
    let fraction = &fraction[..fraction.len().min(FRACTION_DIGITS)];
    let part = number(fraction)? * unit / 10_u128.pow(fraction.len() as u32);
    Ok((nanos + part, after))
}

fn digits(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    text.split_at(end)
}

fn number(digits: &str) -> Result<u128, DurationError> {
    if digits.is_empty() {
        return Ok(0);
    }
    digits
        .parse::<u64>()
        .map(u128::from)
        .map_err(|_| DurationError::TooLong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_go_reads() {
        for (text, nanos) in [
            ("0", 0),
            ("0s", 0),
            ("+5s", 5_000_000_000),
            ("1s", 1_000_000_000),
            ("500ms", 500_000_000),
            ("1m30s", 90_000_000_000),
            ("1.5h", 5_400_000_000_000),
            (".5s", 500_000_000),
            ("5.s", 5_000_000_000),
            ("10us", 10_000),
            ("10\u{b5}s", 10_000),
            ("10\u{3bc}s", 10_000),
            ("3ns", 3),
            ("2h45m30.5s", 9_930_500_000_000),
            ("0.3333333333333333333h", 1_199_999_999_999),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_nanos(nanos)), "{text}");
        }
    }

    #[test]
    fn says_what_is_wrong() {
        for (text, error) in [
            ("", DurationError::Empty),
            ("-1s", DurationError::Negative),
            ("abc", DurationError::Number),
            (".s", DurationError::Number),
            ("+-1s", DurationError::Negative),
            ("1", DurationError::UnitMissing),
            ("1m30", DurationError::UnitMissing),
            ("1d", DurationError::UnitUnknown),
            ("1 s", DurationError::UnitUnknown),
            ("9999999999999999999999s", DurationError::TooLong),
            ("300000000h", DurationError::TooLong),
        ] {
            assert_eq!(parse(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn writes_what_it_reads() {
        for text in ["0", "1s", "500ms", "90s", "2m", "3h", "7us", "1ns"] {
            let duration = parse(text).unwrap();
            assert_eq!(format(duration), text);
            assert_eq!(parse(&format(duration)), Ok(duration));
        }
    }
}
