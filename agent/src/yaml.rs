// SPDX-License-Identifier: Apache-2.0
//! YAML of operators: errors are one line, with the place and without the names of functions.

use serde_json::Value;
use serde_saphyr::{DuplicateKeyPolicy, Error};

/// Aliases of a text stand for so many values for each of its bytes, at most: a few lines of aliases of aliases
/// would otherwise take all memory.
const VALUES_OF_ALIASES: usize = 4;

/// What stands twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Twice {
    /// Is an error.
    Refused,
    /// Counts as its last.
    LastWins,
}

/// Reads the one document of a text.
///
/// # Errors
/// Where it is no YAML, and why.
pub fn read(text: &str, twice: Twice) -> Result<Value, String> {
    let policy = match twice {
        Twice::Refused => DuplicateKeyPolicy::Error,
        Twice::LastWins => DuplicateKeyPolicy::LastWins,
    };
    let aliases = serde_saphyr::alias_limits! { max_total_replayed_events: VALUES_OF_ALIASES * text.len() };
    let options = serde_saphyr::options! { duplicate_keys: policy, alias_limits: aliases };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| describe(&error))
}

/// Reads all documents of a text. The text is the operator's own: a large one is no attack, and a small one takes
/// little memory.
///
/// # Errors
/// Where it is no YAML, and why.
pub fn read_all(text: &str) -> Result<Vec<Value>, String> {
    let aliases = serde_saphyr::alias_limits! { max_total_replayed_events: VALUES_OF_ALIASES * text.len() };
    let options = serde_saphyr::options! { budget: None, alias_limits: aliases };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| describe(&error))
}

fn describe(error: &Error) -> String {
    match error.without_snippet() {
        Error::MultipleDocuments { location, .. } => {
            format!("line {}: a second document begins here: one is expected", location.line())
        }
        other => {
            let text = other.to_string();
            text.lines().next().unwrap_or_default().to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_one_line_with_the_place() {
        for (text, expected) in [
            ("a: 1\n---\nb: 2\n", "line 3: a second document begins here: one is expected"),
            ("a: [", "unclosed bracket '[' at line 1, column 4"),
            ("a:\n\tb: 1", "tabs disallowed within this context (block indentation) at line 2, column 2"),
        ] {
            assert_eq!(read(text, Twice::Refused).unwrap_err(), expected);
        }
        let twice = "a: 1\na: 2\n";
        let error = read(twice, Twice::Refused).unwrap_err();
        assert!(error.contains("line 2, column 1") && !error.contains('\n'), "{error}");
        assert_eq!(read(twice, Twice::LastWins).unwrap()["a"], 2);
        assert_eq!(read_all("a: 1\n---\nb: 2\n").unwrap().len(), 2);
        assert!(!read_all("a: [").unwrap_err().contains('\n'));
    }

    #[test]
    fn aliases_of_aliases_take_no_more_than_their_text_allows() {
        let mut text = "a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for (of, name) in ('a'..='h').zip('b'..) {
            let list = vec![format!("*{of}"); 9].join(", ");
            text.push_str(&format!("{name}: &{name} [{list}]\n"));
        }
        for error in [read(&text, Twice::Refused).unwrap_err(), read_all(&text).unwrap_err()] {
            assert!(error.contains("alias") && !error.contains('\n'), "{error}");
        }
        let common = "labels: &labels {app: web}\nspecs:\n- {selector: *labels}\n- {selector: *labels}\n";
        assert_eq!(read(common, Twice::Refused).unwrap()["specs"][1]["selector"]["app"], "web");
    }
}
