// SPDX-License-Identifier: Apache-2.0
//! Golden plans.

use crate::core::model::PerFamily;
use std::collections::BTreeSet;

use crate::core::mirror::Observed;
use crate::core::model::changes::Changes;
use crate::core::model::settings::{LocalTraffic, Settings, Sysctl};
use crate::core::model::*;
use crate::core::plan::op::{Op, OpKind, Plan, RulesOp};
use crate::core::plan::{PlanInput, all_keys, build_plan};
use crate::core::rules::chains::Table;
use crate::core::rules::save::{ObservedRules, parse_save};
use crate::core::service::desired::Desired;
use crate::core::service::fragment::build_fragment;
use crate::core::service::node_facts::NodeFacts;
use crate::kernel::fake::FakeKernel;
use crate::testing::run_plan;

const SYSCTL: &str = "/proc/sys/net/ipv4/vs/conntrack";

fn settings() -> Settings {
    Settings {
        local: LocalTraffic::Cidrs(PerFamily::new(Some("10.244.0.0/16".parse().unwrap()), None)),
        families: vec![Family::V4],
        sysctls: vec![Sysctl::exactly(SYSCTL, 1)],
        ..Settings::default()
    }
}

fn node() -> NodeFacts {
    NodeFacts { name: "n1".into(), ..NodeFacts::default() }
}

fn dns(external: &[&str]) -> Service {
    Service {
        name: ObjectName::new("kube-system", "kube-dns"),
        created: 1,
        cluster_ips: PerFamily::new(Some("10.96.0.10".parse().unwrap()), None),
        external_ips: external.iter().map(|ip| ip.parse().unwrap()).collect(),
        ports: vec![ServicePort { name: "dns".into(), protocol: Protocol::Udp, port: 53, node_port: 0 }],
        ..Service::default()
    }
}

fn slice(addrs: &[&str]) -> EndpointSlice {
    let endpoint = |addr: &&str| Endpoint {
        addr: addr.parse().unwrap(),
        ready: true,
        serving: true,
        terminating: false,
        weight: 1,
        place: addr.starts_with("10.244.1.").then(|| Place::on("n1")),
    };
    EndpointSlice {
        wrong_weights: None,
        name: ObjectName::new("kube-system", "kube-dns-1"),
        service: ObjectName::new("kube-system", "kube-dns"),
        family: Family::V4,
        ports: [SlicePort { name: "dns".into(), protocol: Protocol::Udp, port: 53 }].into(),
        endpoints: addrs.iter().map(endpoint).collect(),
    }
}

fn update(desired: &mut Desired, service: Option<&Service>, slices: &[EndpointSlice]) -> Changes {
    let mut changes = Changes::default();
    let fragment = service.map(|s| build_fragment(s, slices, &[], &node(), &settings()));
    desired.update(&ObjectName::new("kube-system", "kube-dns"), fragment, &mut changes);
    changes
}

fn plan(desired: &Desired, observed: &Observed, changes: Option<&Changes>) -> Plan {
    plan_with(desired, observed, &settings(), changes)
}

/// The plan for these changes. `None`: the full plan.
fn plan_with(desired: &Desired, observed: &Observed, settings: &Settings, changes: Option<&Changes>) -> Plan {
    let expired = BTreeSet::new();
    let input = PlanInput {
        desired,
        observed,
        settings,
        expired: &expired,
        takeover_pending: true,
        later: &BTreeSet::new(),
        stuck: &BTreeSet::new(),
        installed: &PerFamily::new(None, None),
    };
    match changes {
        Some(changes) => build_plan(input, changes, &changes.flows),
        None => build_plan(input, &all_keys(desired, observed), &BTreeSet::new()),
    }
}

/// Applies the full plan, which must succeed.
fn apply_all(kernel: &mut FakeKernel, desired: &Desired) -> Observed {
    let plan = plan(desired, &kernel.state, None);
    assert!(run_plan(kernel, &plan).is_clean());
    kernel.state.clone()
}

#[test]
fn golden_cold_start() {
    let mut desired = Desired::default();
    update(&mut desired, Some(&dns(&[])), &[slice(&["10.244.1.5", "10.244.2.6"])]);
    let plan = plan(&desired, &Observed::default(), None).to_string();
    let text: String = plan.lines().filter(|l| !l.contains("+ set ")).map(|l| format!("{l}\n")).collect();
    assert_eq!(
        text,
        "Prepare\n  sysctl /proc/sys/net/ipv4/vs/conntrack = 1\n  + device\nGuard\n  \
         + entry KUBE-LOOP-BACK 10.244.1.5,udp:53,10.244.1.5\n  \
         + entry KUBE-CLUSTER-IP 10.96.0.10,udp:53\n  \
         + entry KUBE-IPVS-IPS 10.96.0.10\n  \
         = rules IPv4 (20 rules, jumps of 6 chains)\nServe\n  \
         + virtual server UDP 10.96.0.10:53 rr\n  \
         + real server UDP 10.96.0.10:53 -> 10.244.1.5:53\n  \
         + real server UDP 10.96.0.10:53 -> 10.244.2.6:53\nOpen\n  \
         + address 10.96.0.10\n"
    );
}

