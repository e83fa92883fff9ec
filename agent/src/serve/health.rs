// SPDX-License-Identifier: Apache-2.0
//! The answers of the health endpoints, with kube-proxy's bodies. Pure: times are arguments.
//!
//! | endpoint | 200 means |
//! |---|---|
//! | `/livez` | the sync loop iterates and takes changes; a restart fixes nothing else |
//! | `/healthz` | in every family the oldest unprogrammed change is younger than twice the sync period, and the node may get new traffic |
//! | `/readyz` | the first sync has ended, and the device, ipsets and rules of every family are in place |
//!
//! An object that the kernel rejects is no failed sync: `/readyz?verbose` lists it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use serde::Serialize;

use crate::core::model::Family;
use crate::lock::lock;
use crate::store::Store;

/// The health of one family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct FamilyHealth {
    /// End of the last successful sync.
    updated: Option<SystemTime>,
    /// The time of the oldest change since the last successful sync.
    pending: Option<SystemTime>,
}

/// The minimum time without an iteration after which the loop counts as blocked.
const SHORTEST_SILENCE: Duration = Duration::from_secs(30);

/// The health of the agent and its node.
#[derive(Clone, Debug, Default)]
pub struct Health {
    families: Vec<(Family, FamilyHealth)>,
    /// The age of an unprogrammed change that makes its family unhealthy.
    limit: Duration,
    /// Whether load balancers may send new traffic to this node: its Node object exists and is not being removed.
    pub eligible: bool,
    /// The first sync has ended.
    tried: bool,
    /// Families whose device, ipsets and rules are in place.
    guarded: Vec<Family>,
    /// Why the agent cannot use the kernel.
    pub kernel_problem: Option<String>,
    /// Lines about the first few unprogrammed objects, and the number of all.
    pub unprogrammed: (Vec<String>, usize),
}

/// The delay of the sync loop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoopLag {
    /// The age of the oldest change that the loop has not taken. Zero before the first sync: the loop may have to wait,
    /// for example for the Node's pod CIDRs.
    pub waiting: Duration,
    /// The time since the last iteration.
    pub silent: Duration,
}

/// The health, written by the sync loop and read by the servers.
#[derive(Clone, Debug)]
pub struct SharedHealth(Arc<HealthState>);

#[derive(Debug)]
struct HealthState {
    health: Mutex<Health>,
    start: Instant,
    /// The last iteration of the loop, in milliseconds after the start.
    beat: AtomicU64,
    store: OnceLock<Arc<Store>>,
}

impl SharedHealth {
    pub fn new(health: Health) -> Self {
        Self(Arc::new(HealthState {
            health: Mutex::new(health),
            start: Instant::now(),
            beat: AtomicU64::new(0),
            store: OnceLock::new(),
        }))
    }

    /// From now on the changes in the store count.
    pub fn watch(&self, store: Arc<Store>) {
        // There is one in a process.
        let _ = self.0.store.set(store);
    }

    /// Reads or changes the health.
    pub fn with<R>(&self, use_it: impl FnOnce(&mut Health) -> R) -> R {
        use_it(&mut lock(&self.0.health))
    }

    /// The loop iterates, or makes progress with a long step.
    pub fn beat(&self) {
        let elapsed = u64::try_from(self.0.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.beat.store(elapsed, Ordering::Relaxed);
    }

    /// The current delay of the loop.
    pub fn lag(&self) -> LoopLag {
        let beat = Duration::from_millis(self.0.beat.load(Ordering::Relaxed));
        let store = self.0.store.get().filter(|_| self.with(|health| health.tried));
        let waiting = store.and_then(|store| store.waiting_for_loop());
        LoopLag { waiting: waiting.unwrap_or_default(), silent: self.0.start.elapsed().saturating_sub(beat) }
    }

    /// The status and the body of an answer.
    pub fn answer(&self, probe: Probe) -> (u16, String) {
        let lag = self.lag();
        self.with(|health| health.answer(probe, SystemTime::now(), lag))
    }
}

/// A health endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// `/healthz`: may this node get new traffic?
    Healthz,
    /// `/livez`: does the sync loop work?
    Livez,
}

impl Health {
    /// The health before the first sync. `limit` is twice the sync period.
    pub fn new(families: &[Family], limit: Duration) -> Self {
        let families = families.iter().map(|family| (*family, FamilyHealth::default())).collect();
        Self { families, limit, ..Self::default() }
    }

