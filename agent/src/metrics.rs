// SPDX-License-Identifier: Apache-2.0
//! What the agent tells Prometheus. One value is made at start and handed to whoever counts; labels
//! come from closed sets, but for the Services in conflicts, of which only so many are shown.

use prometheus::{IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};

use crate::core::desired::Desired;

/// Conflicts shown one by one; the gauge without labels counts all.
const CONFLICTS_SHOWN: usize = 100;

/// All metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    contested: IntGauge,
    conflicts: IntGaugeVec,
    drains: IntGauge,
}

impl Metrics {
    /// Metrics that nobody has counted in yet.
    ///
    /// # Errors
    /// When two of them have one name.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let contested = IntGauge::new(
            "kube_ipvs_contested_virtual_servers",
            "Virtual servers that more than one Service claims; the oldest Service has each.",
        )?;
        let conflicts = IntGaugeVec::new(
            Opts::new(
                "kube_ipvs_address_conflict",
                "1 for a Service that is not served at an address and port because an older one is.",
            ),
            &["namespace", "service", "virtual_server", "winner"],
        )?;
        let drains = IntGauge::new(
            "kube_ipvs_draining_real_servers",
            "Real servers that take no new connections and wait for the old ones to end.",
        )?;
        registry.register(Box::new(contested.clone()))?;
        registry.register(Box::new(conflicts.clone()))?;
        registry.register(Box::new(drains.clone()))?;
        Ok(Self { registry, contested, conflicts, drains })
    }

    /// Shows the conflicts as they are now.
    pub fn set_conflicts(&self, desired: &Desired) {
        self.contested.set(desired.contested().len() as i64);
        self.conflicts.reset();
        let losers = desired.contested().iter().flat_map(|key| {
            let winner = desired.virtual_server(key).map(|vs| vs.service.to_string()).unwrap_or_default();
            desired.losers(key).map(move |loser| (key, winner.clone(), loser))
        });
        for (key, winner, loser) in losers.take(CONFLICTS_SHOWN) {
            let name = &loser.service;
            let labels = [&*name.namespace, &*name.name, &*key.to_string(), &*winner];
            self.conflicts.with_label_values(&labels).set(1);
        }
    }

    /// Shows how many real servers drain.
    pub fn set_drains(&self, count: usize) {
        self.drains.set(count as i64);
    }

    /// The text that Prometheus reads.
    ///
    /// # Errors
    /// When a metric cannot be written as text.
    pub fn render(&self) -> prometheus::Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::desired::Changes;
    use crate::core::fragment::build_fragment;
    use crate::core::model::{ObjectName, Service, ServicePort};
    use crate::core::node::NodeFacts;
    use crate::core::settings::Settings;

    #[test]
    fn the_loser_of_a_conflict_is_named_until_it_is_none() {
        let metrics = Metrics::new().unwrap();
        let mut desired = Desired::default();
        for (name, created, vip) in [("old", 1, "10.96.0.1"), ("young", 2, "10.96.0.2")] {
            let service = Service {
                name: ObjectName::new("d", name),
                created,
                cluster_ips: [Some(vip.parse().unwrap()), None],
                external_ips: vec!["198.51.100.1".parse().unwrap()],
                ports: vec![ServicePort {
                    name: "p".into(),
                    protocol: crate::core::model::Protocol::Tcp,
                    port: 80,
                    node_port: 0,
                }],
                ..Service::default()
            };
            let fragment = build_fragment(&service, [], &NodeFacts::default(), &Settings::default());
            desired.update(&service.name, Some(fragment), &mut Changes::default());
        }
        metrics.set_conflicts(&desired);
        let line = "kube_ipvs_address_conflict{namespace=\"d\",service=\"young\",\
                    virtual_server=\"TCP 198.51.100.1:80\",winner=\"d/old\"} 1";
        let text = metrics.render().unwrap();
        assert!(text.contains(line) && text.contains("kube_ipvs_contested_virtual_servers 1"), "{text}");
        desired.update(&ObjectName::new("d", "old"), None, &mut Changes::default());
        metrics.set_conflicts(&desired);
        let text = metrics.render().unwrap();
        assert!(!text.contains("young") && text.contains("kube_ipvs_contested_virtual_servers 0"), "{text}");
    }
}
