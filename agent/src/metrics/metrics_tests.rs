// SPDX-License-Identifier: Apache-2.0

use crate::core::model::real_servers::RsState;
use crate::core::model::settings::RulesMode;
use crate::core::model::trigger::Trigger;
use crate::core::model::{Family, ObjectName, PerFamily};
use crate::core::plan::outcome::{Cause, ObserveError, OpError, Outcome};
use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::core::model::settings::Settings;
use crate::core::model::{EndpointSlice, Protocol, RsKey, Service, ServicePort, SlicePort, VsKey};
use crate::core::plan::op::{OpKind, RulesOp};
use crate::core::plan::subject::{Part, Subject, SubjectKind};
use crate::core::service::fragment::build_fragment;
use crate::core::service::node_facts::NodeFacts;
use crate::inbox::Inbox;
use crate::kernel::ipvs::traffic::ServerCounters;
use crate::reconcile::Reconciler;
use crate::store::{Decoded, Object};
use crate::testing::{self, exposition, exposition::MetricFamily as Read};

const VS: VsKey = VsKey {
    protocol: Protocol::Tcp,
    addr: std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 1)),
    port: 80,
};

fn read(metrics: &Metrics) -> BTreeMap<String, Read> {
    exposition::parse(&metrics.render().unwrap())
}

fn value(metrics: &Metrics, sample: &str) -> f64 {
    let name = sample.split('{').next().unwrap();
    let name = ["_count", "_sum", "_bucket"].iter().find_map(|part| name.strip_suffix(part)).unwrap_or(name);
    read(metrics)[name].value(sample)
}

fn service(name: &str, vip: u8) -> Service {
    Service {
        name: ObjectName::new("d", name),
        created: i64::from(vip),
        cluster_ips: PerFamily::new(Some([10, 96, 0, vip].into()), None),
        ports: vec![ServicePort { name: "p".into(), protocol: Protocol::Tcp, port: 80, node_port: 0 }],
        ..Service::default()
    }
}

fn put(desired: &mut Desired, service: &Service, slices: &[EndpointSlice]) -> Changes {
    let (node, settings) = (NodeFacts { name: "n1".into(), ..NodeFacts::default() }, Settings::default());
    let mut changes = Changes::default();
    let fragment = build_fragment(service, slices, &[], &node, &settings);
    desired.update(&service.name, Some(fragment), &mut changes);
    changes
}

fn endpoint(node: &str, ready: bool) -> crate::core::model::Endpoint {
    crate::core::model::Endpoint {
        addr: [10, 244, 1, 1].into(),
        ready,
        serving: ready,
        terminating: false,
        weight: 1,
        place: Some(crate::core::model::Place::on(node)),
    }
}

fn slice(name: &str, endpoints: Vec<crate::core::model::Endpoint>) -> EndpointSlice {
    EndpointSlice {
        wrong_weights: None,
        name: ObjectName::new("d", name),
        service: ObjectName::new("d", name),
        family: Family::V4,
        ports: [SlicePort { name: "p".into(), protocol: Protocol::Tcp, port: 8080 }].into(),
        endpoints: endpoints.into(),
    }
}

fn pass(ops: Vec<Op>, outcomes: Vec<Outcome>) -> Pass {
    Pass { plan: Plan { ops, priority: 0 }, report: Report { outcomes }, ..Pass::default() }
}

fn rules(family: Family) -> Op {
    Op::WriteRules(Box::new(RulesOp {
        family,
        chains: BTreeMap::new(),
        jumps: Vec::new(),
        tidy: false,
        is_takeover: false,
    }))
}

fn failed() -> Outcome {
    Outcome::Failed(OpError::plain(Cause::Other, "no"))
}

