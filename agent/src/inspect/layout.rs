// SPDX-License-Identifier: Apache-2.0
//! How texts for people look: aligned tables, wrapped lines, and colours on a terminal only.

use std::io::IsTerminal as _;

use anstyle::{AnsiColor, Style};
use ratatui_crossterm::crossterm::terminal;

/// Narrowest last column of a table.
const NARROWEST: usize = 16;

/// Width and colours of the output.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Columns; lines of other output than a terminal are as long as they need.
    pub width: usize,
    pub color: bool,
}

/// What a coloured word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Good,
    Warning,
    Bad,
    Title,
    Dim,
}

impl Layout {
    /// That of standard output. `NO_COLOR` (no-color.org) turns colours off, `COLUMNS` sets the width.
    pub fn of_stdout() -> Self {
        let is_terminal = std::io::stdout().is_terminal();
        let has = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let given = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
        let terminal = || terminal::size().ok().map(|(columns, _)| usize::from(columns)).filter(|n| *n > 0);
        let usual = if is_terminal { terminal().unwrap_or(80) } else { usize::MAX };
        Self {
            width: given.filter(|width| *width > 0).unwrap_or(usual),
            color: is_terminal
                && !has("NO_COLOR")
                && std::env::var_os("TERM").is_none_or(|term| term != "dumb"),
        }
    }

    /// The text in a colour.
    pub fn paint(self, tone: Tone, text: &str) -> String {
        if !self.color || text.is_empty() {
            return text.to_owned();
        }
        let style = match tone {
            Tone::Good => AnsiColor::Green.on_default(),
            Tone::Warning => AnsiColor::Yellow.on_default(),
            Tone::Bad => AnsiColor::Red.on_default(),
            Tone::Title => Style::new().bold(),
            Tone::Dim => Style::new().dimmed(),
        };
        format!("{style}{text}{style:#}")
    }

    /// A heading with an empty line before it.
    pub fn heading(self, text: &str) -> String {
        format!("\n{}\n", self.paint(Tone::Title, text))
    }

    /// Lines that begin with `first`; what does not fit continues below it.
    pub fn wrap(self, first: &str, text: &str) -> String {
        self.hang(first, first.chars().count(), text)
    }

    /// The same; what does not fit continues below, indented by so many columns.
    pub fn hang(self, first: &str, indent: usize, text: &str) -> String {
        let indent = " ".repeat(indent);
        if self.width == usize::MAX {
            return format!("{first}{text}\n");
        }
        let options = textwrap::Options::new(self.width.max(indent.len() + NARROWEST))
            .initial_indent(first)
            .subsequent_indent(&indent)
            .break_words(false)
            .word_splitter(textwrap::WordSplitter::NoHyphenation);
        textwrap::fill(text, options) + "\n"
    }

    /// A table with aligned columns. The last column wraps. `tones`: the colour of the first column of each row.
    pub fn table(self, title: &[&str], rows: &[Vec<String>], tones: &[Option<Tone>]) -> String {
        let width = |column: usize| {
            let cells = rows.iter().filter_map(|row| row.get(column)).map(String::as_str);
            let longest = cells.chain(title.get(column).copied()).map(|cell| cell.chars().count()).max();
            longest.unwrap_or(0)
        };
        let last = title.len().saturating_sub(1);
        let widths: Vec<usize> = (0..last).map(width).collect();
        let line = |cells: &[&str], tone: Option<Tone>| {
            let mut start = "  ".to_owned();
            for (cell, width) in cells.iter().zip(&widths) {
                start.push_str(&format!("{cell:width$}  "));
            }
            let text = self.wrap(&start, cells.last().copied().unwrap_or_default());
            let text = text.trim_end().to_owned();
            let first = cells.first().copied().unwrap_or_default();
            let painted = match tone {
                Some(tone) => text.replacen(first, &self.paint(tone, first), 1),
                None => text,
            };
            painted + "\n"
        };
        let mut text = line(title, None);
        if self.color {
            text = format!("{}\n", self.paint(Tone::Dim, text.trim_end_matches('\n')));
        }
        for (i, row) in rows.iter().enumerate() {
            let cells: Vec<&str> = row.iter().map(String::as_str).collect();
            text.push_str(&line(&cells, tones.get(i).copied().flatten()));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned_and_their_last_column_wraps() {
        let layout = Layout { width: 40, color: false };
        let rows = [
            vec!["a".to_owned(), "10.0.0.1:80".to_owned(), "serves".to_owned()],
            vec!["long-name".to_owned(), "1".to_owned(), "not ready because of something".to_owned()],
        ];
        let text = layout.table(&["NAME", "ADDRESS", "REASON"], &rows, &[]);
        let expected = "  NAME       ADDRESS      REASON\n  a          10.0.0.1:80  serves\n  \
                        long-name  1            not ready\n                          because of\n                          something\n";
        assert_eq!(text, expected);
        let wide = Layout { width: usize::MAX, color: false };
        assert_eq!(wide.table(&["NAME", "ADDRESS", "REASON"], &rows, &[]).lines().count(), 3);
    }

    #[test]
    fn colours_only_surround_words() {
        let layout = Layout { width: 80, color: true };
        let painted = layout.paint(Tone::Bad, "failed");
        assert!(
            painted.starts_with('\u{1b}') && painted.contains("failed") && painted.ends_with("\u{1b}[0m")
        );
        assert_eq!(Layout { color: false, ..layout }.paint(Tone::Bad, "failed"), "failed");
    }
}
