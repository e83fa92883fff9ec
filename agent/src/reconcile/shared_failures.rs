// SPDX-License-Identifier: Apache-2.0
//! An Event on the Node about what its Services share, such as the device, an ipset or the rules of a family:
//! no Service has that for its own, so none would get an Event.

use std::collections::BTreeSet;

use super::Reconciler;
use super::report::{Alike, alike, describe};
use crate::core::model::ObjectName;
use crate::core::plan::retries::Retries;
use crate::core::plan::subject::Subject;
use crate::events::{About, EventRequest, Reason};
use crate::kernel::Kernel;
use crate::words;

/// So many failures in a row are told: what heals with the next try needs nobody.
const FAILURES: u32 = 2;
/// Events after one pass; more come a second later.
const EVENTS: usize = 4;
/// Services named in one Event.
const NAMED: usize = 3;

/// What was told of what fails now.
#[derive(Debug, Default)]
pub(super) struct SharedFailures {
    told: BTreeSet<Subject>,
}

impl SharedFailures {
    /// What is to be told now. Each subject is told once, until it fails no longer.
    fn take_news<'r>(&mut self, retries: &'r Retries) -> Alike<'r> {
        self.told.retain(|subject| retries.fails(subject));
        let news = alike(retries.failing().filter(|(subject, failing)| {
            subject.is_shared() && failing.tries >= FAILURES && !self.told.contains(subject)
        }));
        let news: Alike<'_> = news.into_iter().take(EVENTS).collect();
        self.told.extend(news.values().flatten().copied());
        news
    }
}

impl<K: Kernel> Reconciler<K> {
    /// Posts what keeps failing that Services share, and how many of them wait for it.
    pub(super) fn report_shared_failures(&mut self) {
        let news = self.shared_failures.take_news(&self.retries);
        let notices: Vec<EventRequest> = news
            .into_iter()
            .map(|((kind, _, message), subjects)| {
                let waiting = self.waiting(&subjects);
                let message = format!("{}: {message}{waiting}", describe(kind, &subjects, None));
                EventRequest { about: About::Node, reason: Reason::NotProgrammed, message }
            })
            .collect();
        self.reporting.events.send(notices);
    }

    /// Who waits for these subjects, in words.
    fn waiting(&self, causes: &[&Subject]) -> String {
        if self.mirror.observed().is_none() {
            return "; no Service is programmed on this node until it works".to_owned();
        }
        let subjects = self.retries.waiting_for(causes);
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

    /// A loop over four Services, and its notices.
    fn start(kernel: FakeKernel) -> (Clocked, Receiver<EventRequest>) {
        let cluster = (1..=4).fold(Cluster::default(), |cluster, n| {
            let spec = json!({"clusterIP": format!("10.96.0.{n}"), "ports": [{"name": "p", "port": 80}]});
            cluster.service(&format!("web-{n}"), spec, &[])
        });
        let mut agent = Agent::start(FakeKernel::default(), &cluster);
        let (events, notices) = EventSink::kept();
        let reporting = Reporting { events, ..reporting() };
        agent.reconciler = Reconciler::new(kernel, agent.store.clone(), settings(), "n1", false, reporting);
        (Clocked::new(agent), notices)
    }

    fn refused(message: &str) -> OpError {
        OpError::plain(Cause::WrongKind, message)
    }

    fn run(node: &mut Clocked, seconds: u64) {
        node.pass_time(Duration::from_secs(seconds));
    }

    /// What was told of the Node since the last call.
    fn told(notices: &mut Receiver<EventRequest>) -> Vec<String> {
        let mut told = Vec::new();
        while let Ok(notice) = notices.try_recv() {
            assert_eq!((&notice.about, notice.reason), (&About::Node, Reason::NotProgrammed), "{notice:?}");
            told.push(notice.message);
        }
        told
    }

    const ALL: &str = "; 4 Services wait for it on this node: d/web-1, d/web-2, d/web-3 and 1 more";

    #[test]
    fn what_services_share_is_one_event_on_the_node_each_time_it_begins_to_fail() {
        let mut kernel = kernel();
        kernel.refuse(Subject::Device, refused("it is a bridge: delete it"));
        let (mut node, mut notices) = start(kernel);
        run(&mut node, 300);
        let expected = format!("cannot program device kube-ipvs0: it is a bridge: delete it{ALL}");
        assert_eq!(told(&mut notices), [expected]);
        node.agent.kernel().accept(&Subject::Device);
        run(&mut node, 60);
        assert_eq!(told(&mut notices), [""; 0], "the end needs nobody");
        node.agent.kernel().state.device = false;
        node.agent.kernel().refuse(Subject::Device, refused("it is a bond: delete it"));
        node.schedule.audit_soon();
        run(&mut node, 300);
        let again = told(&mut notices);
        assert!(again.len() == 1 && again[0].contains("it is a bond"), "{again:?}");
    }

    #[test]
    fn who_waits_by_way_of_something_else_is_counted_too() {
        let set = SetId { kind: SetKind::ClusterIp, family: Family::V4 };
        let mut kernel = kernel();
        kernel.refuse(Subject::Set(set), refused("it has another type"));
        let (mut node, mut notices) = start(kernel);
        run(&mut node, 300);
        // The addresses wait for the rules, and these for the set.
        assert_eq!(told(&mut notices), [format!("cannot program ipset {set}: it has another type{ALL}")]);
    }

    #[test]
    fn what_nobody_waits_for_is_told_without_services_and_what_was_not_read_with_all() {
        let mut wrong = kernel();
        wrong.state.sysctls.insert(SYSCTL, 0);
        wrong.refuse(Subject::Sysctl(SYSCTL), refused("it is 0 and must be 1"));
        let (mut node, mut notices) = start(wrong);
        run(&mut node, 300);
        assert_eq!(told(&mut notices), [format!("cannot program sysctl {SYSCTL}: it is 0 and must be 1")]);
        let mut unread = kernel();
        unread.set_unreadable(Part::Addresses, Some(refused("no answer")));
        let (mut node, mut notices) = start(unread);
        run(&mut node, 300);
        let expected =
            "failed: reading addresses: no answer; no Service is programmed on this node until it works";
        assert_eq!(told(&mut notices), [expected]);
    }

    #[test]
    fn what_heals_with_the_next_try_is_no_event() {
        let mut kernel = kernel();
        kernel.fail_next(OpKind::CreateDevice);
        let (mut node, mut notices) = start(kernel);
        run(&mut node, 60);
        assert!(node.agent.reconciler.retries().is_empty());
        assert_eq!(told(&mut notices), [""; 0]);
    }
}
