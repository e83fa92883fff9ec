// SPDX-License-Identifier: Apache-2.0
//! Limits the rate of Events. Pure: the time is an argument.

use std::collections::HashMap;
use std::time::Duration;

use super::request::{About, EventRequest};

/// The limits of one agent. Every node sees the same Services, so the API server gets this rate from every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The time before the same request is sent again.
    pub quiet: Duration,
    /// The time between API requests …
    pub interval: Duration,
    /// … except for this number after a pause.
    pub burst: u32,
    /// The length of the queue.
    pub queue: usize,
    /// The number of requests remembered for `quiet`; with more, new ones are dropped.
    pub remembered: usize,
    /// The number of requests about one Service in `quiet`: with more, new ones are dropped, so that others get theirs.
    pub each: usize,
    /// The first pause before a failed API request is retried; doubles.
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
            each: 16,
            retry: Duration::from_secs(2),
        }
    }
}

/// The decision about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Send it.
    New,
    /// It was sent less than `quiet` ago.
    Repeat,
    /// Too many different requests are remembered, of this Service or of all.
    Full,
}

/// The requests that were sent recently. Times are durations since a fixed start.
#[derive(Debug)]
pub struct Recent {
    limits: Limits,
    sent: HashMap<EventRequest, Duration>,
    /// The number of remembered requests about each Service.
    counts: HashMap<About, usize>,
    cleaned: Duration,
}

impl Recent {
    pub fn new(limits: Limits) -> Self {
        Self { limits, sent: HashMap::new(), counts: HashMap::new(), cleaned: Duration::ZERO }
    }

    /// Decides about a request, and remembers it if it is to be sent.
    pub fn admit(&mut self, request: &EventRequest, now: Duration) -> Admission {
        let quiet = self.limits.quiet;
        let is_recent = |sent: Duration| now < sent.saturating_add(quiet);
        // A scan of all is expensive with many: not at every request.
        if now >= self.cleaned.saturating_add(quiet / 10) {
            self.sent.retain(|_, sent| is_recent(*sent));
            self.counts.clear();
            for request in self.sent.keys() {
                *self.counts.entry(request.about.clone()).or_default() += 1;
            }
            self.cleaned = now;
        }
        match self.sent.get(request) {
            Some(sent) if is_recent(*sent) => return Admission::Repeat,
            None if self.sent.len() >= self.limits.remembered => return Admission::Full,
            None => {
                let count = self.counts.entry(request.about.clone()).or_default();
                if *count >= self.limits.each && request.about != About::Node {
                    return Admission::Full;
                }
                *count += 1;
            }
            Some(_) => {}
        }
        self.sent.insert(request.clone(), now);
        Admission::New
    }

    /// Forgets a request that was not sent after all. True: it was remembered.
    pub fn forget(&mut self, request: &EventRequest) -> bool {
        let is_known = self.sent.remove(request).is_some();
        if let Some(count) = self.counts.get_mut(&request.about) {
            *count = count.saturating_sub(usize::from(is_known));
        }
        is_known
    }
}

/// Spaces out API requests: a token bucket. Times are durations since a fixed start.
#[derive(Debug)]
pub struct RequestPacer {
    limits: Limits,
    /// The time of the next request without bursts.
    next: Duration,
}

impl RequestPacer {
    /// Starts with a full burst.
    pub fn new(limits: Limits) -> Self {
        Self { limits, next: Duration::ZERO }
    }

    /// Takes the next turn and returns the time to wait for it.
    pub fn turn(&mut self, now: Duration) -> Duration {
        let turn = self.next.max(now);
        self.next = turn.saturating_add(self.limits.interval);
        let ahead = self.limits.interval.saturating_mul(self.limits.burst.saturating_sub(1));
        turn.saturating_sub(now.saturating_add(ahead))
    }
}

#[cfg(test)]
mod tests {
    use super::super::request::Reason;
    use super::*;
    use crate::core::model::ObjectName;

    const fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn request(message: &str) -> EventRequest {
        EventRequest { about: About::Node, reason: Reason::NodeAddressAsVIP, message: message.to_owned() }
    }

    #[test]
    fn a_repeat_waits_for_the_quiet_time_after_the_first_and_not_after_itself() {
        let mut recent = Recent::new(Limits::default());
        let mut at = |message, now| recent.admit(&request(message), seconds(now));
        assert_eq!(at("a", 7), Admission::New);
        assert_eq!(at("b", 8), Admission::New, "another message is another request");
        for now in [7, 300, 606] {
            assert_eq!(at("a", now), Admission::Repeat, "{now}");
        }
        assert_eq!(at("a", 607), Admission::New);
        assert_eq!(at("a", 608), Admission::Repeat);
    }

    #[test]
    fn the_number_of_remembered_requests_is_limited() {
        let mut recent = Recent::new(Limits { remembered: 2, ..Limits::default() });
        let mut at = |message, now| recent.admit(&request(message), seconds(now));
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
    fn a_service_that_always_has_another_problem_leaves_room_for_others() {
        let mut recent = Recent::new(Limits::default());
        let mut at = |name: &str, message: u32, now| {
            let about = About::Service(ObjectName::new("d", name));
            let message = message.to_string();
            recent.admit(&EventRequest { about, reason: Reason::AnnotationIgnored, message }, seconds(now))
        };
        let admitted =
            (0..1000).filter(|n| at("noisy", *n, 1 + u64::from(*n) / 10) == Admission::New).count();
        assert_eq!(admitted, 16);
        assert_eq!((at("other", 0, 101), at("noisy", 0, 101)), (Admission::New, Admission::Repeat));
        assert_eq!(at("noisy", 2000, 700), Admission::New, "after the quiet time");
    }

    #[test]
    fn a_burst_and_then_one_per_interval() {
        let mut pace = RequestPacer::new(Limits::default());
        for start in [0, 1000] {
            let pauses: Vec<u64> = (0..7).map(|_| pace.turn(seconds(start)).as_secs()).collect();
            assert_eq!(pauses, [0, 0, 0, 0, 0, 1, 2], "after {start} s");
        }
        assert_eq!(pace.turn(seconds(1003)), Duration::ZERO, "one turn for each second that passed");
        assert_eq!(pace.turn(seconds(1003)), seconds(1));
    }
}
