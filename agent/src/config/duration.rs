// SPDX-License-Identifier: Apache-2.0
//! Durations in Go's format, e.g. `1h5m0s` or `300ms`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, ensure};

const UNITS: [(&str, u128); 3] = [("ms", 1_000_000), ("µs", 1_000), ("ns", 1)];
const SECOND: u128 = 1_000_000_000;
/// The accepted units; the second `µs` has the Greek letter.
const UNITS_READ: [(&str, u128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", SECOND),
    ("m", 60 * SECOND),
    ("h", 3600 * SECOND),
];
/// The longest duration of Go, in nanoseconds: some 292 years.
const LONGEST: u64 = i64::MAX as u64;
/// The digits of a fraction that are parsed.
const FRACTION: usize = 18;

/// A duration that is not negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GoDuration(pub Duration);

/// As Go's `time.ParseDuration`, in whole numbers: `kube::core::Duration` panics where one is too long or a part
/// of it is negative.
impl FromStr for GoDuration {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let Some(nanos) = parse_parts(text.trim_start_matches(['+', '-'])).filter(|_| signs(text) < 2) else {
            anyhow::bail!("{text:?} is not a duration such as 30s, 1h5m or 500ms")
        };
        ensure!(nanos == 0 || !text.starts_with('-'), "{text} is negative");
        let nanos = u64::try_from(nanos).ok().filter(|nanos| *nanos <= LONGEST);
        nanos.map(|nanos| Self(Duration::from_nanos(nanos))).with_context(|| format!("{text} is too long"))
    }
}

fn signs(text: &str) -> usize {
    text.bytes().take_while(|byte| matches!(byte, b'+' | b'-')).count()
}

/// The sum of numbers with units, e.g. `1h0.5s`, in nanoseconds; one that is too long stays too long.
fn parse_parts(text: &str) -> Option<u128> {
    let mut rest = text;
    let mut sum = 0u128;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() && text != "0" {
        let (number, more) = rest.split_at(rest.find(|c: char| !is_of_number(c))?);
        let (unit, more) = more.split_at(more.find(is_of_number).unwrap_or(more.len()));
        let (_, size) = UNITS_READ.iter().find(|(name, _)| *name == unit)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if number.trim_matches('.').is_empty() || fraction.contains('.') {
            return None;
        }
        // The other digits are less than a nanosecond, even of hours.
        let fraction = fraction.get(..FRACTION).unwrap_or(fraction);
        let digits = format!("{whole}{fraction}").parse().unwrap_or(u128::MAX);
        sum = sum.saturating_add(digits.saturating_mul(*size) / 10u128.pow(fraction.len() as u32));
        rest = more;
    }
    Some(sum)
}

fn is_of_number(c: char) -> bool {
    c.is_ascii_digit() || c == '.'
}

/// As Go's `Duration.String`.
impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        if nanos == 0 {
            return f.write_str("0s");
        }
        if nanos < SECOND {
            let unit = UNITS.iter().find(|(_, size)| nanos >= *size);
            return unit.map_or(Ok(()), |(name, size)| write!(f, "{}{name}", decimal(nanos, *size)));
        }
        let (minutes, rest) = (nanos / (60 * SECOND), nanos % (60 * SECOND));
        if minutes >= 60 {
            write!(f, "{}h", minutes / 60)?;
        }
        if minutes > 0 {
            write!(f, "{}m", minutes % 60)?;
        }
        write!(f, "{}s", decimal(rest, SECOND))
    }
}

/// `nanos` in a unit of so many nanoseconds, without zeros at the end.
fn decimal(nanos: u128, unit: u128) -> String {
    let (whole, rest) = (nanos / unit, nanos % unit);
    if rest == 0 {
        return whole.to_string();
    }
    let digits = unit.ilog10() as usize;
    format!("{whole}.{}", format!("{rest:0digits$}").trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_printed_as_go_does() {
        for (given, printed) in [
            ("0s", "0s"),
            ("0", "0s"),
            ("30s", "30s"),
            ("90s", "1m30s"),
            ("15m", "15m0s"),
            ("24h", "24h0m0s"),
            ("1.5h", "1h30m0s"),
            ("1500ms", "1.5s"),
            ("300ms", "300ms"),
            ("1h0.25s", "1h0m0.25s"),
            ("1500us", "1.5ms"),
        ] {
            assert_eq!(given.parse::<GoDuration>().unwrap().to_string(), printed, "{given}");
        }
        for wrong in ["", "fast", "5", "-1s", "1 s", "+-1s", ".s", "1.2.3s", "s", "1s-", "0x1s", "1e3s", "00"]
        {
            assert!(wrong.parse::<GoDuration>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_is_too_long_or_negative_inside_is_an_error() {
        for (given, expected) in [
            ("2562047h47m16.854775807s", "2562047h47m16.854775807s"),
            (".5h", "30m0s"),
            ("5.s", "5s"),
            ("+1s", "1s"),
            ("-0s", "0s"),
            ("0.9999999999999999999999ns", "0s"),
        ] {
            assert_eq!(given.parse::<GoDuration>().unwrap().to_string(), expected, "{given}");
        }
        let error = |text: &str| text.parse::<GoDuration>().unwrap_err().to_string();
        assert!(error("2562047h47m16.854775808s").contains("too long"));
        assert!(error(&format!("{}h", "9".repeat(60))).contains("too long"));
        assert!(error("1s-5s").contains("not a duration"));
    }
}