    /// A sync has tried everything. `families`: those that this node can have; `guarded`: those of them whose device,
    /// ipsets and rules are in place. A new family that is not guarded has a pending change from now on.
    pub fn tried(&mut self, families: &[Family], guarded: &[Family], now: SystemTime) {
        self.tried = true;
        self.families.retain(|(family, _)| families.contains(family));
        for family in families {
            if !self.families.iter().any(|(known, _)| known == family) {
                let pending = (!guarded.contains(family)).then_some(now);
                self.families.push((*family, FamilyHealth { updated: None, pending }));
            }
        }
        self.guarded = guarded.to_vec();
    }

    /// A change was received.
    pub fn changed(&mut self, now: SystemTime) {
        for (_, health) in &mut self.families {
            health.pending.get_or_insert(now);
        }
    }

    /// A sync of a family succeeded.
    pub fn synced(&mut self, family: Family, now: SystemTime) {
        for (_, health) in self.families.iter_mut().filter(|(f, _)| *f == family) {
            *health = FamilyHealth { updated: Some(now), pending: None };
        }
    }

    /// Whether `/readyz` answers 200.
    pub fn is_ready(&self) -> bool {
        self.tried && self.families.iter().all(|(family, _)| self.guarded.contains(family))
    }

    /// The checks of `/readyz`, one per line, and the unprogrammed objects.
    pub fn readiness(&self) -> String {
        let check = |ok: bool, name: &str, why: &str| {
            if ok { format!("[+]{name} ok\n") } else { format!("[-]{name} failed: {why}\n") }
        };
        let mut text = check(self.tried, "first-sync", "the first sync has not ended yet");
        let why = if self.tried { "its device, sets or rules are not in place" } else { "not yet" };
        for (family, _) in &self.families {
            text.push_str(&check(self.guarded.contains(family), &format!("guard-{family}"), why));
        }
        let (lines, count) = &self.unprogrammed;
        if *count > 0 {
            text.push_str(&format!("{count} objects are not programmed; each is retried by itself:\n"));
            lines.iter().for_each(|line| text.push_str(&format!("  {line}\n")));
            if *count > lines.len() {
                text.push_str(&format!("  and {} more\n", count - lines.len()));
            }
        }
        text
    }

    fn is_stuck(&self, lag: LoopLag) -> bool {
        lag.waiting >= self.limit || lag.silent >= self.limit.max(SHORTEST_SILENCE)
    }

    /// Whether the oldest unprogrammed change of the family is young enough.
    pub fn is_family_healthy(&self, family: Family, now: SystemTime, lag: LoopLag) -> bool {
        let waited = |since| now.duration_since(since).unwrap_or_default();
        let mut of_family = self.families.iter().filter(|(f, _)| *f == family);
        of_family.all(|(_, health)| {
            !self.is_stuck(lag) && health.pending.is_none_or(|since| waited(since) < self.limit)
        })
    }

    /// The status and the body of an answer.
    pub fn answer(&self, probe: Probe, now: SystemTime, lag: LoopLag) -> (u16, String) {
        let healthy = match probe {
            Probe::Livez => !self.is_stuck(lag),
            Probe::Healthz => self.families.iter().all(|(f, _)| self.is_family_healthy(*f, now, lag)),
        };
        let ok = healthy && (probe == Probe::Livez || self.eligible);
        let newest = self.families.iter().filter_map(|(_, health)| health.updated).max();
        let status = self.families.iter().map(|(family, health)| {
            let healthy = self.is_family_healthy(*family, now, lag);
            (family.to_string(), FamilyBody { last_updated: time(health.updated), healthy })
        });
        let body = Body {
            last_updated: if ok { time(Some(now)) } else { time(newest) },
            current_time: time(Some(now)),
            node_eligible: (probe == Probe::Healthz).then_some(self.eligible),
            healthy,
            status: status.collect(),
        };
        (if ok { 200 } else { 503 }, serde_json::to_string(&body).unwrap_or_default())
    }
}

/// kube-proxy's body, with its order of fields.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    status: BTreeMap<String, FamilyBody>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyBody {
    last_updated: String,
    healthy: bool,
}

