// SPDX-License-Identifier: Apache-2.0

use super::slice::{HEADLESS_LABEL, SERVICE_NAME_LABEL};
use super::*;
use crate::core::model::{EndpointSlice, Family, Hints, Node, PerFamily, Place, Service};
use serde_json::{Value, json};
use std::sync::Arc;

fn service(spec: Value) -> Result<Object, String> {
    decode(Kind::Service, &json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec}))
}

fn slice(body: Value) -> Result<Object, String> {
    let mut value =
        json!({"metadata": {"name": "s", "namespace": "d", "labels": {SERVICE_NAME_LABEL: "web"}}});
    value.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
    decode(Kind::EndpointSlice, &value)
}

#[test]
fn dual_stack_takes_the_cluster_ip_beside_its_family() {
    let spec = json!({"clusterIP": "fd00::1", "clusterIPs": ["fd00::1", "10.96.0.1"],
        "ipFamilies": ["IPv6", "IPv4"], "ports": [{"port": 80}]});
    let Ok(Object::Service(s)) = service(spec) else { panic!() };
    assert_eq!(
        s.cluster_ips,
        PerFamily::new(Some("10.96.0.1".parse().unwrap()), Some("fd00::1".parse().unwrap()))
    );
    assert_eq!(s.ports[0].protocol, Protocol::Tcp);
    assert_eq!(s.created, i64::MAX);
}

#[test]
fn services_of_others_are_told_apart_from_malformed_ones() {
    for spec in
        [json!({"clusterIP": "None"}), json!({}), json!({"clusterIP": "10.96.0.1", "type": "ExternalName"})]
    {
        assert!(matches!(service(spec.clone()), Ok(Object::NotOurs(..))), "{spec}");
    }
    let foreign = json!({"metadata": {"labels": {PROXY_NAME_LABEL: "x"}}});
    let proxy = |value: &Value| RawObject::read(Kind::Service, value).unwrap().proxy().map(str::to_owned);
    assert_eq!((proxy(&foreign).as_deref(), proxy(&json!({}))), (Some("x"), None));
}

#[test]
fn each_error_names_its_field() {
    let cases = [
        (service(json!({"clusterIP": "10.96.0"})), "spec.clusterIPs: \"10.96.0\""),
        (service(json!({"clusterIP": "10.96.0.1", "ports": [{"port": 70000}]})), "spec.ports[0].port"),
        (service(json!({"clusterIP": "10.96.0.1", "ports": [{"port": 0}]})), "spec.ports[0].port"),
        (service(json!({"clusterIP": "10.96.0.1", "ports": [{}]})), "spec.ports[0].port is missing"),
        (
            service(json!({"clusterIP": "10.96.0.1", "ports": [{"port": 1, "protocol": "HTTP"}]})),
            "spec.ports[0].protocol: \"HTTP\"",
        ),
        (
            service(json!({"clusterIP": "10.96.0.1", "ports": [{"port": "http"}]})),
            "spec.ports[0].port: \"http\" is not a number without sign",
        ),
        (slice(json!({"addressType": "IPX"})), "addressType"),
        (
            slice(json!({"addressType": "IPv4", "endpoints": [{"addresses": ["fd00::1"]}]})),
            "endpoints[0].addresses[0]",
        ),
        (decode(Kind::Service, &json!({})), "metadata.name"),
        (decode(Kind::Node, &json!({"metadata": {"name": "n"}, "spec": {"podCIDRs": ["x"]}})), "podCIDRs"),
    ];
    for (result, field) in cases {
        let error = result.unwrap_err();
        assert!(error.contains(field), "{error:?} does not name {field}");
    }
}

#[test]
fn a_bad_external_ip_is_ignored_and_the_others_are_used() {
    let spec = json!({"clusterIP": "10.96.0.1", "externalIPs": ["", "x", "198.51.100.1"], "ports": []});
    let Ok(Object::Service(s)) = service(spec) else { panic!() };
    assert_eq!(s.external_ips.len(), 1);
}

#[test]
fn absent_conditions_mean_ready_and_incomplete_ports_are_ignored() {
    let body = json!({"addressType": "IPv4",
        "ports": [{"name": "", "port": 80}, {"port": 1}, {"name": "x"}, {"name": "y", "port": 0}],
        "endpoints": [{"addresses": ["10.0.0.1", "10.0.0.2"]}, {"addresses": []},
                      {"addresses": ["10.0.0.3"], "conditions": {"ready": false, "terminating": true}}]});
    let Ok(Object::EndpointSlice(s)) = slice(body) else { panic!() };
    assert_eq!(s.ports.len(), 1);
    assert_eq!(s.endpoints.len(), 2);
    assert!(s.endpoints[0].ready && s.endpoints[0].serving && !s.endpoints[0].terminating);
    assert!(!s.endpoints[1].ready && s.endpoints[1].serving && s.endpoints[1].terminating);
}