#[test]
fn golden_one_endpoint_is_added_and_another_removed() {
    let (mut desired, mut kernel) = (Desired::default(), FakeKernel::new(&[SYSCTL]));
    update(&mut desired, Some(&dns(&[])), &[slice(&["10.244.1.5", "10.244.1.6"])]);
    let observed = apply_all(&mut kernel, &desired);
    let changes = update(&mut desired, Some(&dns(&[])), &[slice(&["10.244.1.5", "10.244.2.7"])]);
    let plan = plan(&desired, &observed, Some(&changes));
    assert_eq!(
        plan.to_string(),
        "Serve\n  + real server UDP 10.96.0.10:53 -> 10.244.2.7:53\nRemove\n  \
         - real server UDP 10.96.0.10:53 -> 10.244.1.6:53\nTidy\n  \
         - entry KUBE-LOOP-BACK 10.244.1.6,udp:53,10.244.1.6\n  - stale IPv4 UDP flows of 1 frontends\n"
    );
}

#[test]
fn golden_a_deleted_service_loses_its_addresses_first_and_its_rules_last() {
    let (mut desired, mut kernel) = (Desired::default(), FakeKernel::new(&[SYSCTL]));
    update(&mut desired, Some(&dns(&["198.51.100.7"])), &[slice(&["10.244.1.5"])]);
    let observed = apply_all(&mut kernel, &desired);
    let changes = update(&mut desired, None, &[]);
    let plan = plan(&desired, &observed, Some(&changes));
    assert_eq!(
        plan.to_string(),
        "Close\n  - address 10.96.0.10/32\n  - address 198.51.100.7/32\nRemove\n  \
         - virtual server UDP 10.96.0.10:53\n  - virtual server UDP 198.51.100.7:53\nTidy\n  \
         - entry KUBE-LOOP-BACK 10.244.1.5,udp:53,10.244.1.5\n  \
         - entry KUBE-CLUSTER-IP 10.96.0.10,udp:53\n  \
         - entry KUBE-EXTERNAL-IP 198.51.100.7,udp:53\n  \
         - entry KUBE-IPVS-IPS 10.96.0.10\n  - entry KUBE-IPVS-IPS 198.51.100.7\n  \
         = rules IPv4 (17 rules, jumps of 0 chains)\n"
    );
}

#[test]
fn golden_drift_is_repaired_in_place() {
    let (mut desired, mut kernel) = (Desired::default(), FakeKernel::new(&[SYSCTL]));
    update(&mut desired, Some(&dns(&[])), &[slice(&["10.244.2.5"])]);
    apply_all(&mut kernel, &desired);
    let key = VsKey { protocol: Protocol::Udp, addr: "10.96.0.10".parse().unwrap(), port: 53 };
    let server = kernel.state.virtual_servers.get_mut(&key).unwrap();
    server.spec.scheduler = "wrr".into();
    server.real_servers.values_mut().for_each(|rs| rs.weight = 7);
    kernel.state.addresses.insert("10.96.0.99/24".parse().unwrap());
    kernel.state.rules[Family::V4].jumps.clear();
    let plan = plan(&desired, &kernel.state, None);
    assert_eq!(
        plan.to_string(),
        "Guard\n  = rules IPv4 (19 rules, jumps of 6 chains)\nServe\n  = virtual server UDP 10.96.0.10:53 rr\n  \
         = real server UDP 10.96.0.10:53 -> 10.244.2.5:53\nClose\n  - address 10.96.0.99/24\n"
    );
}

/// A load balancer with source ranges and a node port.
fn restricted(name: &str, vip: u8) -> Service {
    Service {
        name: ObjectName::new("shop", name),
        created: 2,
        cluster_ips: PerFamily::new(Some([10, 96, 1, vip].into()), None),
        load_balancer_ips: vec![[203, 0, 113, vip].into()],
        source_ranges: vec!["198.18.0.0/15".parse().unwrap()],
        ports: vec![ServicePort { name: "p".into(), protocol: Protocol::Tcp, port: 443, node_port: 30443 }],
        ..Service::default()
    }
}

