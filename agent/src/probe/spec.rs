// SPDX-License-Identifier: Apache-2.0
//! The text of a [`ProbeSpec`].

use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use crate::config::duration::GoDuration;
use crate::core::model::ProbeSpec;

const INTERVALS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(100);
/// A check holds one of few places until its end.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(5);
const THRESHOLDS: RangeInclusive<u32> = 1..=100;

/// What a value must be. The numbers are those above.
const WANTED: &str = "true, or a list such as interval=10s,timeout=1s,threshold=3 \
     (interval: 1s to 1h; timeout: 100ms to 5s and to the interval; threshold: 1 to 100 failures)";

/// `true`, or a list `interval=10s,timeout=1s,threshold=3` in any order. What it does not name has these values.
/// The error says what the value must be, as a part of a sentence: `true, or a list such as …`.
impl FromStr for ProbeSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "true" => Ok(Self::default()),
            text => parse_list(text).filter(is_within_bounds).ok_or_else(|| WANTED.to_owned()),
        }
    }
}

/// The values of a list that names at least one of them, and none twice.
fn parse_list(text: &str) -> Option<ProbeSpec> {
    let (mut interval, mut timeout, mut threshold) = (None, None, None);
    for part in text.split(',') {
        let (name, value) = part.split_once('=')?;
        let value = value.trim();
        let repeated = match name.trim() {
            "interval" => interval.replace(parse_duration(value)?).is_some(),
            "timeout" => timeout.replace(parse_duration(value)?).is_some(),
            "threshold" => threshold.replace(value.parse().ok()?).is_some(),
            _ => return None,
        };
        if repeated {
            return None;
        }
    }
    let usual = ProbeSpec::default();
    Some(ProbeSpec {
        interval: interval.unwrap_or(usual.interval),
        timeout: timeout.unwrap_or(usual.timeout),
        threshold: threshold.unwrap_or(usual.threshold),
    })
}

fn parse_duration(text: &str) -> Option<Duration> {
    text.parse::<GoDuration>().ok().map(|duration| duration.0)
}

fn is_within_bounds(spec: &ProbeSpec) -> bool {
    INTERVALS.contains(&spec.interval)
        && (SHORTEST_TIMEOUT..=spec.interval.min(LONGEST_TIMEOUT)).contains(&spec.timeout)
        && THRESHOLDS.contains(&spec.threshold)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(interval: u64, timeout: u64, threshold: u32) -> ProbeSpec {
        let ms = Duration::from_millis;
        ProbeSpec { interval: ms(interval), timeout: ms(timeout), threshold }
    }

    #[test]
    fn lists_name_any_of_the_values() {
        for (text, expected) in [
            ("true", spec(10_000, 1000, 3)),
            (" true ", spec(10_000, 1000, 3)),
            ("interval=5s,timeout=500ms,threshold=2", spec(5000, 500, 2)),
            (" threshold = 2 , interval = 5s ", spec(5000, 1000, 2)),
            ("timeout=5s", spec(10_000, 5000, 3)),
            ("interval=1s", spec(1000, 1000, 3)),
            ("interval=1h,timeout=5s,threshold=100", spec(3_600_000, 5000, 100)),
            ("timeout=100ms,threshold=1", spec(10_000, 100, 1)),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text:?}");
        }
    }

    #[test]
    fn what_is_no_list_or_beyond_the_bounds_is_an_error() {
        for text in [
            "",
            "false",
            "yes",
            ",",
            "interval",
            "interval=",
            "interval=5",
            "interval=5s,",
            "interval=5s;timeout=1s",
            "interval=5s,interval=5s",
            "true,interval=5s",
            "period=5s",
            "interval=999ms,timeout=100ms",
            "interval=1h1ns",
            "interval=-5s",
            "timeout=99ms",
            "timeout=5001ms",
            "interval=2s,timeout=3s",
            "threshold=0",
            "threshold=101",
            "threshold=-1",
            "threshold=1.5",
            "threshold=99999999999",
        ] {
            assert_eq!(text.parse::<ProbeSpec>(), Err(WANTED.to_owned()), "{text:?}");
        }
        let example = WANTED.split(' ').find(|word| word.starts_with("interval=")).unwrap();
        assert_eq!(example.parse(), Ok(ProbeSpec::default()));
    }
}
