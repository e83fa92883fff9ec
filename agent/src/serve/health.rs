// SPDX-License-Identifier: Apache-2.0
//! What the health endpoints answer, with kube-proxy's bodies and codes. Pure: times are arguments.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use serde::Serialize;

use crate::core::model::Family;

/// What is known about one family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct FamilyHealth {
    /// End of the last successful sync.
    updated: Option<SystemTime>,
    /// When the oldest change came in that no successful sync has followed.
    pending: Option<SystemTime>,
}

/// The health of the agent and its node.
#[derive(Clone, Debug)]
pub struct Health {
    families: Vec<(Family, FamilyHealth)>,
    /// A change that is not programmed for so long makes the agent unhealthy.
    limit: Duration,
    /// The Node object exists and the node is not about to go.
    eligible: bool,
}

/// The health that the loop writes and the servers read.
#[derive(Clone, Debug)]
pub struct SharedHealth(Arc<Mutex<Health>>);

impl SharedHealth {
    /// Shares it.
    pub fn new(health: Health) -> Self {
        Self(Arc::new(Mutex::new(health)))
    }

    /// Reads or changes it. Every change is complete before it could panic.
    pub fn with<R>(&self, use_it: impl FnOnce(&mut Health) -> R) -> R {
        use_it(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Which endpoint is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// `/healthz`: may this node get new traffic?
    Healthz,
    /// `/livez`: does the agent work?
    Livez,
}

impl Health {
    /// Nothing was synced yet. `limit` is twice the sync period.
    pub fn new(families: &[Family], limit: Duration) -> Self {
        let families = families.iter().map(|family| (*family, FamilyHealth::default())).collect();
        Self { families, limit, eligible: false }
    }

    /// Which families are programmed here.
    pub fn set_families(&mut self, families: &[Family]) {
        self.families.retain(|(family, _)| families.contains(family));
    }

    /// A change came in.
    pub fn changed(&mut self, now: SystemTime) {
        for (_, health) in &mut self.families {
            health.pending.get_or_insert(now);
        }
    }

    /// A sync that did everything for a family ended.
    pub fn synced(&mut self, family: Family, now: SystemTime) {
        for (_, health) in self.families.iter_mut().filter(|(f, _)| *f == family) {
            *health = FamilyHealth { updated: Some(now), pending: None };
        }
    }

    /// Whether load balancers may send new traffic to this node.
    pub fn set_eligible(&mut self, eligible: bool) {
        self.eligible = eligible;
    }

    /// True once every family was synced: `/readyz`.
    pub fn is_ready(&self) -> bool {
        self.families.iter().all(|(_, health)| health.updated.is_some())
    }

    fn family_healthy(&self, health: &FamilyHealth, now: SystemTime) -> bool {
        let waited = |since| now.duration_since(since).unwrap_or_default();
        health.pending.is_none_or(|since| waited(since) < self.limit)
    }

    /// Whether every change was programmed in time.
    pub fn is_healthy(&self, now: SystemTime) -> bool {
        self.families.iter().all(|(_, health)| self.family_healthy(health, now))
    }

    /// The code and the body of an answer.
    pub fn answer(&self, probe: Probe, now: SystemTime) -> (u16, String) {
        let healthy = self.is_healthy(now);
        let eligible = self.eligible;
        let ok = healthy && (probe == Probe::Livez || eligible);
        let newest = self.families.iter().filter_map(|(_, health)| health.updated).max();
        let status = self.families.iter().map(|(family, health)| {
            let entry =
                FamilyBody { last_updated: time(health.updated), healthy: self.family_healthy(health, now) };
            (family.to_string(), entry)
        });
        let body = Body {
            last_updated: if ok { time(Some(now)) } else { time(newest) },
            current_time: time(Some(now)),
            node_eligible: (probe == Probe::Healthz).then_some(eligible),
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

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn synced() -> Health {
        let mut health = Health::new(&Family::ALL, LIMIT);
        Family::ALL.iter().for_each(|family| health.synced(*family, at(10)));
        health.set_eligible(true);
        health
    }

    #[test]
    fn a_synced_agent_on_a_good_node() {
        let (code, body) = synced().answer(Probe::Healthz, at(100));
        assert_eq!(code, 200);
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["nodeEligible"], true);
        assert_eq!(body["lastUpdated"], "1970-01-01T00:01:40Z");
        assert_eq!(body["status"]["IPv6"], json!({"lastUpdated": "1970-01-01T00:00:10Z", "healthy": true}));
        let (code, body) = synced().answer(Probe::Livez, at(100));
        assert!(code == 200 && !body.contains("nodeEligible"));
    }

    #[test]
    fn a_node_that_goes_gets_no_new_traffic_but_lives() {
        let mut health = synced();
        health.set_eligible(false);
        let (code, body) = health.answer(Probe::Healthz, at(100));
        assert!(code == 503 && body.contains("\"healthy\":true"), "{body}");
        assert_eq!(health.answer(Probe::Livez, at(100)).0, 200);
    }

    #[test]
    fn a_change_that_is_not_programmed_in_time_is_unhealthy_for_its_family() {
        let mut health = synced();
        health.changed(at(100));
        health.changed(at(150));
        assert!(health.is_healthy(at(159)));
        assert!(!health.is_healthy(at(160)), "the oldest change counts");
        health.synced(Family::V6, at(161));
        let (code, body) = health.answer(Probe::Livez, at(162));
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((code, &body["status"]["IPv4"]["healthy"]), (503, &json!(false)));
        assert_eq!(body["status"]["IPv6"]["healthy"], true);
        assert_eq!(body["lastUpdated"], "1970-01-01T00:02:41Z", "the newest success");
        health.synced(Family::V4, at(170));
        assert!(health.is_healthy(at(171)));
    }

    #[test]
    fn ready_means_that_every_family_was_synced() {
        let mut health = Health::new(&Family::ALL, LIMIT);
        health.synced(Family::V4, at(1));
        assert!(!health.is_ready());
        health.synced(Family::V6, at(2));
        assert!(health.is_ready());
    }
}
