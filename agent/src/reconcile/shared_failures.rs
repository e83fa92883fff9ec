// SPDX-License-Identifier: Apache-2.0
//! Events on the Node about failures of objects that Services share, such as the device, an ipset or the rules of a
//! family: these belong to no single Service.

use std::collections::BTreeSet;

use super::Reconciler;
use super::report::{FailureGroups, describe, group_failures};
use crate::core::model::ObjectName;
use crate::core::plan::retries::Retries;
use crate::core::plan::subject::Subject;
use crate::events::{About, EventRequest, Reason};
use crate::kernel::Kernel;
use crate::words;

/// Consecutive failures before an Event: a failure that the first retry ends needs no action.
const FAILURES: u32 = 2;
/// Events after one pass; further ones follow a second later.
const EVENTS: usize = 4;
/// Services named in one Event.
const NAMED: usize = 3;

/// Failing subjects that were reported.
#[derive(Debug, Default)]
pub(super) struct SharedFailures {
    reported: BTreeSet<Subject>,
}

impl SharedFailures {
    /// The failures to report now: each subject once, until it no longer fails.
    fn take_news<'r>(&mut self, retries: &'r Retries) -> FailureGroups<'r> {
        self.reported.retain(|subject| retries.fails(subject));
        let news = group_failures(retries.failing().filter(|(subject, failing)| {
            subject.is_shared() && failing.tries >= FAILURES && !self.reported.contains(subject)
        }));
        let news: FailureGroups<'_> = news.into_iter().take(EVENTS).collect();
        self.reported.extend(news.values().flatten().copied());
        news
    }
}

impl<K: Kernel> Reconciler<K> {
    /// Posts Events about failing shared objects, with the number of Services that wait for them.
    pub(super) fn report_shared_failures(&mut self) {
        let news = self.shared_failures.take_news(&self.retries);
        let events = news.into_iter().map(|((kind, _, message), subjects)| {
            let waiting = self.waiting(&subjects);
            let message = format!("{}: {message}{waiting}", describe(kind, &subjects, None));
            EventRequest { about: About::Node, reason: Reason::NotProgrammed, message }
        });
        self.reporting.events.send(events);
    }

