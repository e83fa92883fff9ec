// SPDX-License-Identifier: Apache-2.0
//! Settings of Services by `kubeIPVS.serviceDefaults`.

use std::time::Duration;

use serde_json::{Value, json};

use crate::config::{Config, ConfigFlags};
use crate::core::model::settings::Settings;
use crate::core::model::{RsKey, VsSpec};
use crate::core::plan::op::{Op, OpKind};
use crate::core::plan::pass::Due;
use crate::inspect::explain::{self, ExplainRequest};
use crate::source::decode::selected_labels;
use crate::source::files::FileSource;
use crate::store::Kind;
use crate::testing::cluster::Cluster;
use crate::testing::scenarios::tcp_server;
use crate::testing::{Agent, LABEL_KEYS, kernel, lines, settings};

const BACKENDS: [&str; 2] = ["10.244.1.5@n1", "10.244.2.6@n2"];
const SCHEDULER: &str = "kube-ipvs.io/scheduler";

fn with_defaults(defaults: Value) -> Settings {
    let document = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "kubeIPVS": {"serviceDefaults": defaults},
    });
    let config = Config::parse(&document.to_string(), &ConfigFlags::default()).unwrap();
    Settings { service_defaults: config.settings.service_defaults, ..settings() }
}

/// Frontends hash, and everything in the namespace `d` drains for 50 s.
fn frontends() -> Settings {
    with_defaults(json!([
        {
            "selector": {"matchLabels": {"tier": "frontend"}},
            "settings": {"scheduler": "mh", "schedulerFlags": "mh-fallback"},
        },
        {"namespaces": ["d"], "settings": {"scheduler": "lc", "drainDeadline": "50s"}},
        {"namespaces": ["x*"], "settings": {"scheduler": "sh"}},
    ]))
}

fn cluster(labels: &Value, annotations: &Value, backends: &[&str]) -> Cluster {
    selected_labels::select(&LABEL_KEYS);
    let service = |name: &str, ip: &str, labels: &Value, annotations: &Value| {
        json!({
            "metadata": {"name": name, "namespace": "d", "labels": labels, "annotations": annotations},
            "spec": {"clusterIP": ip, "ports": [{"name": "p", "port": 80}]},
        })
    };
    Cluster::default()
        .with(Kind::Service, &service("web", "10.96.0.10", labels, annotations))
        .slice("web", backends, &["p/TCP/8080"])
        .with(Kind::Service, &service("plain", "10.96.0.11", &json!({}), &json!({})))
}

fn start(labels: &Value, annotations: &Value, settings: Settings) -> Agent {
    let mut agent = Agent::with_settings(kernel(), &cluster(labels, annotations, &BACKENDS), settings);
    agent.converge(Due::Changes, 3);
    agent
}

/// The schedulers of both Services.
fn schedulers(agent: &mut Agent) -> [VsSpec; 2] {
    let servers = &agent.kernel().state.virtual_servers;
    ["10.96.0.10", "10.96.0.11"].map(|ip| servers[&tcp_server(ip, 80)].spec.clone())
}

fn spec(scheduler: &str, flags: u32) -> VsSpec {
    VsSpec { scheduler: scheduler.into(), flags, timeout: 0 }
}

#[test]
fn a_change_of_a_label_edits_the_virtual_server_of_its_service_alone() {
    let [frontend, backend] = ["frontend", "backend"].map(|tier| json!({"tier": tier, "unused": tier}));
    let mut agent = start(&backend, &json!({}), frontends());
    assert_eq!(schedulers(&mut agent), [spec("lc", 0), spec("lc", 0)]);
    cluster(&frontend, &json!({}), &BACKENDS).put(&agent.store);
    let pass = agent.sync(Due::Changes);
    assert_eq!(pass.plan.ops, [Op::EditVirtualServer(tcp_server("10.96.0.10", 80), spec("mh", 0x8))]);
    assert_eq!(schedulers(&mut agent), [spec("mh", 0x8), spec("lc", 0)]);
    // A label that no selector names changes nothing.
    let other = json!({"tier": "frontend", "unused": "other"});
    cluster(&other, &json!({}), &BACKENDS).put(&agent.store);
    assert_eq!(agent.sync(Due::Changes).plan.ops, []);
    cluster(&json!({}), &json!({}), &BACKENDS).put(&agent.store);
    agent.converge(Due::Changes, 3);
    assert_eq!(schedulers(&mut agent), [spec("lc", 0), spec("lc", 0)]);
}