#[test]
fn a_bad_part_of_a_slice_is_ignored_and_the_others_are_used() {
    let body = json!({"addressType": "IPv4",
        "ports": [{"name": "a", "port": 70000}, {"name": "b", "port": 80}, {"name": "c", "port": 80, "protocol": "X"}],
        "endpoints": [{"addresses": ["x"]}, {"addresses": ["fd00::1"]}, {"addresses": ["10.0.0.1"]}]});
    let Ok(Object::EndpointSlice(s)) = slice(body) else { panic!() };
    assert_eq!((s.ports.len(), s.endpoints.len()), (1, 1));
    let all_bad = json!({"addressType": "IPv4", "endpoints": [{"addresses": ["x"]}, {"addresses": ["y"]}]});
    assert!(slice(all_bad).unwrap_err().contains("endpoints[0]"), "the last good version stays in force");
}

fn ignored(kind: Kind, value: &Value) -> Vec<String> {
    let object = RawObject::read(kind, value).unwrap();
    object.decode(&object.name()).ignored
}

#[test]
fn unusable_addresses_are_ignored_and_reported() {
    let useless = ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"];
    let addresses: Vec<Value> =
        useless.iter().chain(&["10.0.0.1"]).map(|a| json!({"addresses": [a]})).collect();
    let slice = json!({"metadata": {"name": "s", "labels": {SERVICE_NAME_LABEL: "web"}},
        "addressType": "IPv4", "endpoints": addresses});
    let Ok(Object::EndpointSlice(decoded)) = decode(Kind::EndpointSlice, &slice) else { panic!() };
    assert_eq!(decoded.endpoints.len(), 1);
    let reported = ignored(Kind::EndpointSlice, &slice);
    assert_eq!(reported.len(), 4, "{reported:?}");
    assert_eq!(
        reported[3],
        "endpoints[3].addresses[0]: 255.255.255.255 is the broadcast address: no endpoint can have it"
    );
    // A slice with unusable addresses only is not malformed.
    let all = json!({"metadata": {"name": "s", "labels": {SERVICE_NAME_LABEL: "web"}},
        "addressType": "IPv4", "endpoints": [{"addresses": ["255.255.255.255"]}]});
    let Ok(Object::EndpointSlice(decoded)) = decode(Kind::EndpointSlice, &all) else { panic!() };
    assert!(decoded.endpoints.is_empty());
    let service = json!({"metadata": {"name": "s"}, "spec": {"clusterIP": "10.96.0.1", "type": "LoadBalancer",
        "externalIPs": ["224.0.0.1", "198.51.100.1"]}, "status": {"loadBalancer": {"ingress": [{"ip": "127.0.0.1"}]}}});
    let Ok(Object::Service(decoded)) = decode(Kind::Service, &service) else { panic!() };
    assert_eq!((decoded.external_ips.len(), decoded.load_balancer_ips.len()), (1, 0));
    assert_eq!(ignored(Kind::Service, &service).len(), 2);
}

#[test]
fn addresses_are_read_as_kube_proxy_reads_them() {
    let spec = json!({"clusterIP": "010.096.0.1", "externalIPs": ["::ffff:198.51.100.1"], "type": "LoadBalancer",
        "loadBalancerSourceRanges": ["010.0.0.0/8", "::ffff:172.16.0.0/108"]});
    let Ok(Object::Service(s)) = service(spec) else { panic!() };
    assert_eq!(s.cluster_ips[Family::V4], Some("10.96.0.1".parse().unwrap()));
    assert_eq!(s.external_ips, ["198.51.100.1".parse::<std::net::IpAddr>().unwrap()]);
    let ranges: Vec<String> = s.source_ranges.iter().map(ToString::to_string).collect();
    assert_eq!(ranges, ["10.0.0.0/8", "172.16.0.0/12"]);
    let body = json!({"addressType": "IPv4", "endpoints": [{"addresses": ["010.0.0.09"]}, {"addresses": ["::ffff:10.0.0.2"]}]});
    let Ok(Object::EndpointSlice(s)) = slice(body) else { panic!() };
    let found: Vec<String> = s.endpoints.iter().map(|e| e.addr.to_string()).collect();
    assert_eq!(found, ["10.0.0.9", "10.0.0.2"]);
    let node = json!({"metadata": {"name": "n"}, "spec": {"podCIDRs": ["010.1.0.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.050.2"}]}});
    let Ok(Object::Node(n)) = decode(Kind::Node, &node) else { panic!() };
    assert_eq!(
        (n.pod_cidrs[Family::V4].unwrap().to_string(), n.addresses.len()),
        ("10.1.0.0/24".to_owned(), 1)
    );
}

