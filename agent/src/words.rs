// SPDX-License-Identifier: Apache-2.0
//! Numbers, times, lists and errors in log lines.

use std::fmt::Display;
use std::io;
use std::time::Duration;

use nix::errno::Errno;

/// `3,003`.
pub fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 Service`, `3,003 Services`.
pub fn count(number: usize, one: &str) -> String {
    let ending = match one {
        _ if number == 1 => "",
        one if one.ends_with("ss") => "es",
        _ => "s",
    };
    format!("{} {one}{ending}", thousands(number))
}

/// `12 ms`, `3.5 s`, `42 s`, `5 min`, `3 h`.
pub fn time(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match time.as_secs() {
        0 if seconds < 0.001 => format!("{} µs", time.as_micros()),
        0 => format!("{} ms", time.as_millis()),
        1..=9 => format!("{seconds:.1} s"),
        10..=119 => format!("{} s", time.as_secs()),
        120..=7199 => format!("{} min", time.as_secs() / 60),
        _ => format!("{} h", time.as_secs() / 3600),
    }
}

/// The first `shown` of `count` things, and the number of the others: `a, b, c and 7 more`.
pub fn some<T: Display>(things: impl IntoIterator<Item = T>, shown: usize, count: usize) -> String {
    let names: Vec<String> = things.into_iter().take(shown).map(|thing| thing.to_string()).collect();
    match count.saturating_sub(names.len()) {
        0 => names.join(", "),
        more => format!("{} and {} more", names.join(", "), thousands(more)),
    }
}

/// The text of a system error, without its number.
pub fn io_error(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(errno) => Errno::from_raw(errno).desc().to_owned(),
        None => error.to_string(),
    }
}

/// An error with its causes, each once, without system error numbers.
pub fn chain(error: &anyhow::Error) -> String {
    causes(error.as_ref())
}

/// As [`chain`], of an error of a library.
pub fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    for cause in anyhow::Chain::new(error) {
        let said = match cause.downcast_ref::<io::Error>() {
            Some(error) => io_error(error),
            None => cause.to_string(),
        };
        // Some libraries add a drawing below the first line.
        let said = said.lines().next().unwrap_or_default().to_owned();
        // Some causes repeat the causes below them.
        if said.is_empty() || text.contains(&said) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&said);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_times_read_well() {
        assert_eq!([0, 999, 1000, 1234567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(
            (count(1, "address"), count(3003, "address")),
            ("1 address".into(), "3,003 addresses".into())
        );
        let times = [50, 12_000, 3_510_000, 42_000_000, 330_000_000, 10_800_000_000];
        let times = times.map(|micros| time(Duration::from_micros(micros)));
        assert_eq!(times, ["50 µs", "12 ms", "3.5 s", "42 s", "5 min", "3 h"]);
        assert_eq!(some(["a", "b", "c"], 2, 3), "a, b and 1 more");
        assert_eq!(some(["a"], 2, 1), "a");
        assert_eq!(io_error(&io::Error::from_raw_os_error(30)), "Read-only file system");
    }

    #[test]
    fn an_error_has_each_cause_once() {
        let lowest = anyhow::Error::from(io::Error::from_raw_os_error(30));
        let error = lowest.context("cannot write: Read-only file system").context("the file /x");
        assert_eq!(chain(&error), "the file /x: cannot write: Read-only file system");
        let error = anyhow::Error::from(io::Error::from_raw_os_error(2)).context("cannot read /x");
        assert_eq!(chain(&error), "cannot read /x: No such file or directory");
    }
}
