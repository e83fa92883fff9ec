// SPDX-License-Identifier: Apache-2.0
//! Log lines about an outage of the API: one when it begins, one at growing intervals, one when it is over, for all
//! kinds of object together.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::core::model::backoff::Backoff;
use crate::lock::lock;
use crate::store::Kind;
use crate::words;

/// The intervals between lines.
const INTERVALS: Backoff = Backoff::new(Duration::from_secs(60), Duration::from_secs(1800));

#[derive(Debug, PartialEq, Eq)]
enum OutageLine {
    Begins,
    StillFails(Duration),
    Over(Duration),
}

#[derive(Debug, Default)]
struct Outage {
    /// The kinds that fail, with the causes.
    failing: BTreeMap<Kind, String>,
    /// When the first of them began to fail, when the next line is due, and the intervals after it.
    began: Option<(Instant, Instant, Backoff)>,
}

impl Outage {
    fn failed(&mut self, kind: Kind, why: &str, now: Instant) -> Option<OutageLine> {
        let is_known = self.failing.values().any(|text| text == why);
        self.failing.insert(kind, why.to_owned());
        let (began, due, intervals) = self.began.get_or_insert_with(|| {
            let mut intervals = INTERVALS;
            (now, now + intervals.next_pause(), intervals)
        });
        if !is_known {
            return Some(OutageLine::Begins);
        }
        if now < *due {
            return None;
        }
        *due = now + intervals.next_pause();
        Some(OutageLine::StillFails(now.duration_since(*began)))
    }

    fn answered(&mut self, kind: Kind, now: Instant) -> Option<OutageLine> {
        self.failing.remove(&kind)?;
        if !self.failing.is_empty() {
            return None;
        }
        self.began.take().map(|(began, ..)| OutageLine::Over(now.duration_since(began)))
    }
}

/// Shared by the reflectors of all kinds.
#[derive(Clone, Debug, Default)]
pub(super) struct OutageLog(Arc<Mutex<Outage>>);

impl OutageLog {
    /// A list or watch of this kind failed.
    pub fn failed(&self, kind: Kind, why: &str) {
        let line = lock(&self.0).failed(kind, why, Instant::now());
        match line {
            Some(OutageLine::Begins) => {
                tracing::warn!(%kind, "cannot follow the API: {why}; retried until it answers")
            }
            Some(OutageLine::StillFails(time)) => {
                tracing::warn!(%kind, "cannot follow the API since {}: {why}", words::time(time));
            }
            _ => tracing::debug!(%kind, "cannot follow the API: {why}"),
        }
    }

    /// A list or watch of this kind works.
    pub fn answered(&self, kind: Kind) {
        let line = lock(&self.0).answered(kind, Instant::now());
        if let Some(OutageLine::Over(time)) = line {
            tracing::info!("the API answers again, after {}", words::time(time));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_of_an_hour_is_few_lines_for_all_kinds_together() {
        let mut outage = Outage::default();
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut lines = Vec::new();
        for second in (0..3600).step_by(20) {
            for kind in Kind::ALL {
                lines.extend(outage.failed(kind, "refused", at(second)));
            }
        }
        assert_eq!(lines[..2], [OutageLine::Begins, OutageLine::StillFails(Duration::from_secs(60))]);
        assert!(lines.len() <= 7, "{lines:?}");
        assert_eq!(
            outage.failed(Kind::Node, "forbidden", at(3600)),
            Some(OutageLine::Begins),
            "another cause is news"
        );
        assert_eq!(outage.answered(Kind::Node, at(3601)), None);
        assert_eq!(outage.answered(Kind::Service, at(3601)), None);
        let over = outage.answered(Kind::EndpointSlice, at(3601));
        assert_eq!(over, Some(OutageLine::Over(Duration::from_secs(3601))));
        assert_eq!(outage.answered(Kind::Node, at(3602)), None, "nothing failed");
    }
}
