// SPDX-License-Identifier: Apache-2.0
//! The table of `make bench`: measurements, limits and goals.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// One line of the table. Smaller is better.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Name of the measurement, with its size.
    pub what: String,
    /// The measured value.
    pub value: f64,
    /// Its unit, e.g. `x limit` or `MB`.
    pub unit: String,
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

/// A row in a file: name, value, unit, limit, goal.
type Stored = (String, Option<f64>, String, Option<f64>, Option<f64>);

/// Writes rows to a file: the rows of one table are measured in several guests.
///
/// # Errors
/// When the file cannot be written.
pub fn write(rows: &[Row], file: &Path) -> Result<()> {
    let of = |row: &Row| json!([row.what, row.value, row.unit, row.must, row.aim]);
    let rows: Vec<Value> = rows.iter().map(of).collect();
    std::fs::write(file, json!(rows).to_string()).with_context(|| file.display().to_string())
}

/// Reads the rows of [`write()`].
///
/// # Errors
/// When the file is missing or of something else.
pub fn read(file: &Path) -> Result<Vec<Row>> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let rows: Vec<Stored> = serde_json::from_str(&text).with_context(|| file.display().to_string())?;
    // JSON has no NaN: what could not be measured holds no limit.
    let row = |(what, value, unit, must, aim): Stored| Row {
        what,
        value: value.unwrap_or(f64::NAN),
        unit,
        must,
        aim,
    };
    Ok(rows.into_iter().map(row).collect())
}

/// The table as text.
pub fn render(rows: &[Row]) -> String {
    let mut text = format!("{:<86} {:>9} {:<9} {:>7} {:>7}\n", "what", "measured", "", "must", "aim");
    for row in rows {
        let limit = |limit: Option<f64>| limit.map_or_else(|| "–".to_owned(), |limit| limit.to_string());
        let mark = if row.holds() { "" } else { "  too much" };
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "{:<86} {:>9.2} {:<9} {:>7} {:>7}{mark}",
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
        let row =
            |value, must| Row { what: "cold".into(), value, unit: "x limit".into(), must, aim: Some(1.2) };
        assert!(row(1.5, Some(1.5)).holds() && row(9.0, None).holds() && !row(1.6, Some(1.5)).holds());
        let text = render(&[row(1.6, Some(1.5)), row(1.0, None)]);
        assert_eq!(text.matches("too much").count(), 1, "{text}");
        assert!(text.lines().nth(1).unwrap_or_default().contains("1.60 x limit"), "{text}");
    }

    #[test]
    fn rows_are_the_same_after_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let row = |value| Row { what: "a".into(), value, unit: "MB".into(), must: Some(2.5), aim: None };
        write(&[row(1.5), row(f64::NAN)], file.path()).unwrap();
        let rows = read(file.path()).unwrap();
        assert_eq!(rows[0], row(1.5));
        assert!(rows[1].value.is_nan() && !rows[1].holds());
    }
}
