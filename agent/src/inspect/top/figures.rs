// SPDX-License-Identifier: Apache-2.0
//! Numbers in columns of at most seven characters.

use super::rate_meter::{Load, PerSecond};

/// A number of things: `99999`, `123K`, `1.2M`.
pub(super) fn figure(number: u64) -> String {
    match number {
        0..=99_999 => number.to_string(),
        _ => scaled(number as f64),
    }
}

/// `0.5`, `42`, `1.2K`, `34M`, `5.6G`: thousands, as ipvsadm counts. A rate below 0.05 is `0`.
pub(super) fn scaled(number: f64) -> String {
    const UNITS: [&str; 5] = ["", "K", "M", "G", "T"];
    if number < 0.05 {
        return "0".to_owned();
    }
    let (mut number, mut unit) = (number, 0);
    while number.round() >= 1000.0 && unit + 1 < UNITS.len() {
        number /= 1000.0;
        unit += 1;
    }
    let ending = UNITS.get(unit).copied().unwrap_or_default();
    let tenths = (number * 10.0).round();
    // 9.96 has two digits, as 10.
    match tenths < 100.0 && tenths % 10.0 != 0.0 {
        true => format!("{:.1}{ending}", tenths / 10.0),
        false => format!("{:.0}{ending}", number),
    }
}

/// Connections, packets and bytes per second; `-` while there is no rate.
pub(super) fn rate_cells(load: &Load) -> [String; 3] {
    let Some(PerSecond { connections, packets, bytes }) = load.per_second else {
        return ["-", "-", "-"].map(str::to_owned);
    };
    [connections, packets, bytes].map(scaled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (number, text) in [
            (0.0, "0"),
            (0.04, "0"),
            (0.05, "0.1"),
            (0.5, "0.5"),
            (1.0, "1"),
            (9.94, "9.9"),
            (9.96, "10"),
            (42.4, "42"),
            (999.4, "999"),
            (999.6, "1K"),
            (1234.0, "1.2K"),
            (12_345.0, "12K"),
            (999_499.0, "999K"),
            (999_500.0, "1M"),
            (5.6e9, "5.6G"),
            (1e18, "1000000T"),
        ] {
            assert_eq!(scaled(number), text, "{number}");
        }
        assert_eq!(figure(99_999), "99999");
        assert_eq!(figure(123_456), "123K");
        assert_eq!(figure(1_234_567), "1.2M");
    }
}
