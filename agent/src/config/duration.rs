// SPDX-License-Identifier: Apache-2.0
//! Durations as Go writes them, e.g. `1h5m0s` or `300ms`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::ensure;

const UNITS: [(&str, u128); 3] = [("ms", 1_000_000), ("µs", 1_000), ("ns", 1)];
const SECOND: u128 = 1_000_000_000;

/// A duration that is not negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GoDuration(pub Duration);

impl FromStr for GoDuration {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let parsed = text.parse::<kube::core::Duration>().ok().filter(|_| !text.is_empty());
        let Some(parsed) = parsed else {
            anyhow::bail!("{text:?} is not a duration such as 30s, 1h5m or 500ms")
        };
        ensure!(!parsed.is_negative(), "{text} is negative");
        Ok(Self(parsed.into()))
    }
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
        for wrong in ["", "fast", "5", "-1s", "1 s"] {
            assert!(wrong.parse::<GoDuration>().is_err(), "{wrong:?}");
        }
    }
}