#[test]
fn slices_of_no_service_and_of_other_address_types() {
    let headless =
        json!({"metadata": {"name": "s", "labels": {SERVICE_NAME_LABEL: "w", HEADLESS_LABEL: ""}}});
    for mut value in [headless, json!({"metadata": {"name": "s"}})] {
        assert!(
            matches!(decode(Kind::EndpointSlice, &value), Ok(Object::NotOurs(..))),
            "it belongs to no Service"
        );
        value["addressType"] = json!("IPv4");
        value["endpoints"] = json!([{"addresses": ["10.0.0.1"]}]);
        let Ok(Object::EndpointSlice(slice)) = decode(Kind::EndpointSlice, &value) else { panic!() };
        assert!(slice.service.name.is_empty() && slice.endpoints.len() == 1, "its addresses are kept");
    }
    assert!(matches!(slice(json!({"addressType": "FQDN"})), Ok(Object::NotOurs(..))));
}

#[test]
fn a_node_has_one_pod_cidr_per_family() {
    let node = json!({"metadata": {"name": "n"},
        "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00:1::/64", "10.2.0.0/24"]}});
    let Ok(Object::Node(n)) = decode(Kind::Node, &node) else { panic!() };
    assert_eq!(
        PerFamily::of(|family| n.pod_cidrs[family].unwrap().to_string()),
        PerFamily::new("10.1.0.0/24".to_owned(), "fd00:1::/64".to_owned())
    );
}

