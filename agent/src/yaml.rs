// SPDX-License-Identifier: Apache-2.0
//! YAML written by operators. Errors are one line, with the line and column and without names of functions.

use serde_json::Value;
pub use serde_saphyr::DuplicateKeyPolicy;
use serde_saphyr::Error;

/// The most values that aliases may expand to, for each byte of the text: a few lines of nested aliases could otherwise
/// use up all memory.
const VALUES_OF_ALIASES: usize = 4;

/// Reads a text of one document; the policy is for a key that is given twice.
///
/// # Errors
/// Where the text is not valid YAML, and why.
pub fn read(text: &str, duplicate_keys: DuplicateKeyPolicy) -> Result<Value, String> {
    let aliases = serde_saphyr::alias_limits! { max_total_replayed_events: VALUES_OF_ALIASES * text.len() };
    let options = serde_saphyr::options! { duplicate_keys: duplicate_keys, alias_limits: aliases };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| describe(&error))
}

/// Reads all documents of a text. Large texts are fine: the operator wrote them.
///
/// # Errors
/// Where the text is not valid YAML, and why.
pub fn read_all(text: &str) -> Result<Vec<Value>, String> {
    let aliases = serde_saphyr::alias_limits! { max_total_replayed_events: VALUES_OF_ALIASES * text.len() };
    let options = serde_saphyr::options! { budget: None, alias_limits: aliases };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| describe(&error))
}

fn describe(error: &Error) -> String {
    match error.without_snippet() {
        Error::MultipleDocuments { location, .. } => {
            format!("line {}: a second document begins here, but only one is allowed", location.line())
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
    fn errors_are_one_line_with_line_and_column() {
        for (text, expected) in [
            ("a: 1\n---\nb: 2\n", "line 3: a second document begins here, but only one is allowed"),
            ("a: [", "unclosed bracket '[' at line 1, column 4"),
            ("a:\n\tb: 1", "tabs disallowed within this context (block indentation) at line 2, column 2"),
        ] {
            assert_eq!(read(text, DuplicateKeyPolicy::Error).unwrap_err(), expected);
        }
        let twice = "a: 1\na: 2\n";
        let error = read(twice, DuplicateKeyPolicy::Error).unwrap_err();
        assert!(error.contains("line 2, column 1") && !error.contains('\n'), "{error}");
        assert_eq!(read(twice, DuplicateKeyPolicy::LastWins).unwrap()["a"], 2);
        assert_eq!(read_all("a: 1\n---\nb: 2\n").unwrap().len(), 2);
        assert!(!read_all("a: [").unwrap_err().contains('\n'));
    }

    #[test]
    fn nested_aliases_are_limited_by_the_length_of_the_text() {
        let mut text = "a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for (of, name) in ('a'..='h').zip('b'..) {
            let list = vec![format!("*{of}"); 9].join(", ");
            text.push_str(&format!("{name}: &{name} [{list}]\n"));
        }
        for error in [read(&text, DuplicateKeyPolicy::Error).unwrap_err(), read_all(&text).unwrap_err()] {
            assert!(error.contains("alias") && !error.contains('\n'), "{error}");
        }
        let common = "labels: &labels {app: web}\nspecs:\n- {selector: *labels}\n- {selector: *labels}\n";
        assert_eq!(read(common, DuplicateKeyPolicy::Error).unwrap()["specs"][1]["selector"]["app"], "web");
    }
}