/// RFC 3339, or Go's zero time.
fn time(at: Option<SystemTime>) -> String {
    let text = at.and_then(|at| Timestamp::try_from(at).ok()).map(|t| t.to_string());
    text.unwrap_or_else(|| "0001-01-01T00:00:00Z".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const LIMIT: Duration = Duration::from_secs(60);
    const BUSY: LoopLag = LoopLag { waiting: Duration::ZERO, silent: Duration::ZERO };

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn synced() -> Health {
        let mut health = Health::new(&Family::ALL, LIMIT);
        health.tried(&Family::ALL, &Family::ALL, SystemTime::now());
        Family::ALL.iter().for_each(|family| health.synced(*family, at(10)));
        health.eligible = true;
        health
    }

    fn code(health: &Health, probe: Probe, now: u64, lag: LoopLag) -> u16 {
        health.answer(probe, at(now), lag).0
    }

    #[test]
    fn a_synced_agent_on_a_good_node() {
        let (code, body) = synced().answer(Probe::Healthz, at(100), BUSY);
        assert_eq!(code, 200);
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["nodeEligible"], true);
        assert_eq!(body["lastUpdated"], "1970-01-01T00:01:40Z");
        assert_eq!(body["status"]["IPv6"], json!({"lastUpdated": "1970-01-01T00:00:10Z", "healthy": true}));
        let (code, body) = synced().answer(Probe::Livez, at(100), BUSY);
        assert!(code == 200 && !body.contains("nodeEligible"));
    }

    #[test]
    fn a_node_that_is_being_removed_is_unhealthy_but_alive() {
        let mut health = synced();
        health.eligible = false;
        let (unhealthy, body) = health.answer(Probe::Healthz, at(100), BUSY);
        assert!(unhealthy == 503 && body.contains("\"healthy\":true"), "{body}");
        assert_eq!(code(&health, Probe::Livez, 100, BUSY), 200);
    }

    #[test]
    fn a_family_that_does_not_sync_is_unhealthy_but_alive() {
        let mut health = synced();
        health.changed(at(100));
        health.changed(at(150));
        assert_eq!(code(&health, Probe::Healthz, 159, BUSY), 200);
        assert_eq!(code(&health, Probe::Healthz, 160, BUSY), 503, "the oldest change counts");
        assert_eq!(code(&health, Probe::Livez, 160, BUSY), 200, "a restart would not help");
        health.synced(Family::V6, at(161));
        let (_, body) = health.answer(Probe::Healthz, at(162), BUSY);
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["status"]["IPv4"]["healthy"], false);
        assert_eq!(body["status"]["IPv6"]["healthy"], true);
        assert_eq!(body["lastUpdated"], "1970-01-01T00:02:41Z", "the newest success");
        assert!(health.is_family_healthy(Family::V6, at(162), BUSY), "each family by itself");
        assert!(!health.is_family_healthy(Family::V4, at(162), BUSY));
        health.synced(Family::V4, at(170));
        assert_eq!(code(&health, Probe::Healthz, 171, BUSY), 200);
    }

    #[test]
    fn a_loop_that_takes_no_changes_or_is_blocked_is_not_alive() {
        let s = Duration::from_secs;
        for (waiting, silent, expected) in
            [(s(59), s(0), 200), (s(60), s(0), 503), (s(0), s(59), 200), (s(0), s(60), 503)]
        {
            let lag = LoopLag { waiting, silent };
            assert_eq!(code(&synced(), Probe::Livez, 100, lag), expected, "{lag:?}");
            assert_eq!(code(&synced(), Probe::Healthz, 100, lag), expected, "{lag:?}");
        }
        let hasty = Health::new(&Family::ALL, s(2));
        assert_eq!(code(&hasty, Probe::Livez, 100, LoopLag { waiting: s(0), silent: s(29) }), 200);
    }

    #[test]
    fn ready_means_that_the_first_sync_ended_and_every_family_is_guarded() {
        let mut health = Health::new(&Family::ALL, LIMIT);
        assert!(!health.is_ready() && health.readiness().contains("[-]first-sync failed"));
        health.tried(&Family::ALL, &[Family::V4], SystemTime::now());
        assert!(!health.is_ready());
        let text = health.readiness();
        assert!(
            text.contains("[+]guard-IPv4 ok") && text.contains("[-]guard-IPv6 failed: its device"),
            "{text}"
        );
        // From then on it waits, whether a change of it comes or not.
        let later = SystemTime::now() + LIMIT * 2;
        let mut joins = Health::new(&[Family::V4], LIMIT);
        joins.tried(&Family::ALL, &[Family::V4], SystemTime::now());
        assert!(joins.is_family_healthy(Family::V4, later, LoopLag::default()));
        assert!(!joins.is_family_healthy(Family::V6, later, LoopLag::default()));
        // A node without ip6tables cannot have the family.
        health.tried(&[Family::V4], &[Family::V4], SystemTime::now());
        assert!(health.is_ready());
        health.tried(&Family::ALL, &Family::ALL, SystemTime::now());
        health.unprogrammed = (vec!["real server X: refused".to_owned()], 3);
        assert!(health.is_ready(), "a refused object is no failed guard");
        let text = health.readiness();
        assert!(text.contains("3 objects are not programmed") && text.contains("and 2 more"), "{text}");
    }
}
