// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Container, PodSpec, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube_ipvs::config::{Config, ConfigFlags};
use kube_ipvs::core::model::settings::RulesMode;
use serde_json::json;

use super::*;

fn rendered(name: &str) -> Vec<Manifest> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../manifests/install");
    read(&folder.join(format!("{name}.yaml"))).unwrap()
}

fn daemon_sets(objects: &[Manifest]) -> Vec<DaemonSet> {
    let sets = objects.iter().filter_map(|o| if let Manifest::DaemonSet(d) = o { Some(d) } else { None });
    sets.map(|set| (**set).clone()).collect()
}

fn daemon_set(objects: &[Manifest]) -> DaemonSet {
    let sets = daemon_sets(objects);
    assert_eq!(sets.len(), 1, "one DaemonSet");
    sets[0].clone()
}

fn pod(set: &DaemonSet) -> PodSpec {
    set.spec.as_ref().unwrap().template.spec.clone().unwrap()
}

fn config_maps(objects: &[Manifest]) -> BTreeMap<String, BTreeMap<String, String>> {
    let maps = objects.iter().filter_map(|o| if let Manifest::ConfigMap(m) = o { Some(m) } else { None });
    maps.map(|m| (m.metadata.name.clone().unwrap(), m.data.clone().unwrap_or_default())).collect()
}

#[test]
fn every_field_is_known_to_kubernetes() {
    for name in ["kube-ipvs", "kubeadm", "coexist", "nftables", "canary", "monitoring", "chart-everything"] {
        assert!(!rendered(name).is_empty(), "{name}");
    }
}

#[test]
fn a_misspelt_or_misplaced_field_is_found() {
    let good = "apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {name: a}\nspec:\n  selector: {}\n  template:\n    spec:\n      \
                containers:\n      - name: c\n        readinessProbe: {httpGet: {path: /, port: 1}}\n";
    assert_eq!(parse(good).unwrap().len(), 1);
    for (from, to) in [
        ("readinessProbe", "readyProbe"),
        ("httpGet: {path: /, port: 1}", "httpGet: {path: /, port: 1, method: GET}"),
        ("containers:", "containerz:"),
        ("name: c", "name: [c]"),
        ("apps/v1", "apps/v1beta1"),
        ("metadata: {name: a}", "metadata: {name: a, hostNetwork: true}"),
    ] {
        let bad = good.replace(from, to);
        assert_ne!(bad, good);
        assert!(parse(&bad).is_err(), "{bad}");
    }
    let rule = "apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata: {name: a}\nspec: {groups: \
                [{name: g, rules: [{alert: A, expr: up, labels: {}, annotations: {}}]}]}";
    assert_eq!(parse(rule).unwrap().len(), 1);
    assert!(parse(&rule.replace("expr", "exp")).is_err());
}

/// Validations of Kubernetes beyond types that these manifests could violate.
fn check_pod(pod: &PodSpec) {
    let volumes: BTreeSet<&str> = pod.volumes.iter().flatten().map(|v| v.name.as_str()).collect();
    let containers: Vec<&Container> = pod.init_containers.iter().flatten().chain(&pod.containers).collect();
    let mut mounted = BTreeSet::new();
    for container in &containers {
        let image = container.image.as_deref().unwrap();
        assert!(image.contains('/') && image.contains(':'), "a full image name: {image}");
        for mount in container.volume_mounts.iter().flatten() {
            assert!(volumes.contains(mount.name.as_str()), "{} mounts {}", container.name, mount.name);
            mounted.insert(mount.name.as_str());
        }
        let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref()).unwrap();
        assert!(requests.contains_key("cpu") && requests.contains_key("memory"));
    }
    assert_eq!(mounted, volumes, "volumes without a mount");
    assert_eq!(pod.host_network, Some(true));
    assert_eq!(pod.priority_class_name.as_deref(), Some("system-node-critical"));
    let tolerations = pod.tolerations.clone().unwrap();
    assert!(
        tolerations
            .iter()
            .any(|t| t.operator.as_deref() == Some("Exists") && t.key.is_none() && t.effect.is_none())
    );
}

/// Path and port number of a probe.
fn probed(container: &Container, probe: Option<&Probe>) -> (String, i32) {
    let get = probe.unwrap().http_get.clone().unwrap();
    let port = match get.port {
        IntOrString::Int(port) => port,
        IntOrString::String(name) => {
            let ports = container.ports.clone().unwrap();
            ports.iter().find(|port| port.name.as_ref() == Some(&name)).unwrap().container_port
        }
    };
    (get.path.unwrap(), port)
}

