// SPDX-License-Identifier: Apache-2.0
//! The last lines of the log in memory, for `kube-ipvs bundle`.

use std::collections::VecDeque;
use std::sync::Mutex;

use jiff::Timestamp;
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::format::render_text;
use crate::lock::lock;

/// Bytes of all lines.
const SIZE: usize = 256 * 1024;
/// Bytes of one line.
const LONGEST: usize = 2048;

static LINES: Mutex<Lines> = Mutex::new(Lines { lines: VecDeque::new(), size: 0 });

#[derive(Debug)]
struct Lines {
    lines: VecDeque<String>,
    size: usize,
}

impl Lines {
    fn add(&mut self, mut line: String) {
        if line.len() > LONGEST {
            line.truncate(line.floor_char_boundary(LONGEST));
        }
        self.size += line.len();
        self.lines.push_back(line);
        while self.size > SIZE {
            self.size -= self.lines.pop_front().map_or(0, |line| line.len());
        }
    }
}

/// The last lines, at most 256 KiB, the oldest first.
pub fn recent() -> Vec<String> {
    lock(&LINES).lines.iter().cloned().collect()
}

/// Keeps lines.
pub(super) struct Ring;

impl<S: Subscriber> Layer<S> for Ring {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let line = format!("{:.6} {:>5} {}", Timestamp::now(), event.metadata().level(), render_text(event));
        lock(&LINES).add(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_lines_are_kept() {
        let mut lines = Lines { lines: VecDeque::new(), size: 0 };
        for n in 0..10_000 {
            lines.add(format!("{n:0>100}"));
        }
        assert!(lines.size <= SIZE && lines.lines.len() == SIZE / 100, "{}", lines.lines.len());
        assert!(lines.lines.back().is_some_and(|line| line.ends_with("9999")));
        lines.add("ä".repeat(LONGEST));
        assert_eq!(lines.lines.back().map(String::len), Some(LONGEST));
    }
}