fn decoded(spec: Value, status: Value) -> Service {
    let value = json!({"metadata": {"name": "w", "namespace": "d"}, "spec": spec, "status": status});
    match decode(Kind::Service, &value) {
        Ok(Object::Service(service)) => service,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_load_balancer_in_full() {
    let spec = json!({
        "type": "LoadBalancer", "clusterIP": "10.96.0.1", "externalTrafficPolicy": "Local",
        "internalTrafficPolicy": "Local", "healthCheckNodePort": 32000, "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 77}},
        "loadBalancerSourceRanges": [" 10.1.2.3/8", "010.2.0.0/16", "nonsense", "", "fd00::/8"],
        "ports": [{"port": 80, "nodePort": 30080}],
    });
    let status = json!({"loadBalancer": {"ingress": [
        {"ip": "203.0.113.1"}, {"ip": "203.0.113.2", "ipMode": "Proxy"}, {"hostname": "lb.example"},
        {"ip": "203.0.113.3", "ipMode": "VIP"}, {"ip": "x"},
    ]}});
    let service = decoded(spec, status);
    let ips: Vec<String> = service.load_balancer_ips.iter().map(ToString::to_string).collect();
    assert_eq!(ips, ["203.0.113.1", "203.0.113.3"]);
    let ranges: Vec<String> = service.source_ranges.iter().map(ToString::to_string).collect();
    assert_eq!(ranges, ["10.0.0.0/8", "10.2.0.0/16", "fd00::/8"]);
    assert!(service.external_local && service.internal_local);
    assert_eq!((service.health_check_node_port, service.affinity), (32000, Some(77)));
    assert_eq!(service.ports[0].node_port, 30080);
}

#[test]
fn the_external_policy_needs_an_external_address() {
    let with = |kind: &str, external: Value| {
        decoded(
            json!({"type": kind, "clusterIP": "10.96.0.1", "externalTrafficPolicy": "Local",
                "externalIPs": external, "healthCheckNodePort": 32000}),
            json!({}),
        )
    };
    assert!(!with("ClusterIP", json!([])).external_local);
    assert!(with("ClusterIP", json!(["198.51.100.1"])).external_local);
    assert!(with("NodePort", json!([])).external_local);
    assert_eq!(with("NodePort", json!([])).health_check_node_port, 0, "load balancers only");
}

#[test]
fn invalid_source_ranges_do_not_open_the_service() {
    let error = service(json!({"clusterIP": "10.96.0.1", "loadBalancerSourceRanges": ["x", "y"]}));
    assert!(error.unwrap_err().contains("spec.loadBalancerSourceRanges"));
}

#[test]
fn affinity_without_its_configuration_has_the_api_servers_default() {
    let spec = json!({"clusterIP": "10.96.0.1", "sessionAffinity": "ClientIP"});
    assert_eq!(decoded(spec, json!({})).affinity, Some(10800));
}

#[test]
fn the_api_server_and_dns_are_priority_services() {
    let is_priority = |namespace: &str, name: &str, label: &str| {
        let value = json!({"metadata": {"name": name, "namespace": namespace, "labels": {"k8s-app": label}},
            "spec": {"clusterIP": "10.96.0.1"}});
        matches!(decode(Kind::Service, &value), Ok(Object::Service(s)) if s.priority)
    };
    assert!(is_priority("default", "kubernetes", ""));
    assert!(
        is_priority("kube-system", "kube-dns", "") && is_priority("kube-system", "rke2-coredns", "kube-dns")
    );
    assert!(!is_priority("shop", "kube-dns", "kube-dns") && !is_priority("kube-system", "metrics", ""));
}

#[test]
fn hints_and_the_node() {
    let body = json!({"addressType": "IPv4", "endpoints": [
        {"addresses": ["10.0.0.1"], "hints": {"forZones": [{"name": "za"}], "forNodes": [{"name": "n1"}]},
         "nodeName": "n1"},
        {"addresses": ["10.0.0.2"], "hints": {"forZones": []}},
    ]});
    let Ok(Object::EndpointSlice(s)) = slice(body) else { panic!() };
    let hints = Hints { zones: ["za".into()].into(), nodes: ["n1".into()].into() };
    assert_eq!(s.endpoints[0].place.as_deref(), Some(&Place { node: Some("n1".into()), hints }));
    assert_eq!(s.endpoints[1].place, None);
    let node = json!({"metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "za"}},
        "spec": {"podCIDR": "10.244.1.0/24"},
        "status": {"addresses": [{"type": "Hostname", "address": "n1"},
            {"type": "ExternalIP", "address": "203.0.113.7"}, {"type": "InternalIP", "address": "10.0.0.9"}]}});
    let Ok(Object::Node(Node { zone, addresses, .. })) = decode(Kind::Node, &node) else { panic!() };
    assert_eq!(zone.as_deref(), Some("za"));
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.0.0.9", "203.0.113.7"], "internal ones first");
}

#[test]
fn the_trigger_of_a_slice_is_decoded() {
    let slice = |time: &str| {
        let metadata = json!({"name": "s", "labels": {SERVICE_NAME_LABEL: "w"},
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": time}});
        decode(Kind::EndpointSlice, &json!({"metadata": metadata, "addressType": "IPv6"})).unwrap()
    };
    for (time, nanos) in [("2026-01-02T03:04:05Z", 0), ("2026-01-02T03:04:05.25Z", 250_000_000)] {
        let Object::TriggeredSlice(s, trigger) = slice(time) else { panic!("{time}") };
        let at = std::time::UNIX_EPOCH + std::time::Duration::new(1_767_323_045, nanos);
        assert_eq!((s.family, trigger.family, trigger.at), (Family::V6, Family::V6, at));
    }
    assert!(matches!(slice("yesterday"), Object::EndpointSlice(_)), "an invalid time is no error");
}

#[test]
fn the_type_of_a_service_does_not_change_its_other_fields() {
    for kind in ["ClusterIP", "NodePort", "LoadBalancer"] {
        let spec =
            json!({"type": kind, "clusterIP": "10.96.0.1", "ports": [{"port": 80, "nodePort": 30080}]});
        let status = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}});
        let service = decoded(spec, status);
        assert_eq!((service.ports[0].node_port, service.load_balancer_ips.len()), (30080, 1), "{kind}");
    }
}

#[test]
fn repeated_names_are_shared() {
    let of = |node: &str| {
        let endpoint = |n: u8| json!({"addresses": [format!("10.0.0.{n}")], "nodeName": node});
        let body = json!({"addressType": "IPv4", "ports": [{"name": "http", "port": 80}],
            "endpoints": [endpoint(1), endpoint(2)]});
        let Ok(Object::EndpointSlice(slice)) = slice(body) else { panic!() };
        slice
    };
    let (a, b, other) = (of("n1"), of("n1"), of("n2"));
    let place = |slice: &EndpointSlice, n: usize| slice.endpoints[n].place.clone().unwrap();
    assert!(Arc::ptr_eq(&place(&a, 0), &place(&a, 1)) && Arc::ptr_eq(&place(&a, 0), &place(&b, 1)));
    assert!(!Arc::ptr_eq(&place(&a, 0), &place(&other, 0)));
    assert!(Arc::ptr_eq(&a.ports[0].name, &b.ports[0].name));
    assert!(Arc::ptr_eq(&a.name.namespace, &b.service.namespace));
}

#[test]
fn a_node_that_is_about_to_be_deleted_is_leaving() {
    let leaving = |metadata: Value, spec: Value| {
        let node = decode(Kind::Node, &json!({"metadata": metadata, "spec": spec}));
        matches!(node, Ok(Object::Node(node)) if node.leaving)
    };
    let taint = json!({"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]});
    assert!(leaving(json!({"name": "n"}), taint));
    assert!(leaving(json!({"name": "n", "deletionTimestamp": "2026-01-01T00:00:00Z"}), json!({})));
    assert!(!leaving(json!({"name": "n", "deletionTimestamp": null}), json!({"taints": [{"key": "x"}]})));
}
