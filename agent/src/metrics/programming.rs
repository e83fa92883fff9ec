// SPDX-License-Identifier: Apache-2.0
//! The time from the cause of a change of endpoints to the kernel.

use crate::core::plan::outcome::{Outcome, Report};
use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;
use std::time::SystemTime;

use prometheus::HistogramVec;

use super::register::label;
use crate::core::model::trigger::{MAX_TRIGGERS, Trigger};
use crate::core::model::{Family, ObjectName};
use crate::core::plan::op::{Op, Plan};
use crate::core::service::desired::Desired;
use crate::lock::lock;

/// Causes of changes that are not in the kernel yet.
#[derive(Debug)]
pub struct Programming {
    duration: HistogramVec,
    waiting: Mutex<HashMap<ObjectName, Vec<Trigger>>>,
}

impl Programming {
    pub(super) fn new(duration: HistogramVec) -> Self {
        Self { duration, waiting: Mutex::default() }
    }

    /// The Service is about to be programmed because of these triggers.
    pub fn add(&self, service: &ObjectName, triggers: Vec<Trigger>) {
        if triggers.is_empty() {
            return;
        }
        let mut all = lock(&self.waiting);
        let waiting = all.entry(service.clone()).or_default();
        waiting.extend(triggers);
        waiting.truncate(MAX_TRIGGERS);
    }

    /// A plan was executed: measures the triggers that are in the kernel now. Triggers of failed ops keep waiting.
    pub(super) fn applied(&self, plan: &Plan, report: &Report, desired: &Desired, now: SystemTime) {
        let mut waiting = lock(&self.waiting);
        if waiting.is_empty() {
            return;
        }
        let failed = Failed::of(plan, report, desired);
        waiting.retain(|service, triggers| {
            triggers.retain(|trigger| {
                let waits = failed.affects(service, trigger.family);
                if !waits {
                    // The clock of the other machine may be ahead of ours.
                    let took = now.duration_since(trigger.at).unwrap_or_default();
                    self.duration.with_label_values(&[label(trigger.family)]).observe(took.as_secs_f64());
                }
                waits
            });
            !triggers.is_empty()
        });
    }
}

/// What a plan failed to program.
#[derive(Default)]
struct Failed<'a> {
    /// Families that miss something that all their Services need.
    families: BTreeSet<Family>,
    services: BTreeSet<(&'a ObjectName, Family)>,
}

impl<'a> Failed<'a> {
    fn of(plan: &Plan, report: &Report, desired: &'a Desired) -> Self {
        let mut failed = Self::default();
        let ops = plan.ops.iter().zip(&report.outcomes).filter(|(_, outcome)| **outcome != Outcome::Done);
        for (op, _) in ops {
            match op {
                Op::CreateDevice => failed.families.extend(Family::ALL),
                Op::CreateSet(set) => _ = failed.families.insert(set.family),
                Op::WriteRules(rules) if !rules.tidy => _ = failed.families.insert(rules.family),
                Op::AddVirtualServer(vs, _)
                | Op::EditVirtualServer(vs, _)
                | Op::AddRealServer(vs, ..)
                | Op::EditRealServer(vs, ..)
                | Op::DrainRealServer(vs, _)
                | Op::RemoveRealServer(vs, _) => {
                    let wanted = desired.virtual_server(vs);
                    failed.services.extend(wanted.map(|wanted| (&wanted.service, vs.family())));
                }
                _ => {}
            }
        }
        failed
    }

    fn affects(&self, service: &ObjectName, family: Family) -> bool {
        self.families.contains(&family) || self.services.contains(&(service, family))
    }
}

#[cfg(test)]
mod tests {
    use crate::core::model::PerFamily;
    use crate::core::model::real_servers::RsState;
    use prometheus::Registry;

    use super::super::proxy::ProxyMetrics;
    use super::*;
    use crate::core::model::changes::Changes;
    use crate::core::model::settings::Settings;
    use crate::core::model::{Protocol, RsKey, Service, ServicePort, VsKey};
    use crate::core::plan::outcome::{Cause, OpError};
    use crate::core::service::fragment::build_fragment;
    use crate::core::service::node_facts::NodeFacts;
    use std::time::Duration;

    const WEB: VsKey = VsKey { protocol: Protocol::Tcp, addr: ip(1), port: 80 };

    const fn ip(n: u8) -> std::net::IpAddr {
        std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, n))
    }

    fn desired() -> Desired {
        let mut desired = Desired::default();
        for (name, n) in [("web", 1), ("dns", 2)] {
            let port = ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: 0 };
            let name = ObjectName::new("d", name);
            let service = Service {
                name: name.clone(),
                cluster_ips: PerFamily::new(Some(ip(n)), None),
                ports: vec![port],
                ..Service::default()
            };
            let fragment = build_fragment(&service, [], &[], &NodeFacts::default(), &Settings::default());
            desired.update(&name, Some(fragment), &mut Changes::default());
        }
        desired
    }

    fn programming() -> Programming {
        Programming::new(ProxyMetrics::register(&Registry::new()).unwrap().programming)
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_failed_change_is_measured_when_it_succeeds() {
        let (programming, desired) = (programming(), desired());
        for name in ["web", "dns"] {
            programming.add(&ObjectName::new("d", name), vec![Trigger { family: Family::V4, at: at(100) }]);
        }
        let duration = programming.duration.with_label_values(&["IPv4"]);
        let measured = || (duration.get_sample_count(), duration.get_sample_sum());
        let op = Op::AddRealServer(WEB, RsKey { addr: ip(9), port: 80 }, RsState::USUAL);
        let plan = Plan { ops: vec![op], priority: 0 };
        let failed = Report { outcomes: vec![Outcome::Failed(OpError::plain(Cause::Other, "no"))] };
        programming.applied(&plan, &failed, &desired, at(103));
        assert_eq!(measured(), (1, 3.0), "the other Service works");
        programming.applied(&plan, &Report { outcomes: vec![Outcome::Done] }, &desired, at(110));
        assert_eq!(measured(), (2, 13.0));
        programming.applied(&Plan::default(), &Report::default(), &desired, at(120));
        assert_eq!(measured(), (2, 13.0), "once");
    }

    #[test]
    fn a_missing_device_affects_all_services() {
        let (programming, desired) = (programming(), desired());
        let family = Family::V4;
        programming.add(&ObjectName::new("d", "dns"), vec![Trigger { family, at: at(100) }; 40]);
        let plan = Plan { ops: vec![Op::CreateDevice], priority: 0 };
        let failed = Report { outcomes: vec![Outcome::Failed(OpError::plain(Cause::Other, "no"))] };
        programming.applied(&plan, &failed, &desired, at(101));
        let duration = programming.duration.with_label_values(&["IPv4"]);
        assert_eq!(duration.get_sample_count(), 0);
        programming.applied(&plan, &Report { outcomes: vec![Outcome::Done] }, &desired, at(90));
        assert_eq!(duration.get_sample_count(), MAX_TRIGGERS as u64);
        assert!(duration.get_sample_sum() == 0.0, "clocks differ");
    }
}