/// Metrics in which every family has a sample.
fn busy() -> Metrics {
    let metrics = Metrics::new().unwrap();
    let store = Arc::new(Store::new(Arc::new(Inbox::default())));
    metrics.watch(&store, &EventSink::log_only());
    metrics.proxy.set_families(&Family::ALL);
    metrics.set_rules_mode(RulesMode::Nftables);
    metrics.set_kubernetes(&Info { git_version: "v1.36.2".to_owned(), ..Info::default() });
    metrics.request_done("10.0.0.1:6443", &Method::GET, Some(StatusCode::OK), Duration::ZERO);
    let mut desired = Desired::default();
    let mut old = service("old", 1);
    old.external_ips = vec!["198.51.100.1".parse().unwrap()];
    put(&mut desired, &old, &[]);
    let mut changes =
        put(&mut desired, &Service { name: ObjectName::new("d", "young"), created: 9, ..old }, &[]);
    let mut observed = Observed::default();
    observed.sets.entry(crate::core::model::sets::SetId::all(Family::V4).next().unwrap()).or_default();
    metrics.objects.count_servers(&observed);
    changes.everything = true;
    metrics.changed(&desired, &changes, 0);
    metrics.applied(&Plan::default(), &Report::default(), &desired, &observed);
    metrics.pass(&Pass { synced: Family::ALL.into(), ..Pass::default() }, Due::Audit, Duration::ZERO);
    metrics.work.set_unprogrammed(&[((SubjectKind::RealServer, Cause::InvalidArgument), 1)].into());
    metrics.watch_state(Kind::Service, WatchState::Listing);
    metrics.endpoint_checks.set(crate::probe::ProbeCounters { targets: 1, ..Default::default() });
    let reader: ReadCounters = Box::new(|| Ok(vec![(VS, ServerCounters::default())]));
    metrics.serve_traffic(10, reader).unwrap();
    metrics
}

/// Families of kube-proxy that this agent does not have, and why.
const LEFT_OUT: [(&str, &str); 1] = [("go_info", "this is no Go program")];

#[test]
fn every_family_of_kube_proxy_is_there_with_its_type_labels_and_buckets() {
    let ours = read(&busy());
    let mut checked = 0;
    for line in include_str!("kube-proxy-families.txt").lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (name, kind, labels) = (words[0], words[1], words[2].trim_matches(['{', '}']));
        if LEFT_OUT.iter().any(|(left_out, _)| *left_out == name) {
            assert!(!ours.contains_key(name), "{name}");
            continue;
        }
        let family = ours.get(name).unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!(family.kind, kind, "{name}");
        let labels: BTreeSet<String> =
            labels.split(',').filter(|l| !l.is_empty()).map(str::to_owned).collect();
        assert_eq!(family.labels, labels, "{name}");
        let buckets = words.get(3).and_then(|word| word.strip_prefix("le="));
        let buckets: Vec<&str> = buckets.into_iter().flat_map(|word| word.split(',')).collect();
        assert_eq!(family.buckets, buckets, "{name}");
        checked += 1;
    }
    assert!(checked > 20, "{checked}");
}

#[test]
fn the_documentation_names_every_family_and_no_other() {
    let text = include_str!("../../../docs/metrics.md");
    let mut documented = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let labels = cells[3].split(',').map(|label| label.trim().trim_matches('`').to_owned());
        let labels: BTreeSet<String> = labels.filter(|label| !label.is_empty()).collect();
        let twice = documented.insert(cells[1].trim_matches('`').to_owned(), (cells[2].to_owned(), labels));
        assert!(twice.is_none() && cells[4].len() > 5 && cells[5].len() > 1, "{line}");
    }
    let ours = read(&busy()).into_iter().map(|(name, family)| (name, (family.kind, family.labels)));
    assert_eq!(documented, ours.collect::<BTreeMap<_, _>>());
}

#[test]
fn a_pass_counts_for_every_family_and_only_a_good_one_is_the_last() {
    let metrics = Metrics::new().unwrap();
    metrics.proxy.set_families(&Family::ALL);
    let bad = pass(vec![rules(Family::V6)], vec![failed()]);
    let bad = Pass { synced: vec![Family::V4], incomplete: true, ..bad };
    metrics.pass(&bad, Due::Changes, Duration::from_millis(3));
    let (name, rest) = ("kubeproxy_sync_proxy_rules_", "_total{ip_family=");
    for family in ["IPv4", "IPv6"] {
        let sample = |part: &str| format!("{name}duration_seconds_{part}{{ip_family=\"{family}\"}}");
        assert_eq!(value(&metrics, &sample("count")), 1.0);
        let bucket = format!("{name}duration_seconds_bucket{{ip_family=\"{family}\",le=\"0.002\"}}");
        assert_eq!(value(&metrics, &bucket), 0.0);
    }
    let last = &read(&metrics)[&format!("{name}last_timestamp_seconds")];
    assert_eq!(last.samples.len(), 1, "{last:?}");
    assert!(last.value(&format!("{name}last_timestamp_seconds{{ip_family=\"IPv4\"}}")) > 1e9);
    assert_eq!(value(&metrics, &format!("{name}iptables_restore_failures{rest}\"IPv6\"}}")), 1.0);
    assert_eq!(value(&metrics, &format!("{name}iptables_restore_failures{rest}\"IPv4\"}}")), 0.0);
    metrics.proxy.set_families(&[Family::V4]);
    let shown = metrics.render().unwrap();
    let shown: Vec<&str> = shown.lines().filter(|line| line.starts_with("kubeproxy_")).collect();
    let of = |family: &str| shown.iter().filter(|line| line.contains(family)).count();
    assert!(of("IPv6") == 0 && of("IPv4") > 0, "{shown:?}");
}

