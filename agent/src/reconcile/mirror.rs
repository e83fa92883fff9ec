// SPDX-License-Identifier: Apache-2.0
//! The state of the mirror, from unread to synced.

use std::time::Duration;

use crate::core::mirror::Observed;
use crate::core::mirror::comparison::Audit;

/// A reading older than this is repeated before the first whole sync.
pub(super) const FRESH: Duration = Duration::from_secs(10);

/// The observed state of the kernel.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one for each agent")]
pub(super) enum Mirror {
    /// Unknown: the kernel has not been read, the reading failed, or another program has changed it since. `tried`: the
    /// time of the last try.
    Unread { tried: Option<Duration> },
    /// The kernel as read at the time `at`; no whole sync has run.
    Read { observed: Observed, at: Duration },
    /// A whole sync has run: the mirror changes by acknowledged ops. `audit`: an audit in progress.
    Synced { observed: Observed, audit: Option<Audit> },
}

impl Default for Mirror {
    fn default() -> Self {
        Self::Unread { tried: None }
    }
}

impl Mirror {
    pub fn observed(&self) -> Option<&Observed> {
        match self {
            Mirror::Unread { .. } => None,
            Mirror::Read { observed, .. } | Mirror::Synced { observed, .. } => Some(observed),
        }
    }

    pub fn observed_mut(&mut self) -> Option<&mut Observed> {
        match self {
            Mirror::Unread { .. } => None,
            Mirror::Read { observed, .. } | Mirror::Synced { observed, .. } => Some(observed),
        }
    }

    /// Lends the observed state to a sync, which returns it with [`Self::put_back`].
    pub fn lend(&mut self) -> Option<Observed> {
        self.observed_mut().map(std::mem::take)
    }

    /// Takes back the observed state that [`Self::lend`] gave out.
    pub fn put_back(&mut self, lent: Observed) {
        if let Some(observed) = self.observed_mut() {
            *observed = lent;
        }
    }

    /// Whether a whole sync has run.
    pub fn is_synced(&self) -> bool {
        matches!(self, Mirror::Synced { .. })
    }

    /// A whole sync starts.
    pub fn begin_sync(&mut self) {
        if let Mirror::Read { observed, .. } = self {
            *self = Mirror::Synced { observed: std::mem::take(observed), audit: None };
        }
    }

    /// The kernel was read in full at the time `at`.
    pub fn fill(&mut self, observed: Observed, at: Duration) {
        *self = Mirror::Read { observed, at };
    }

    /// A reading failed: before the first whole sync the mirror is unread then.
    pub fn failed(&mut self, now: Duration) {
        if !self.is_synced() {
            *self = Mirror::Unread { tried: Some(now) };
        }
    }

    /// Another program changed the kernel: before the first whole sync the mirror is unread then. A synced mirror is
    /// audited instead.
    pub fn outdated(&mut self) {
        if let Mirror::Read { at, .. } = self {
            *self = Mirror::Unread { tried: Some(*at) };
        }
    }

    /// Whether the first whole sync can use the mirror.
    pub fn is_fresh(&self, now: Duration) -> bool {
        matches!(self, Mirror::Read { at, .. } if now.saturating_sub(*at) <= FRESH)
    }

    /// Whether the kernel should be read although no list is complete.
    pub fn wants_reading(&self, now: Duration) -> bool {
        matches!(self, Mirror::Unread { tried }
            if tried.is_none_or(|tried| now.saturating_sub(tried) > FRESH))
    }

    /// Whether an audit is in progress.
    pub fn is_auditing(&self) -> bool {
        matches!(self, Mirror::Synced { audit: Some(_), .. })
    }

    /// Takes the audit in progress.
    pub fn take_audit(&mut self) -> Option<Audit> {
        let Mirror::Synced { audit, .. } = self else { return None };
        audit.take()
    }

    /// Keeps an audit for its next step.
    pub fn set_audit(&mut self, next: Audit) {
        if let Mirror::Synced { audit, .. } = self {
            *audit = Some(next);
        }
    }
}