#[test]
fn labels_of_objects_in_files_count() {
    selected_labels::select(&LABEL_KEYS);
    let service = json!({
        "kind": "Service", "apiVersion": "v1",
        "metadata": {"name": "web", "namespace": "d", "labels": {"tier": "frontend"}},
        "spec": {"clusterIP": "10.96.0.10", "ports": [{"port": 80}]},
    });
    let file = tempfile::NamedTempFile::with_suffix(".json").unwrap();
    std::fs::write(file.path(), service.to_string()).unwrap();
    let mut agent = Agent::with_settings(kernel(), &Cluster::default(), frontends());
    FileSource::new(file.path(), "n1").read(&agent.store).unwrap();
    agent.converge(Due::Changes, 3);
    assert_eq!(agent.kernel().state.virtual_servers[&tcp_server("10.96.0.10", 80)].spec, spec("mh", 0x8));
}

#[test]
fn an_annotation_counts_before_defaults_and_a_wrong_one_does_not() {
    let labels = json!({"tier": "frontend"});
    for (annotations, chosen) in [
        (json!({SCHEDULER: "mh"}), spec("mh", 0x10)),
        (json!({"kube-router.io/service.scheduler": "sh"}), spec("sh", 0)),
        (json!({SCHEDULER: "fastest"}), spec("mh", 0x8)),
        (json!({"kube-ipvs.io/scheduler-flags": "mh-port"}), spec("mh", 0x8)),
        (json!({"kube-ipvs.io/hairpin": "false"}), spec("mh", 0x8)),
    ] {
        let mut agent = start(&labels, &annotations, frontends());
        assert_eq!(schedulers(&mut agent)[0], chosen, "{annotations}");
    }
    let told = lines(|| drop(start(&labels, &json!({SCHEDULER: "fastest"}), frontends())));
    assert_eq!(told.iter().filter(|line| line.contains("AnnotationIgnored")).count(), 1, "{told:#?}");
}

#[test]
fn a_drain_ends_by_the_deadline_of_the_default() {
    let mut agent = start(&json!({}), &json!({}), frontends());
    let server = tcp_server("10.96.0.10", 80);
    let leaving = RsKey { addr: [10, 244, 2, 6].into(), port: 8080 };
    let mut is_there_after = |time: Duration| {
        agent.now += time;
        agent.kernel().state.busy.insert((server, leaving));
        cluster(&json!({}), &json!({}), &BACKENDS[..1]).put(&agent.store);
        let _ = agent.sync(Due::Drains);
        agent.kernel().state.virtual_servers[&server].real_servers.get(&leaving).is_some()
    };
    assert!(is_there_after(Duration::ZERO), "it begins to drain");
    assert!(!is_there_after(Duration::from_secs(60)));
}

#[test]
fn a_scheduler_that_the_kernel_lacks_is_one_event_for_all_services_of_the_default() {
    let settings = with_defaults(json!([{"settings": {"scheduler": "twos"}}]));
    let lines = lines(|| {
        let mut fake = kernel();
        fake.missing_schedulers = vec!["twos"];
        let cluster = cluster(&json!({}), &json!({}), &BACKENDS);
        let mut agent = Agent::with_settings(fake, &cluster, settings);
        agent.converge(Due::Changes, 4);
        assert_eq!(schedulers(&mut agent), [spec("rr", 0), spec("rr", 0)]);
        let tries = agent.kernel().count(OpKind::EditVirtualServer);
        assert!(agent.sync(Due::Audit).is_clean());
        assert_eq!(agent.kernel().count(OpKind::EditVirtualServer), tries);
    });
    let told: Vec<&String> = lines.iter().filter(|line| line.contains("SchedulerMissing")).collect();
    assert_eq!(told.len(), 1, "{lines:#?}");
    for part in [
        "Node",
        "no scheduler twos, which kubeIPVS.serviceDefaults or weights ask for",
        "`modprobe ip_vs_twos`",
    ] {
        assert!(told[0].contains(part), "{told:?}");
    }
    assert!(!lines.iter().any(|line| line.contains("AnnotationIgnored")), "{lines:#?}");
}

#[test]
fn explain_names_the_entry_that_chooses_a_setting() {
    let annotations = json!({"kube-ipvs.io/hairpin": "false"});
    let agent = start(&json!({"tier": "frontend"}), &annotations, frontends());
    let request = ExplainRequest { target: "d/web".to_owned(), from: None };
    let found = explain::find(&agent.store, &request).unwrap();
    let explanation = explain::explain(&agent.reconciler.state(agent.now), &found, &request);
    let [frontend] = &explanation.frontends[..] else { panic!("{explanation:?}") };
    assert_eq!(frontend.chosen, ["hairpin off"]);
    assert_eq!(
        frontend.defaults,
        [
            "scheduler mh with flags 0x8 by kubeIPVS.serviceDefaults[0]",
            "drains end after 50 s by kubeIPVS.serviceDefaults[1]",
        ]
    );
}