#[test]
fn operations_are_counted_by_kind_and_result() {
    let metrics = Metrics::new().unwrap();
    let target = RsKey { addr: [10, 244, 1, 1].into(), port: 80 };
    let ops =
        vec![rules(Family::V4), Op::RemoveVirtualServer(VS), Op::AddRealServer(VS, target, RsState::USUAL)];
    metrics.pass(
        &pass(ops, vec![Outcome::Done, failed(), Outcome::Blocked(Subject::Device)]),
        Due::Changes,
        Duration::ZERO,
    );
    for (labels, count) in [
        ("kind=\"write_rules\",result=\"done\"", 1.0),
        ("kind=\"remove_virtual_server\",result=\"failed\"", 1.0),
        ("kind=\"add_real_server\",result=\"blocked\"", 1.0),
        ("kind=\"add_real_server\",result=\"done\"", 0.0),
    ] {
        assert_eq!(value(&metrics, &format!("kube_ipvs_operations_total{{{labels}}}")), count, "{labels}");
    }
    let passes = |labels: &str| value(&metrics, &format!("kube_ipvs_passes_total{{{labels}}}"));
    assert_eq!(passes("reason=\"changes\",result=\"incomplete\""), 1.0);
    let unreadable = Pass {
        unreadable: Some(ObserveError { part: Part::Ipvs, error: OpError::plain(Cause::Other, "no") }),
        ..Pass::default()
    };
    metrics.pass(&unreadable, Due::Audit, Duration::ZERO);
    assert_eq!(passes("reason=\"audit\",result=\"unreadable\""), 1.0);
    assert_eq!(value(&metrics, "kube_ipvs_last_audit_timestamp_seconds"), 0.0, "nothing was read");
    metrics.pass(&Pass::default(), Due::Audit, Duration::ZERO);
    assert!(value(&metrics, "kube_ipvs_last_audit_timestamp_seconds") > 1e9);
    metrics.work.repaired(OpKind::Bind);
    assert_eq!(value(&metrics, "kube_ipvs_drift_repaired_total{kind=\"bind\"}"), 1.0);
}

#[test]
fn the_oldest_change_ages_until_every_family_is_in_sync() {
    let metrics = Metrics::new().unwrap();
    let store = Arc::new(Store::new(Arc::new(Inbox::default())));
    metrics.watch(&store, &EventSink::log_only());
    let age = || value(&metrics, "kube_ipvs_oldest_change_age_seconds");
    assert_eq!(age(), 0.0);
    store.update(|u| u.put(Object::Service(service("a", 1))));
    assert!(age() > 0.0);
    metrics.work.working_on(store.waiting_since());
    store.take_dirty(|| false);
    assert!(age() > 0.0, "it is not in the kernel yet");
    let failing = pass(vec![rules(Family::V4)], vec![failed()]);
    metrics.pass(&Pass { incomplete: true, ..failing }, Due::Changes, Duration::ZERO);
    assert!(age() > 0.0);
    let target = RsKey { addr: [10, 244, 1, 1].into(), port: 80 };
    metrics.pass(
        &pass(vec![Op::AddRealServer(VS, target, RsState::USUAL)], vec![failed()]),
        Due::Changes,
        Duration::ZERO,
    );
    assert_eq!(age(), 0.0, "a rejected object has its own metric");
}

#[test]
fn changes_are_counted_as_kube_proxy_counts_them() {
    let metrics = Metrics::new().unwrap();
    let store = Arc::new(Store::new(Arc::new(Inbox::default())));
    metrics.watch(&store, &EventSink::log_only());
    metrics.proxy.set_families(&Family::ALL);
    store.update(|u| {
        (1..=16).for_each(|n| u.put(Object::Service(service(&format!("s{n}"), n))));
        u.put(Object::EndpointSlice(slice("s1", vec![])));
        u.put_decoded(
            Kind::EndpointSlice,
            &ObjectName::new("d", "x"),
            Decoded { object: Err("no".to_owned()), ignored: Vec::new() },
        );
        u.begin_list(Kind::Node);
        u.finish_list(Kind::Node);
    });
    let sync = |rest: &str| value(&metrics, &format!("kubeproxy_sync_proxy_rules_{rest}"));
    assert_eq!(sync("service_changes_total"), 32.0, "once per family");
    assert_eq!((sync("endpoint_changes_total"), sync("endpoint_changes_pending")), (1.0, 1.0));
    assert_eq!(sync("service_changes_pending"), 16.0);
    assert!(sync("last_queued_timestamp_seconds{ip_family=\"IPv6\"}") > 1e9);
    store.take_dirty(|| false);
    assert_eq!((sync("service_changes_pending"), sync("endpoint_changes_pending")), (0.0, 0.0));
    assert_eq!(sync("service_changes_total"), 32.0);
    assert_eq!(value(&metrics, "kube_ipvs_malformed_objects_total{kind=\"EndpointSlice\"}"), 1.0);
    assert_eq!(value(&metrics, "kube_ipvs_objects_synced{kind=\"Node\"}"), 1.0);
    assert_eq!(value(&metrics, "kube_ipvs_objects_synced{kind=\"Service\"}"), 0.0);
}