#[test]
fn golden_the_guard_is_programmed_first_then_dns_then_other_services() {
    let mut desired = Desired::default();
    let dns = Service { priority: true, ..dns(&[]) };
    update(&mut desired, Some(&dns), &[slice(&["10.244.2.6"])]);
    let node =
        NodeFacts { node_port_addresses: PerFamily::new(vec![[192, 168, 50, 2].into()], vec![]), ..node() };
    let lb = restricted("web", 1);
    let fragment = build_fragment(&lb, [], &[], &node, &settings());
    desired.update(&lb.name, Some(fragment), &mut Changes::default());
    let plan = plan(&desired, &Observed::default(), None).to_string();
    let text: String = plan.lines().filter(|l| !l.contains("+ set ")).map(|l| format!("{l}\n")).collect();
    assert_eq!(
        text,
        "Prepare\n  sysctl /proc/sys/net/ipv4/vs/conntrack = 1\n  + device\nGuard\n  \
         + entry KUBE-CLUSTER-IP 10.96.0.10,udp:53\n  \
         + entry KUBE-IPVS-IPS 10.96.0.10\n  \
         = rules IPv4 (25 rules, jumps of 6 chains)\nServe\n  \
         + virtual server UDP 10.96.0.10:53 rr\n  \
         + real server UDP 10.96.0.10:53 -> 10.244.2.6:53\nOpen\n  \
         + address 10.96.0.10\nGuard\n  \
         + entry KUBE-CLUSTER-IP 10.96.1.1,tcp:443\n  \
         + entry KUBE-LOAD-BALANCER 203.0.113.1,tcp:443\n  \
         + entry KUBE-LOAD-BALANCER-SOURCE-CIDR 203.0.113.1,tcp:443,198.18.0.0/15\n  \
         + entry KUBE-NODE-PORT-TCP 30443\n  \
         + entry KUBE-IPVS-IPS 10.96.1.1\n  \
         + entry KUBE-IPVS-IPS 203.0.113.1\n  \
         + entry KUBE-LOAD-BALANCER-FW 203.0.113.1,tcp:443\nServe\n  \
         + virtual server TCP 10.96.1.1:443 rr\n  \
         + virtual server TCP 192.168.50.2:30443 rr\n  \
         + virtual server TCP 203.0.113.1:443 rr\nOpen\n  \
         + address 10.96.1.1\n  \
         + address 203.0.113.1\n"
    );
}

#[test]
fn golden_a_busy_real_server_drains_until_it_is_idle_or_the_deadline_is_over() {
    let vs = VsKey { protocol: Protocol::Tcp, addr: [10, 96, 1, 1].into(), port: 443 };
    let rs = |n: u8| RsKey { addr: [10, 244, 2, n].into(), port: 8443 };
    let with = |endpoints: &[u8]| {
        let mut slice = slice(&[]);
        slice.ports = [SlicePort { name: "p".into(), protocol: Protocol::Tcp, port: 8443 }].into();
        slice.endpoints = endpoints
            .iter()
            .map(|n| Endpoint {
                addr: [10, 244, 2, *n].into(),
                ready: true,
                serving: true,
                terminating: false,
                weight: 1,
                place: None,
            })
            .collect();
        let service =
            Service { ports: restricted("web", 1).ports, load_balancer_ips: vec![], ..restricted("web", 1) };
        build_fragment(&service, [&slice], &[], &node(), &settings())
    };
    let (mut desired, mut kernel) = (Desired::default(), FakeKernel::new(&[SYSCTL]));
    let name = ObjectName::new("shop", "web");
    desired.update(&name, Some(with(&[1, 2, 3])), &mut Changes::default());
    let mut observed = apply_all(&mut kernel, &desired);
    observed.busy = [(vs, rs(2)), (vs, rs(3))].into_iter().collect();
    let mut changes = Changes::default();
    desired.update(&name, Some(with(&[3])), &mut changes);
    let step = |observed: &Observed, expired: &[RsKey]| {
        let (settings, expired) = (settings(), expired.iter().map(|rs| (vs, *rs)).collect());
        let input = PlanInput {
            desired: &desired,
            observed,
            settings: &settings,
            expired: &expired,
            takeover_pending: true,
            later: &BTreeSet::new(),
            stuck: &BTreeSet::new(),
            installed: &PerFamily::new(None, None),
        };
        build_plan(input, &changes, &changes.flows).to_string()
    };
    assert_eq!(
        step(&observed, &[]),
        "Remove\n  0 real server TCP 10.96.1.1:443 -> 10.244.2.1:8443\n  \
         0 real server TCP 10.96.1.1:443 -> 10.244.2.2:8443\n",
        "a connection may still come to an idle one"
    );
    observed.record(&Op::DrainRealServer(vs, rs(1)));
    observed.record(&Op::DrainRealServer(vs, rs(2)));
    let idle = "Remove\n  - real server TCP 10.96.1.1:443 -> 10.244.2.1:8443\n";
    assert_eq!(step(&observed, &[]), idle);
    observed.record(&Op::RemoveRealServer(vs, rs(1)));
    assert_eq!(step(&observed, &[]), "", "it keeps its connections");
    let gone = "Remove\n  - real server TCP 10.96.1.1:443 -> 10.244.2.2:8443\n";
    assert_eq!(step(&observed, &[rs(2)]), gone, "the deadline is over");
    observed.busy.clear();
    assert_eq!(step(&observed, &[]), gone, "the last connection ended");
}

