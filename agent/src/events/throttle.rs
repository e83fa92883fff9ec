// SPDX-License-Identifier: Apache-2.0
//! How often Events may go. Pure: the time passed is an argument.

use std::collections::HashMap;
use std::time::Duration;

use super::Notice;

/// How many Events an agent makes. Every node sees the same Services, so these times are per node and
/// the API server gets them as often as there are nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The same notice is sent again only after so long.
    pub quiet: Duration,
    /// Requests go this far apart …
    pub interval: Duration,
    /// … but for the first few after a pause.
    pub burst: u32,
    /// Notices that may wait to be sent.
    pub queue: usize,
    /// Notices that are remembered for `quiet`; beyond, new ones are dropped.
    pub remembered: usize,
    /// Pause before a request that failed is tried again; doubles.
    pub retry: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            quiet: Duration::from_secs(600),
            interval: Duration::from_secs(1),
            burst: 5,
            queue: 256,
            remembered: 4096,
            retry: Duration::from_secs(2),
        }
    }
}

/// What becomes of a notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is to be sent.
    New,
    /// It was sent not long ago.
    Repeat,
    /// There are too many different ones.
    Full,
}

/// The notices that were sent lately. Times are durations since some fixed start.
#[derive(Debug)]
pub struct Recent {
    limits: Limits,
    sent: HashMap<Notice, Duration>,
    cleaned: Duration,
}

impl Recent {
    /// Remembers nothing yet.
    pub fn new(limits: Limits) -> Self {
        Self { limits, sent: HashMap::new(), cleaned: Duration::ZERO }
    }

    /// Whether a notice is to be sent, which it counts as if so.
    pub fn admit(&mut self, notice: &Notice, now: Duration) -> Admission {
        let quiet = self.limits.quiet;
        let is_recent = |sent: Duration| now < sent.saturating_add(quiet);
        // A look at all of them is dear when there are many: not at every notice.
        if now >= self.cleaned.saturating_add(quiet / 10) {
            self.sent.retain(|_, sent| is_recent(*sent));
            self.cleaned = now;
        }
        match self.sent.get(notice) {
            Some(sent) if is_recent(*sent) => return Admission::Repeat,
            None if self.sent.len() >= self.limits.remembered => return Admission::Full,
            _ => {}
        }
        self.sent.insert(notice.clone(), now);
        Admission::New
    }
}

/// Keeps requests apart. Times are durations since some fixed start.
#[derive(Debug)]
pub struct Pace {
    limits: Limits,
    /// When the next request would go if there were no bursts.
    next: Duration,
}

impl Pace {
    /// Starts with a whole burst.
    pub fn new(limits: Limits) -> Self {
        Self { limits, next: Duration::ZERO }
    }

    /// Takes the next turn and says how long to wait for it.
    pub fn turn(&mut self, now: Duration) -> Duration {
        let turn = self.next.max(now);
        self.next = turn.saturating_add(self.limits.interval);
        let ahead = self.limits.interval.saturating_mul(self.limits.burst.saturating_sub(1));
        turn.saturating_sub(now.saturating_add(ahead))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{About, Reason};
    use super::*;

    const fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn notice(message: &str) -> Notice {
        Notice { about: About::Node, reason: Reason::NodeAddressAsVIP, message: message.to_owned() }
    }

    #[test]
    fn a_repeat_waits_for_the_quiet_time_after_the_first_and_not_after_itself() {
        let mut recent = Recent::new(Limits::default());
        let mut at = |message, now| recent.admit(&notice(message), seconds(now));
        assert_eq!(at("a", 7), Admission::New);
        assert_eq!(at("b", 8), Admission::New, "another message is another notice");
        for now in [7, 300, 606] {
            assert_eq!(at("a", now), Admission::Repeat, "{now}");
        }
        assert_eq!(at("a", 607), Admission::New);
        assert_eq!(at("a", 608), Admission::Repeat);
    }

    #[test]
    fn what_is_remembered_has_an_end() {
        let mut recent = Recent::new(Limits { remembered: 2, ..Limits::default() });
        let mut at = |message, now| recent.admit(&notice(message), seconds(now));
        assert_eq!(
            [at("a", 0), at("b", 300), at("c", 301)],
            [Admission::New, Admission::New, Admission::Full]
        );
        assert_eq!(at("a", 302), Admission::Repeat);
        assert_eq!(at("c", 660), Admission::New, "a is forgotten");
        assert_eq!(at("d", 661), Admission::Full);
        assert_eq!(recent.sent.len(), 2);
    }

    #[test]
    fn a_burst_and_then_one_per_interval() {
        let mut pace = Pace::new(Limits::default());
        for start in [0, 1000] {
            let pauses: Vec<u64> = (0..7).map(|_| pace.turn(seconds(start)).as_secs()).collect();
            assert_eq!(pauses, [0, 0, 0, 0, 0, 1, 2], "after {start} s");
        }
        assert_eq!(pace.turn(seconds(1003)), Duration::ZERO, "one turn for each second that passed");
        assert_eq!(pace.turn(seconds(1003)), seconds(1));
    }
}