#[test]
fn services_without_a_local_endpoint_are_counted_by_policy() {
    let (metrics, mut desired) = (Metrics::new().unwrap(), Desired::default());
    metrics.proxy.set_families(&[Family::V4]);
    let mut count = |internal, external, endpoints: Vec<_>| {
        let mut svc = service("a", 1);
        (svc.internal_local, svc.external_local) = (internal, external);
        svc.external_ips = vec!["198.51.100.1".parse().unwrap()];
        put(&mut desired, &svc, &[slice("a", endpoints)]);
        metrics.applied(&Plan::default(), &Report::default(), &desired, &Observed::default());
        ["internal", "external"].map(|policy| {
            let labels = format!("ip_family=\"IPv4\",traffic_policy=\"{policy}\"");
            value(&metrics, &format!("kubeproxy_sync_proxy_rules_no_local_endpoints_total{{{labels}}}"))
        })
    };
    let (far, near, away) = (endpoint("n2", true), endpoint("n1", true), endpoint("n2", false));
    assert_eq!(count(true, false, vec![far.clone()]), [1.0, 0.0]);
    assert_eq!(count(false, true, vec![far.clone()]), [0.0, 1.0]);
    assert_eq!(count(true, true, vec![far.clone()]), [1.0, 1.0]);
    assert_eq!(count(true, true, vec![near]), [0.0, 0.0]);
    assert_eq!(count(true, true, vec![away]), [0.0, 0.0], "there is none anywhere");
    assert_eq!(count(true, true, vec![]), [0.0, 0.0]);
    assert_eq!(count(false, false, vec![far]), [0.0, 0.0], "policy Cluster");
}

#[test]
fn servers_are_counted_at_an_audit_and_followed_from_there() {
    let metrics = Metrics::new().unwrap();
    let sizes = || {
        ["virtual", "real"]
            .map(|kind| value(&metrics, &format!("kube_ipvs_{kind}_servers{{ip_family=\"IPv4\"}}")))
    };
    let spec = crate::core::model::VsSpec { scheduler: "rr".into(), flags: 0, timeout: 0 };
    let target = |n: u8| RsKey { addr: [10, 244, 1, n].into(), port: 80 };
    let mut observed = Observed::default();
    metrics.objects.count_servers(&observed);
    assert_eq!(sizes(), [0.0, 0.0]);
    let mut run = |op: Op| {
        metrics.objects.done(&op, &observed);
        observed.record(&op);
        let followed = sizes();
        metrics.objects.count_servers(&observed);
        assert_eq!(followed, sizes(), "{op}");
        followed
    };
    run(Op::AddVirtualServer(VS, spec));
    (1..4).for_each(|n| _ = run(Op::AddRealServer(VS, target(n), RsState::USUAL)));
    assert_eq!(run(Op::DrainRealServer(VS, target(1))), [1.0, 3.0]);
    assert_eq!(run(Op::RemoveRealServer(VS, target(1))), [1.0, 2.0]);
    assert_eq!(run(Op::RemoveVirtualServer(VS)), [0.0, 0.0]);
}

#[test]
fn the_state_of_a_watch_is_one_of_three() {
    let metrics = Metrics::new().unwrap();
    let set = |state| metrics.watch_state(Kind::Service, state);
    let states = || {
        let state = |s| value(&metrics, &format!("kube_ipvs_watch_state{{kind=\"Service\",state=\"{s}\"}}"));
        ["listing", "following", "failing"].map(state)
    };
    assert_eq!(states(), [0.0; 3]);
    set(WatchState::Listing);
    set(WatchState::Following);
    assert_eq!(states(), [0.0, 1.0, 0.0]);
    set(WatchState::Failing);
    set(WatchState::Failing);
    assert_eq!(states(), [0.0, 0.0, 1.0]);
    assert_eq!(value(&metrics, "kube_ipvs_watch_failures_total{kind=\"Service\"}"), 2.0);
    assert_eq!(value(&metrics, "kube_ipvs_watch_lists_total{kind=\"Service\"}"), 1.0);
    assert!(value(&metrics, "kube_ipvs_watch_state_since_timestamp_seconds{kind=\"Service\"}") > 1e9);
    assert_eq!(value(&metrics, "kube_ipvs_watch_state_since_timestamp_seconds{kind=\"Node\"}"), 0.0);
}

