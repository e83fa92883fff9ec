// SPDX-License-Identifier: Apache-2.0
//! Schedulers that choose by a hash, and endpoints that get no new connections.

use integration::lab::traffic::{Backend, Connection, NoAnswer};
use integration::lab::{Lab, Netns, Setup, at, ipvsadm};
use integration::objects::{ServiceBuilder, slice};
use serde_json::{Value, json};

use super::{ANSWER, PORTS, SILENCE, TARGETS};

const VIP: &str = "10.96.0.10";
const ENDPOINTS: [(&str, &str); 2] = [("near", "10.244.1.5"), ("far", "10.244.2.6")];

fn objects(annotations: &Value, weights: &str) -> Vec<Value> {
    let service = ServiceBuilder::new("web", &[VIP], &PORTS[..1]).annotations(annotations).build();
    let mut slice = slice("web", &["10.244.1.5@node-a", "10.244.2.6@node-b"], &TARGETS[..1]);
    slice["metadata"]["annotations"] = json!({"kube-ipvs.io/weight": weights});
    vec![service, slice]
}

/// Whether a new connection is refused.
fn is_refused(ns: &Netns) -> bool {
    match Connection::open(ns, at(VIP, 80), SILENCE) {
        Ok(mut connection) => {
            connection.ask().unwrap();
            connection.abort().unwrap();
            false
        }
        Err(NoAnswer::Refused | NoAnswer::Timeout) => true,
        Err(other) => panic!("{other:?}"),
    }
}

/// How often the Event was logged.
fn told(setup: &Setup<'_>) -> usize {
    setup.agent.log().matches("SchedulerRefusesClients").count()
}

fn assert_told(setup: &Setup<'_>, before: usize, expected: bool, case: &str) {
    if expected {
        setup.wait(&format!("{case}: the Event"), || told(setup) > before).unwrap();
    }
    assert_eq!(told(setup) > before, expected, "{case}");
}

/// The connections of one client have the same endpoint: without the ports, the hash is the same.
#[test]
fn clients_of_closed_endpoints_are_refused_exactly_where_an_event_tells_it() {
    let lab = Lab::new().unwrap();
    let (node, other) = (lab.node("node-a").unwrap(), lab.node("node-b").unwrap());
    let (near, far, asker) = (node.pod(5).unwrap(), other.pod(6).unwrap(), node.pod(9).unwrap());
    let _backends =
        [(&near, "near"), (&far, "far")].map(|(pod, name)| Backend::new(&pod.ns, name).tcp(8080).unwrap());
    let setup = Setup::start(&node, &json!({}), objects(&json!({}), "1")).unwrap();
    setup.wait_bound(&[VIP]).unwrap();
    for (scheduler, flags, weight_0_refuses, limit_refuses) in [
        ("sh", "", true, true),
        ("sh", "sh-fallback", false, false),
        ("mh", "", false, true),
        ("mh", "mh-fallback", false, false),
        ("dh", "", true, true),
        ("rr", "", false, false),
    ] {
        let mut annotations =
            json!({"kube-ipvs.io/scheduler": scheduler, "kube-ipvs.io/scheduler-flags": flags});
        let case = format!("{scheduler} ({flags})");
        setup.write(objects(&annotations, "1")).unwrap();
        setup.wait_ipvs(&format!("-A -t {VIP}:80 -s {scheduler}"), true).unwrap();
        let mut open = Connection::open(&asker.ns, at(VIP, 80), ANSWER).unwrap();
        let name = open.ask().unwrap().name;
        let (_, address) = ENDPOINTS.into_iter().find(|(of, _)| *of == name).unwrap();
        let before = told(&setup);
        setup.write(objects(&annotations, &format!("{address}=0"))).unwrap();
        setup.wait_ipvs(&format!("-a -t {VIP}:80 -r {address}:8080 -m -w 0"), true).unwrap();
        assert_eq!(is_refused(&asker.ns), weight_0_refuses, "{case}, weight 0\n{}", ipvsadm(node.ns()));
        assert_told(&setup, before, weight_0_refuses, &case);
        assert_eq!(open.ask().unwrap().name, name, "{case}: the open connection continues");

        let before = told(&setup);
        annotations["kube-ipvs.io/max-connections"] = json!("1");
        setup.write(objects(&annotations, "1")).unwrap();
        let thresholds = || node.ns().exec(&["ipvsadm", "-Ln", "--thresholds"]).unwrap().stdout;
        let upper = |line: &str| line.split_whitespace().nth(2).map(str::to_owned);
        let limited = || thresholds().lines().filter(|line| upper(line).as_deref() == Some("1")).count();
        setup.wait("the limits", || limited() == 2).unwrap();
        assert_eq!(is_refused(&asker.ns), limit_refuses, "{case}, full\n{}", ipvsadm(node.ns()));
        assert_told(&setup, before, limit_refuses, &case);
        open.abort().unwrap();
    }
}
