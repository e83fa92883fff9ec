// SPDX-License-Identifier: Apache-2.0
//! TCP checks of endpoints.

use prometheus::{IntCounter, IntCounterVec, IntGaugeVec};

use super::register::{catch_up, declare};
use crate::probe::ProbeCounters;

declare! {
    pub struct EndpointCheckMetrics {
        endpoints: IntGaugeVec = "kube_ipvs_checked_endpoints" ["state"]
            => "Endpoints that this node checks, because their Services ask for it; dead: they do not answer.";
        checks: IntCounter = "kube_ipvs_endpoint_checks_total"
            => "TCP checks of endpoints that were started.";
        failures: IntCounterVec = "kube_ipvs_endpoint_check_failures_total" ["cause"]
            => "TCP checks of endpoints that failed: endpoint, or node, which changes nothing.";
    }
}

impl EndpointCheckMetrics {
    /// Takes the numbers since the start.
    pub fn set(&self, counters: ProbeCounters) {
        let gauge = |state, number: usize| {
            self.endpoints.with_label_values(&[state]).set(i64::try_from(number).unwrap_or(i64::MAX));
        };
        gauge("alive", counters.targets.saturating_sub(counters.dead));
        gauge("dead", counters.dead);
        catch_up(&self.checks, counters.connects);
        catch_up(&self.failures.with_label_values(&["endpoint"]), counters.failures);
        catch_up(&self.failures.with_label_values(&["node"]), counters.faults);
    }
}
