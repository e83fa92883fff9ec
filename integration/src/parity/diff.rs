// SPDX-License-Identifier: Apache-2.0
//! A unified diff of two short texts.

use similar::TextDiff;

/// Lines of context around a change.
const CONTEXT: usize = 1;

/// The difference between the recording and the kernel, if any.
pub fn unified(name: &str, want: &str, got: &str) -> Option<String> {
    let diff = TextDiff::from_lines(want, got);
    let (expected, actual) = (format!("expected/{name}"), format!("actual/{name}"));
    (want != got).then(|| diff.unified_diff().context_radius(CONTEXT).header(&expected, &actual).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_have_no_diff() {
        assert_eq!(unified("ipvs", "a\nb\n", "a\nb\n"), None);
    }

    #[test]
    fn a_change_has_one_line_of_context() {
        let diff = unified("ipvs", "a\nb\nc\nd\ne\nf\n", "a\nb\nX\nd\ne\nf\ng\n").unwrap();
        let text =
            "--- expected/ipvs\n+++ actual/ipvs\n@@ -2,3 +2,3 @@\n b\n-c\n+X\n d\n@@ -6 +6,2 @@\n f\n+g\n";
        assert_eq!(diff, text);
    }

    #[test]
    fn everything_may_be_missing() {
        let diff = unified("addrs", "a\nb\n", "\n").unwrap();
        assert!(diff.contains("-a\n-b\n"), "{diff}");
    }
}
