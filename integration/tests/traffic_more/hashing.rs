// SPDX-License-Identifier: Apache-2.0
//! Schedulers that choose by a hash, and endpoints that get no new connections.

use std::time::Duration;

use integration::lab::traffic::{Backend, Connection, NoAnswer};
use integration::lab::{Lab, Netns, Setup, at, ipvsadm};
use integration::objects::{ServiceBuilder, slice};
use serde_json::{Value, json};

use super::{ANSWER, PORTS, SILENCE, TARGETS};

const ENDPOINTS: [(&str, &str); 2] = [("near", "10.244.1.5"), ("far", "10.244.2.6")];

/// A Service with a scheduler.
struct Case {
    name: &'static str,
    vip: &'static str,
    scheduler: &'static str,
    flags: &'static str,
    /// Whether it refuses the clients of an endpoint that is full or has weight 0.
    refuses: bool,
}

const fn case(
    name: &'static str,
    vip: &'static str,
    (scheduler, flags): (&'static str, &'static str),
    refuses: bool,
) -> Case {
    Case { name, vip, scheduler, flags, refuses }
}

const CASES: [Case; 6] = [
    case("sh", "10.96.0.11", ("sh", ""), true),
    case("sh-fallback", "10.96.0.12", ("sh", "sh-fallback"), false),
    case("mh", "10.96.0.13", ("mh", ""), true),
    case("mh-fallback", "10.96.0.14", ("mh", "mh-fallback"), false),
    case("dh", "10.96.0.15", ("dh", ""), true),
    case("rr", "10.96.0.16", ("rr", ""), false),
];

impl Case {
    fn objects(&self, limit: Option<&str>, weights: &str) -> [Value; 2] {
        let mut annotations =
            json!({"kube-ipvs.io/scheduler": self.scheduler, "kube-ipvs.io/scheduler-flags": self.flags});
        if let Some(limit) = limit {
            annotations["kube-ipvs.io/max-connections"] = json!(limit);
        }
        let service =
            ServiceBuilder::new(self.name, &[self.vip], &PORTS[..1]).annotations(&annotations).build();
        let mut slice = slice(self.name, &["10.244.1.5@node-a", "10.244.2.6@node-b"], &TARGETS[..1]);
        slice["metadata"]["annotations"] = json!({"kube-ipvs.io/weight": weights});
        [service, slice]
    }

    /// A new connection, if it is not refused, and the name of its endpoint.
    fn connect(&self, ns: &Netns, limit: Duration) -> Option<(Connection, String)> {
        match Connection::open(ns, at(self.vip, 80), limit) {
            Ok(mut connection) => {
                let name = connection.ask().unwrap().name;
                Some((connection, name))
            }
            Err(NoAnswer::Refused | NoAnswer::Timeout) => None,
            Err(other) => panic!("{}: {other:?}", self.name),
        }
    }

    fn is_refused(&self, ns: &Netns) -> bool {
        self.connect(ns, if self.refuses { SILENCE } else { ANSWER }).is_none()
    }

    /// An Event names the Service and what closes its endpoints, if clients are refused. It may come after the sync.
    fn assert_told(&self, setup: &Setup<'_>, what: &str) {
        let service = format!("SchedulerRefusesClients: some clients of Service test/{} ", self.name);
        let is_told = || setup.agent.log().lines().any(|line| line.contains(&service) && line.contains(what));
        if self.refuses {
            setup.wait("the Event", is_told).unwrap();
        } else {
            assert!(!is_told(), "{}, {what}", self.name);
        }
    }
}

/// The connections of one client have the same endpoint: without the ports, the hash is the same.
#[test]
fn clients_of_closed_endpoints_are_refused_exactly_where_an_event_tells_it() {
    let lab = Lab::new().unwrap();
    let (node, other) = (lab.node("node-a").unwrap(), lab.node("node-b").unwrap());
    let (near, far, asker) = (node.pod(5).unwrap(), other.pod(6).unwrap(), node.pod(9).unwrap());
    let _backends =
        [(&near, "near"), (&far, "far")].map(|(pod, name)| Backend::new(&pod.ns, name).tcp(8080).unwrap());
    let limited = CASES.iter().flat_map(|case| case.objects(Some("1"), "1")).collect();
    let setup = Setup::start(&node, &json!({}), limited).unwrap();
    setup.wait_bound(&CASES.each_ref().map(|case| case.vip)).unwrap();
    let mut open: Vec<(Connection, String)> =
        CASES.iter().map(|case| case.connect(&asker.ns, ANSWER).unwrap()).collect();
    for case in &CASES {
        let refused = case.is_refused(&asker.ns);
        assert_eq!(refused, case.refuses, "{}, full\n{}", case.name, ipvsadm(node.ns()));
        case.assert_told(&setup, "max-connections");
    }

    let address = |wanted: &str| ENDPOINTS.into_iter().find(|(name, _)| *name == wanted).unwrap().1;
    let closed = CASES
        .iter()
        .zip(&open)
        .flat_map(|(case, (_, name))| case.objects(None, &format!("{}=0", address(name))));
    // The log has a limit of ten lines a second.
    std::thread::sleep(Duration::from_secs(2));
    setup.write(closed.collect()).unwrap();
    for (case, (connection, name)) in CASES.iter().zip(&mut open) {
        let server = format!("-a -t {}:80 -r {}:8080 -m -w 0", case.vip, address(name));
        setup.wait_ipvs(&server, true).unwrap();
        let refused = case.is_refused(&asker.ns);
        assert_eq!(refused, case.refuses, "{}, weight 0\n{}", case.name, ipvsadm(node.ns()));
        case.assert_told(&setup, "weight 0");
        assert_eq!(connection.ask().unwrap().name, *name, "{}: the open connection continues", case.name);
    }
}