#[test]
fn health_answers_are_counted_by_code() {
    let metrics = Metrics::new().unwrap();
    metrics.proxy.healthz.with_label_values(&["503"]).inc();
    metrics.proxy.livez.with_label_values(&["200"]).inc();
    for (sample, count) in [
        ("healthz_total{code=\"200\"}", 0.0),
        ("healthz_total{code=\"503\"}", 1.0),
        ("livez_total{code=\"200\"}", 1.0),
        ("livez_total{code=\"503\"}", 0.0),
    ] {
        assert_eq!(value(&metrics, &format!("kubeproxy_proxy_{sample}")), count, "{sample}");
    }
}

#[test]
fn the_loser_of_a_conflict_is_named_until_it_is_none() {
    let (metrics, mut desired) = (Metrics::new().unwrap(), Desired::default());
    for (name, n) in [("old", 1), ("young", 2)] {
        let external_ips = vec!["198.51.100.1".parse().unwrap()];
        let changes = put(&mut desired, &Service { external_ips, ..service(name, n) }, &[]);
        metrics.changed(&desired, &changes, 3);
    }
    let line = "kube_ipvs_address_conflict{namespace=\"d\",service=\"young\",\
                virtual_server=\"TCP 198.51.100.1:80\",winner=\"d/old\"}";
    assert_eq!(value(&metrics, line), 1.0);
    assert_eq!(value(&metrics, "kube_ipvs_contested_virtual_servers"), 1.0);
    assert_eq!(value(&metrics, "kube_ipvs_draining_real_servers"), 3.0);
    let mut changes = Changes::default();
    desired.update(&ObjectName::new("d", "old"), None, &mut changes);
    metrics.changed(&desired, &changes, 0);
    let text = metrics.render().unwrap();
    assert!(!text.contains("young") && text.contains("kube_ipvs_contested_virtual_servers 0"), "{text}");
}

/// The sync loop on a kernel in memory reports all its work.
#[test]
fn the_loop_counts_what_it_does() {
    let store = Arc::new(Store::new(Arc::new(Inbox::default())));
    let reporting = testing::reporting();
    let metrics = reporting.metrics.clone();
    let mut agent =
        Reconciler::new(testing::kernel(), store.clone(), testing::settings(), "n1", false, reporting);
    let at = SystemTime::now() + Duration::from_secs(1);
    store.update(|u| {
        u.put(Object::Service(service("a", 1)));
        u.put(Object::TriggeredSlice(
            slice("a", vec![endpoint("n1", true)]),
            Trigger { family: Family::V4, at },
        ));
    });
    let of = |name: &str, labels: &str| value(&metrics, &format!("{name}{{{labels}}}"));
    let programmed = || of("kubeproxy_network_programming_duration_seconds_count", "ip_family=\"IPv4\"");
    let servers = || of("kube_ipvs_real_servers", "ip_family=\"IPv4\"");

    agent.kernel().fail_next(OpKind::AddRealServer);
    assert!(!agent.sync(Due::Audit, Duration::ZERO).is_clean());
    assert_eq!((programmed(), servers()), (0.0, 0.0), "it is not programmed yet");
    assert!(agent.sync(Due::Retry, Duration::from_secs(1)).is_clean());
    assert_eq!((programmed(), servers()), (1.0, 1.0));
    assert_eq!(value(&metrics, "kube_ipvs_services"), 1.0);
    assert_eq!(value(&metrics, "kube_ipvs_bound_addresses"), 1.0);
    assert_eq!(of("kube_ipvs_set_entries", "set=\"KUBE-CLUSTER-IP\""), 1.0);

    agent.kernel().state.addresses.clear();
    agent.kernel().state.virtual_servers.clear();
    let pass = agent.sync(Due::Audit, Duration::from_secs(2));
    let repaired = read(&metrics)["kube_ipvs_drift_repaired_total"].samples.values().sum::<f64>();
    assert_eq!((pass.drift.len(), repaired), (3, 3.0), "{}", pass.plan);
    assert_eq!(of("kube_ipvs_drift_repaired_total", "kind=\"bind\""), 1.0);
    assert_eq!((servers(), programmed()), (1.0, 1.0));
}
