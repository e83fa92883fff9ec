// SPDX-License-Identifier: Apache-2.0
//! A unified diff of two short texts.

/// Lines of context around a change.
const CONTEXT: usize = 1;

/// One line of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edit<'a> {
    Keep(&'a str),
    Remove(&'a str),
    Add(&'a str),
}

/// What differs between the recording and the kernel, or nothing.
pub fn unified(name: &str, want: &str, got: &str) -> Option<String> {
    if want == got {
        return None;
    }
    let want: Vec<&str> = want.lines().collect();
    let got: Vec<&str> = got.lines().collect();
    let edits = edits(&want, &got);
    let changed = |index: usize| edits.get(index).is_some_and(|edit| !matches!(edit, Edit::Keep(_)));
    let near = |index: usize| (index.saturating_sub(CONTEXT)..=index + CONTEXT).any(changed);
    let mut out = format!("--- expected/{name}\n+++ actual/{name}\n");
    let (mut old, mut new, mut inside) = (1, 1, false);
    for (index, edit) in edits.iter().enumerate() {
        if near(index) {
            if !inside {
                out.push_str(&format!("@@ -{old} +{new} @@\n"));
            }
            let (sign, line) = match edit {
                Edit::Keep(line) => (' ', line),
                Edit::Remove(line) => ('-', line),
                Edit::Add(line) => ('+', line),
            };
            out.push_str(&format!("{sign}{line}\n"));
        }
        inside = near(index);
        old += usize::from(!matches!(edit, Edit::Add(_)));
        new += usize::from(!matches!(edit, Edit::Remove(_)));
    }
    Some(out)
}

/// A shortest list of edits, by the longest common subsequence; quadratic, which is fine for one node.
fn edits<'a>(want: &[&'a str], got: &[&'a str]) -> Vec<Edit<'a>> {
    let width = got.len() + 1;
    let mut common = vec![0_u32; (want.len() + 1) * width];
    for row in (0..want.len()).rev() {
        for column in (0..got.len()).rev() {
            common[row * width + column] = if want[row] == got[column] {
                common[(row + 1) * width + column + 1] + 1
            } else {
                common[(row + 1) * width + column].max(common[row * width + column + 1])
            };
        }
    }
    let (mut row, mut column, mut out) = (0, 0, Vec::new());
    while row < want.len() || column < got.len() {
        if row < want.len() && column < got.len() && want[row] == got[column] {
            out.push(Edit::Keep(want[row]));
            (row, column) = (row + 1, column + 1);
        } else if column == got.len()
            || (row < want.len() && common[(row + 1) * width + column] >= common[row * width + column + 1])
        {
            out.push(Edit::Remove(want[row]));
            row += 1;
        } else {
            out.push(Edit::Add(got[column]));
            column += 1;
        }
    }
    out
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
        let text = "--- expected/ipvs\n+++ actual/ipvs\n@@ -2 +2 @@\n b\n-c\n+X\n d\n@@ -6 +6 @@\n f\n+g\n";
        assert_eq!(diff, text);
    }

    #[test]
    fn everything_may_be_missing() {
        let diff = unified("addrs", "a\nb\n", "\n").unwrap();
        assert!(diff.contains("-a\n-b\n"), "{diff}");
    }
}