    /// The Services that wait for these subjects, as text.
    fn waiting(&self, causes: &[&Subject]) -> String {
        if self.mirror.observed().is_none() {
            return "; no Service is programmed on this node until the read succeeds".to_owned();
        }
        let subjects = self.retries.blocked_by(causes);
        let addresses: BTreeSet<_> = subjects.iter().filter_map(Subject::address).collect();
        let servers: BTreeSet<_> = subjects.iter().filter_map(Subject::virtual_server).collect();
        let services: BTreeSet<&ObjectName> = self
            .desired
            .virtual_servers()
            .filter(|server| servers.contains(&server.key) || addresses.contains(&server.key.addr))
            .map(|server| &server.service)
            .collect();
        let verb = if services.len() == 1 { "waits" } else { "wait" };
        match services.len() {
            0 => String::new(),
            count => format!(
                "; {} {verb} for it on this node: {}",
                words::count(count, "Service"),
                words::some(services, NAMED, count)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;
    use tokio::sync::mpsc::Receiver;

    use super::*;
    use crate::core::model::Family;
    use crate::core::model::sets::{SetId, SetKind};
    use crate::core::plan::op::OpKind;
    use crate::core::plan::outcome::{Cause, OpError};
    use crate::core::plan::subject::Part;
    use crate::events::EventSink;
    use crate::kernel::fake::FakeKernel;
    use crate::reconcile::{Reconciler, Reporting};
    use crate::testing::cluster::Cluster;
    use crate::testing::{Agent, Clocked, SYSCTL, kernel, reporting, settings};

    /// A loop over four Services, and its Events.
    fn start(kernel: FakeKernel) -> (Clocked, Receiver<EventRequest>) {
        let cluster = (1..=4).fold(Cluster::default(), |cluster, n| {
            let spec = json!({"clusterIP": format!("10.96.0.{n}"), "ports": [{"name": "p", "port": 80}]});
            cluster.service(&format!("web-{n}"), spec, &[])
        });
        let mut agent = Agent::start(FakeKernel::default(), &cluster);
        let (sink, events) = EventSink::kept();
        let reporting = Reporting { events: sink, ..reporting() };
        agent.reconciler = Reconciler::new(kernel, agent.store.clone(), settings(), "n1", false, reporting);
        (Clocked::new(agent), events)
    }

    fn refused(message: &str) -> OpError {
        OpError::plain(Cause::WrongKind, message)
    }

    fn run(node: &mut Clocked, seconds: u64) {
        node.pass_time(Duration::from_secs(seconds));
    }

    /// Messages of the Events on the Node since the last call.
    fn messages(events: &mut Receiver<EventRequest>) -> Vec<String> {
        let mut messages = Vec::new();
        while let Ok(event) = events.try_recv() {
            assert_eq!((&event.about, event.reason), (&About::Node, Reason::NotProgrammed), "{event:?}");
            messages.push(event.message);
        }
        messages
    }

    const ALL: &str = "; 4 Services wait for it on this node: d/web-1, d/web-2, d/web-3 and 1 more";

    #[test]
    fn a_shared_failure_is_one_event_on_the_node_each_time_it_begins() {
        let mut kernel = kernel();
        kernel.refuse(Subject::Device, refused("it is a bridge: delete it"));
        let (mut node, mut events) = start(kernel);
        run(&mut node, 300);
        let expected = format!("cannot program device kube-ipvs0: it is a bridge: delete it{ALL}");
        assert_eq!(messages(&mut events), [expected]);
        node.agent.kernel().accept(&Subject::Device);
        run(&mut node, 60);
        assert_eq!(messages(&mut events), [""; 0], "the end needs no action");
        node.agent.kernel().state.device = false;
        node.agent.kernel().refuse(Subject::Device, refused("it is a bond: delete it"));
        node.schedule.audit_soon();
        run(&mut node, 300);
        let again = messages(&mut events);
        assert!(again.len() == 1 && again[0].contains("it is a bond"), "{again:?}");
    }

    #[test]
    fn services_that_wait_indirectly_are_counted() {
        let set = SetId { kind: SetKind::ClusterIp, family: Family::V4 };
        let mut kernel = kernel();
        kernel.refuse(Subject::Set(set), refused("it has another type"));
        let (mut node, mut events) = start(kernel);
        run(&mut node, 300);
        // The addresses wait for the rules, and the rules for the set.
        assert_eq!(messages(&mut events), [format!("cannot program set {set}: it has another type{ALL}")]);
    }

    #[test]
    fn an_event_names_no_service_if_none_waits_and_a_failed_read_affects_all() {
        let mut wrong = kernel();
        wrong.state.node.sysctls.insert(SYSCTL, 0);
        wrong.refuse(Subject::Sysctl(SYSCTL), refused("it is 0 and must be 1"));
        let (mut node, mut events) = start(wrong);
        run(&mut node, 300);
        assert_eq!(messages(&mut events), [format!("cannot program sysctl {SYSCTL}: it is 0 and must be 1")]);
        let mut unread = kernel();
        unread.set_unreadable(Part::Addresses, Some(refused("no answer")));
        let (mut node, mut events) = start(unread);
        run(&mut node, 300);
        let expected = "failed: reading addresses: no answer; no Service is programmed on this node until the read succeeds";
        assert_eq!(messages(&mut events), [expected]);
    }

    #[test]
    fn a_failure_that_the_first_retry_ends_is_no_event() {
        let mut kernel = kernel();
        kernel.fail_next(OpKind::CreateDevice);
        let (mut node, mut events) = start(kernel);
        run(&mut node, 60);
        assert!(node.agent.reconciler.retries().is_empty());
        assert_eq!(messages(&mut events), [""; 0]);
    }
}