#[test]
fn pods_are_complete_and_probed_on_the_health_port() {
    for (name, port) in [("kube-ipvs", 10256), ("kubeadm", 10256), ("coexist", 10356), ("nftables", 10256)] {
        let set = daemon_set(&rendered(name));
        let (spec, pod) = (set.spec.clone().unwrap(), pod(&set));
        let labels = spec.template.metadata.unwrap().labels.unwrap();
        let selected = spec.selector.match_labels.unwrap();
        assert!(selected.iter().all(|(key, value)| labels.get(key) == Some(value)), "{name}");
        check_pod(&pod);
        let [main] = &pod.containers[..] else { panic!("{name}: one container") };
        assert_eq!(probed(main, main.startup_probe.as_ref()), ("/livez".to_owned(), port), "{name}");
        assert_eq!(probed(main, main.liveness_probe.as_ref()), ("/livez".to_owned(), port), "{name}");
        assert_eq!(probed(main, main.readiness_probe.as_ref()), ("/readyz".to_owned(), port), "{name}");
        let update = spec.update_strategy.unwrap();
        assert_eq!(update.type_.as_deref(), Some("RollingUpdate"), "{name}");
    }
}

#[test]
fn both_pods_of_a_canary_are_complete_and_the_agent_parses_their_configurations() {
    for (name, health, metrics) in [("canary", 10256, 10249), ("chart-everything", 10356, 10349)] {
        let objects = rendered(name);
        let (sets, maps) = (daemon_sets(&objects), config_maps(&objects));
        assert_eq!(sets.len(), 2, "{name}");
        for pod in sets.iter().map(pod) {
            check_pod(&pod);
            let [main] = &pod.containers[..] else { panic!("{name}: one container") };
            assert_eq!(probed(main, main.readiness_probe.as_ref()), ("/readyz".to_owned(), health), "{name}");
            let volume = pod.volumes.iter().flatten().find_map(|v| v.config_map.clone()).unwrap();
            let config = Config::parse(&maps[&volume.name]["config.conf"], &ConfigFlags::default()).unwrap();
            assert_eq!(i32::from(config.metrics_address.port()), metrics, "{name}");
            let without_base = main.image.as_ref().unwrap().ends_with("-nftables");
            assert_eq!(config.settings.rules == RulesMode::Nftables, without_base, "{name}");
        }
    }
}

#[test]
fn prometheus_scrapes_every_variant_at_its_port() {
    let monitor = rendered("monitoring");
    let monitor = monitor.iter().find_map(|o| if let Manifest::PodMonitor(m) = o { Some(m) } else { None });
    let spec = &monitor.unwrap()["spec"];
    let expression = &spec["selector"]["matchExpressions"][0];
    assert_eq!(
        (&expression["key"], &expression["operator"]),
        (&json!("kube-ipvs-variant"), &json!("Exists"))
    );
    let endpoints = spec["podMetricsEndpoints"].as_array().unwrap();
    assert_eq!(endpoints.len(), 1);
    // Without a number: each pod's own, and brackets for IPv6 are Prometheus' own work.
    assert_eq!(endpoints[0]["port"], "metrics");
    assert!(!endpoints[0].to_string().contains("__address__"));
    for (name, variant, port) in [
        ("kube-ipvs", "base", 10249),
        ("kubeadm", "kubeadm", 10249),
        ("coexist", "coexist", 10349),
        ("nftables", "nftables", 10249),
    ] {
        let objects = rendered(name);
        let set = daemon_set(&objects);
        let labels = set.spec.clone().unwrap().template.metadata.unwrap().labels.unwrap();
        assert_eq!(labels["kube-ipvs-variant"], variant);
        let pod = pod(&set);
        let ports = pod.containers[0].ports.clone().unwrap();
        let metrics = ports.iter().find(|p| p.name.as_deref() == Some("metrics")).unwrap();
        assert_eq!(metrics.container_port, port, "{name}");
        // kubeadm's ConfigMap is its own.
        for file in config_maps(&objects).values().filter_map(|map| map.get("config.conf")) {
            let config = Config::parse(file, &ConfigFlags::default()).unwrap();
            assert_eq!(i32::from(config.metrics_address.port()), port, "{name}");
            assert!(config.metrics_address.ip().is_unspecified(), "{name}: Prometheus must reach it");
        }
    }
}

