// SPDX-License-Identifier: Apache-2.0
//! The table of `make bench`: measurements, limits and goals.

use std::fmt::Write;

/// One line of the table. Smaller is better.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Name of the measurement, with its size.
    pub what: String,
    /// The measured value.
    pub value: f64,
    /// Its unit, e.g. `x limit` or `MB`.
    pub unit: &'static str,
    /// The limit; `None`: no limit.
    pub must: Option<f64>,
    /// The goal.
    pub aim: Option<f64>,
}

impl Row {
    /// Whether the value is within the limit.
    pub fn holds(&self) -> bool {
        self.must.is_none_or(|must| self.value <= must)
    }
}

/// The table as text.
pub fn render(rows: &[Row]) -> String {
    let mut text = format!("{:<58} {:>9} {:<9} {:>7} {:>7}\n", "what", "measured", "", "must", "aim");
    for row in rows {
        let limit = |limit: Option<f64>| limit.map_or_else(|| "–".to_owned(), |limit| limit.to_string());
        let mark = if row.holds() { "" } else { "  too much" };
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "{:<58} {:>9.2} {:<9} {:>7} {:>7}{mark}",
            row.what,
            row.value,
            row.unit,
            limit(row.must),
            limit(row.aim)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceeded_limits_are_marked() {
        let row = |value, must| Row { what: "cold".into(), value, unit: "x limit", must, aim: Some(1.2) };
        assert!(row(1.5, Some(1.5)).holds() && row(9.0, None).holds() && !row(1.6, Some(1.5)).holds());
        let text = render(&[row(1.6, Some(1.5)), row(1.0, None)]);
        assert_eq!(text.matches("too much").count(), 1, "{text}");
        assert!(text.lines().nth(1).unwrap_or_default().contains("1.60 x limit"), "{text}");
    }
}
