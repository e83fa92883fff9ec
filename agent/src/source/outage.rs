// SPDX-License-Identifier: Apache-2.0
//! What the log says while the API cannot be followed: one line when it begins, one at growing intervals,
//! one when it is over, for all kinds of object together.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::store::Kind;
use crate::words;

/// The first interval between lines; doubles up to [`LAST`].
const FIRST: Duration = Duration::from_secs(60);
const LAST: Duration = Duration::from_secs(1800);

/// A line to write.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Begins,
    StillFails(Duration),
    Over(Duration),
}

#[derive(Debug, Default)]
struct Inner {
    /// Which kinds fail, and why.
    failing: BTreeMap<Kind, String>,
    /// When the first of them began to fail, and when the next line is due after which interval.
    began: Option<(Instant, Instant, Duration)>,
}

impl Inner {
    fn fails(&mut self, kind: Kind, why: &str, now: Instant) -> Option<Line> {
        let told = self.failing.values().any(|text| text == why);
        self.failing.insert(kind, why.to_owned());
        let (began, due, interval) = self.began.get_or_insert((now, now + FIRST, FIRST));
        if !told {
            return Some(Line::Begins);
        }
        if now < *due {
            return None;
        }
        *interval = (*interval * 2).min(LAST);
        *due = now + *interval;
        Some(Line::StillFails(now.duration_since(*began)))
    }

    fn answers(&mut self, kind: Kind, now: Instant) -> Option<Line> {
        self.failing.remove(&kind)?;
        if !self.failing.is_empty() {
            return None;
        }
        self.began.take().map(|(began, _, _)| Line::Over(now.duration_since(began)))
    }
}

/// Shared by the followers of all kinds.
#[derive(Clone, Debug, Default)]
pub(super) struct Outage(Arc<Mutex<Inner>>);

impl Outage {
    /// A list or watch of this kind failed.
    pub fn fails(&self, kind: Kind, why: &str) {
        let line = self.inner(|inner| inner.fails(kind, why, Instant::now()));
        match line {
            Some(Line::Begins) => {
                tracing::warn!(%kind, "cannot follow the API: {why}; retried until it answers")
            }
            Some(Line::StillFails(time)) => {
                tracing::warn!(%kind, "cannot follow the API since {}: {why}", words::time(time));
            }
            _ => tracing::debug!(%kind, "cannot follow the API: {why}"),
        }
    }

    /// A list or watch of this kind goes well.
    pub fn answers(&self, kind: Kind) {
        if let Some(Line::Over(time)) = self.inner(|inner| inner.answers(kind, Instant::now())) {
            tracing::info!("the API answers again, after {}", words::time(time));
        }
    }

    fn inner<R>(&self, f: impl FnOnce(&mut Inner) -> R) -> R {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_of_an_hour_is_few_lines_for_all_kinds_together() {
        let mut inner = Inner::default();
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut lines = Vec::new();
        for second in (0..3600).step_by(20) {
            for kind in Kind::ALL {
                lines.extend(inner.fails(kind, "refused", at(second)));
            }
        }
        assert_eq!(lines[..2], [Line::Begins, Line::StillFails(Duration::from_secs(60))]);
        assert!(lines.len() <= 7, "{lines:?}");
        assert_eq!(
            inner.fails(Kind::Node, "forbidden", at(3600)),
            Some(Line::Begins),
            "another cause is news"
        );
        assert_eq!(inner.answers(Kind::Node, at(3601)), None);
        assert_eq!(inner.answers(Kind::Service, at(3601)), None);
        let over = inner.answers(Kind::EndpointSlice, at(3601));
        assert_eq!(over, Some(Line::Over(Duration::from_secs(3601))));
        assert_eq!(inner.answers(Kind::Node, at(3602)), None, "nothing failed");
    }
}