#[test]
fn only_the_init_container_is_privileged() {
    let with_iptables: &[&str] = &["NET_ADMIN", "NET_RAW"];
    for (name, added) in [
        ("kube-ipvs", with_iptables),
        ("kubeadm", with_iptables),
        ("coexist", with_iptables),
        ("nftables", &["NET_ADMIN"]),
    ] {
        let pod = pod(&daemon_set(&rendered(name)));
        let init = pod.init_containers.clone().unwrap();
        let [init] = &init[..] else { panic!("{name}: one init container") };
        assert_eq!(init.security_context.as_ref().unwrap().privileged, Some(true));
        let (init_command, command) =
            (init.command.clone().unwrap(), pod.containers[0].command.clone().unwrap());
        assert_eq!(init_command, [&command[..], &["--init-only".to_owned()]].concat(), "{name}");
        let context = pod.containers[0].security_context.clone().unwrap();
        assert_ne!(context.privileged, Some(true), "{name}");
        assert_eq!(context.allow_privilege_escalation, Some(false), "{name}");
        assert_eq!(context.read_only_root_filesystem, Some(true), "{name}");
        assert_eq!(context.seccomp_profile.unwrap().type_, "RuntimeDefault", "{name}");
        let capabilities = context.capabilities.unwrap();
        assert_eq!(capabilities.drop.unwrap(), ["ALL"], "{name}");
        assert_eq!(capabilities.add.unwrap(), added, "{name}");
        let mounts = pod.containers[0].volume_mounts.clone().unwrap();
        assert!(!mounts.iter().any(|m| m.mount_path == "/lib/modules"), "{name}: modules are for the start");
    }
}

#[test]
fn the_image_without_a_base_is_used_with_rules_mode_nftables_alone() {
    for name in ["kube-ipvs", "kubeadm", "coexist", "nftables"] {
        let (objects, without_base) = (rendered(name), name == "nftables");
        let pod = pod(&daemon_set(&objects));
        for container in pod.init_containers.iter().flatten().chain(&pod.containers) {
            assert_eq!(container.image.as_ref().unwrap().ends_with("-nftables"), without_base, "{name}");
        }
        for file in config_maps(&objects).values().filter_map(|map| map.get("config.conf")) {
            let rules = Config::parse(file, &ConfigFlags::default()).unwrap().settings.rules;
            assert_eq!(rules == RulesMode::Nftables, without_base, "{name}");
        }
        // What only programs use.
        let mut volumes = pod.volumes.iter().flatten().map(|volume| volume.name.as_str());
        let of_programs = volumes.any(|name| name.contains("modules") || name == "xtables-lock");
        assert_eq!(of_programs, !without_base, "{name}");
    }
}

#[test]
fn config_maps_exist_and_the_agent_parses_them() {
    for name in ["kube-ipvs", "coexist", "nftables"] {
        let objects = rendered(name);
        let (maps, pod) = (config_maps(&objects), pod(&daemon_set(&objects)));
        let volume = pod.volumes.iter().flatten().find_map(|v| v.config_map.clone()).unwrap();
        let file = maps[&volume.name]["config.conf"].clone();
        assert_eq!(
            &*Config::parse(&file, &ConfigFlags::default()).unwrap().settings.scheduler,
            "rr",
            "{name}"
        );
        for source in pod.containers[0].env_from.iter().flatten() {
            let map = &maps[&source.config_map_ref.clone().unwrap().name];
            assert_eq!(
                map.keys().collect::<Vec<_>>(),
                ["KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"]
            );
        }
        let accounts = objects.iter().filter(|o| matches!(o, Manifest::ServiceAccount(_))).count();
        assert_eq!(accounts, 1, "{name}");
    }
    // kubeadm's own ConfigMap and service account stay.
    assert_eq!(rendered("kubeadm").len(), 1);
}

#[test]
fn the_role_has_exactly_the_needed_permissions() {
    let objects = rendered("kube-ipvs");
    let role =
        objects.iter().find_map(|o| if let Manifest::ClusterRole(r) = o { Some(r) } else { None }).unwrap();
    let mut may = BTreeSet::new();
    for rule in role.rules.iter().flatten() {
        for group in rule.api_groups.iter().flatten() {
            for resource in rule.resources.iter().flatten() {
                may.extend(rule.verbs.iter().map(|verb| format!("{verb} {group}/{resource}")));
            }
        }
    }
    let watched =
        ["/services", "/nodes", "discovery.k8s.io/endpointslices", "networking.k8s.io/servicecidrs"];
    let verbs = ["get", "list", "watch"];
    let mut expected: BTreeSet<String> =
        watched.iter().flat_map(|what| verbs.map(|verb| format!("{verb} {what}"))).collect();
    expected.extend(["create", "patch"].map(|verb| format!("{verb} events.k8s.io/events")));
    assert_eq!(may, expected);
    let binding =
        objects.iter().find_map(|o| if let Manifest::ClusterRoleBinding(b) = o { Some(b) } else { None });
    let binding = binding.unwrap();
    assert_eq!(Some(&binding.role_ref.name), role.metadata.name.as_ref());
    let subject = &binding.subjects.as_ref().unwrap()[0];
    assert_eq!((subject.kind.as_str(), subject.name.as_str()), ("ServiceAccount", "kube-ipvs"));
    assert_eq!(subject.namespace.as_deref(), Some("kube-system"));
    assert_eq!(pod(&daemon_set(&objects)).service_account_name.as_deref(), Some("kube-ipvs"));
}