/// The rules of the iptables mode for one Service.
fn iptables_mode() -> ObservedRules {
    let svc = "-d 10.96.0.10/32 -p tcp -m comment --comment \"kube-system/kube-dns:dns\" -m tcp --dport 53 \
               -j KUBE-SVC-A";
    let sep = "-m tcp -p tcp -j DNAT --to-destination 10.244.1.5:53";
    parse_save(&format!(
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-A - [0:0]\n-A PREROUTING -m comment --comment \"kubernetes \
         service portals\" -j KUBE-SERVICES\n-A KUBE-SERVICES {svc}\n-A KUBE-SVC-A {sep}\nCOMMIT\n"
    ))
}

#[test]
fn golden_rules_of_the_iptables_mode_stay_until_ours_are_in_place() {
    let mut desired = Desired::default();
    update(&mut desired, Some(&dns(&[])), &[slice(&["10.244.1.5"])]);
    let mut kernel = FakeKernel::new(&[SYSCTL]);
    kernel.state.rules[Family::V4] = iptables_mode();
    kernel.state.node.nft_tables[Family::V4].kube_proxy = true;
    let again = |observed: &Observed| plan(&desired, observed, None);
    let plan = again(&kernel.state);
    let text = plan.to_string();
    let at = |line: &str| text.find(line).unwrap_or_else(|| panic!("no {line:?} in\n{text}"));
    assert!(at("\nGuard") < at("\nServe") && at("\nServe") < at("\nOpen") && at("\nOpen") < at("\nTidy"));
    let end = "Tidy\n  = rules IPv4 (20 rules, jumps of 0 chains)\n  - IPv4 leftovers of other modes: 1 \
               chains, 0 rules, the nftables table kube-proxy\n";
    assert!(text.ends_with(end), "{text}");
    let rules: Vec<&RulesOp> =
        plan.ops.iter().filter_map(|op| if let Op::WriteRules(r) = op { Some(&**r) } else { None }).collect();
    let services = |rules: &RulesOp| rules.chains[&(Table::Nat, "KUBE-SERVICES".to_owned())].clone();
    let guard = services(rules.iter().find(|r| r.family == Family::V4 && !r.tidy).unwrap());
    let old = guard.iter().position(|rule| rule.ends_with("-j KUBE-SVC-A")).unwrap();
    let verdict = guard.iter().position(|rule| rule.ends_with("-j KUBE-NODE-PORT")).unwrap();
    assert!(old < verdict, "the old rule decides first: {guard:?}");
    assert!(guard[..old].iter().any(|rule| rule.ends_with("-j KUBE-MARK-MASQ")), "after our mark: {guard:?}");
    let tidy = services(rules.iter().find(|r| r.tidy).unwrap());
    assert!(!tidy.iter().any(|rule| rule.contains("KUBE-SVC-")));

    assert!(run_plan(&mut kernel, &plan).is_clean());
    assert!(again(&kernel.state).is_empty(), "no second plan");
}

#[test]
fn rules_of_the_iptables_mode_stay_while_anything_of_the_family_fails() {
    let mut desired = Desired::default();
    update(&mut desired, Some(&dns(&[])), &[slice(&["10.244.1.5"])]);
    for (patient, stays) in [(true, true), (false, false)] {
        let mut kernel = FakeKernel::new(&[SYSCTL]);
        kernel.state.rules[Family::V4] = iptables_mode();
        kernel.fail_next(OpKind::Bind);
        let expired = BTreeSet::new();
        let settings = settings();
        let input = PlanInput {
            desired: &desired,
            observed: &kernel.state.clone(),
            settings: &settings,
            expired: &expired,
            takeover_pending: patient,
            later: &BTreeSet::new(),
            stuck: &BTreeSet::new(),
            installed: &PerFamily::new(None, None),
        };
        let plan = build_plan(input, &all_keys(&desired, &kernel.state), &BTreeSet::new());
        let report = run_plan(&mut kernel, &plan);
        assert!(!report.is_clean());
        assert_eq!(!kernel.state.rules[Family::V4].leftovers.is_empty(), stays);
        let services = &kernel.state.rules[Family::V4].chains[&(Table::Nat, "KUBE-SERVICES".to_owned())];
        assert_eq!(services.iter().any(|rule| rule.contains("KUBE-SVC-A")), stays);
    }
}
