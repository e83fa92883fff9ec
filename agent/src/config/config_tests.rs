// SPDX-License-Identifier: Apache-2.0

use super::*;
use crate::core::model::PerFamily;
use crate::core::model::settings::{LocalTraffic, NodePortAddresses};

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

fn parse(body: &str) -> anyhow::Result<Config> {
    Config::parse(&format!("{HEAD}{body}"), &ConfigFlags::default())
}

#[test]
fn the_config_map_of_kubeadm_gives_the_defaults() {
    let config = parse(
        "mode: ipvs\nclusterCIDR: 10.244.0.0/16\niptables:\n  masqueradeAll: false\n  masqueradeBit: null\n  \
         minSyncPeriod: 0s\nipvs:\n  excludeCIDRs: null\n  minSyncPeriod: 0s\n  scheduler: \"\"\n  \
         strictARP: false\n  syncPeriod: 0s\n  tcpFinTimeout: 0s\nmetricsBindAddress: \"\"\nbindAddress: 0.0.0.0\nenableProfiling: true\n",
    )
    .unwrap();
    assert_eq!(&*config.settings.scheduler, "rr");
    assert_eq!((config.min_sync_period, config.sync_period), (Duration::ZERO, Duration::from_secs(30)));
    assert_eq!(config.settings.masquerade_mark, 0x4000);
    assert_eq!(config.warnings.len(), 1, "zero values are not worth a line: {:?}", config.warnings);
    assert!(config.warnings[0].starts_with("enableProfiling has no effect"), "{:?}", config.warnings);
    assert_eq!(config.settings.drain_deadline, Some(Duration::from_secs(86400)));
    assert_eq!((config.settings.bind_address, config.settings.timeouts), (None, Timeouts::default()));
}

#[test]
fn cluster_cidrs_are_kept_by_family() {
    let config = parse("clusterCIDR: fd00:244::/48,10.244.0.0/16\n").unwrap();
    let LocalTraffic::Cidrs(cidrs) = config.settings.local else { panic!() };
    assert_eq!(
        PerFamily::of(|family| cidrs[family].unwrap().to_string()),
        PerFamily::new("10.244.0.0/16".to_owned(), "fd00:244::/48".to_owned())
    );
}

#[test]
fn every_way_to_detect_local_traffic() {
    let prefix = parse("detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: veth}\n");
    assert_eq!(prefix.unwrap().settings.local, LocalTraffic::Interface("veth+".into()));
    let bridge = parse("detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}\n");
    assert_eq!(bridge.unwrap().settings.local, LocalTraffic::Interface("cni0".into()));
    assert!(parse("detectLocalMode: NodeCIDR\n").unwrap().local_from_node);
}

#[test]
fn each_mistake_is_named() {
    let cases = [
        ("mode: iptables\n", "mode: \"iptables\""),
        ("mode: nftables\n", "run kube-proxy for others"),
        ("mode: [\n", "YAML"),
        ("mode: {a: b}\n", "mode: {\"a\":\"b\"} is not a text"),
        ("ipvs: fast\n", "ipvs: \"fast\" is not a mapping"),
        ("ipvs: {scheduler: 1}\n", "ipvs.scheduler: 1 is not a text"),
        ("ipvs: {syncPeriod: 30}\n", "ipvs.syncPeriod: 30 is not a duration"),
        ("ipvs: {syncPeriod: \"\"}\n", "ipvs.syncPeriod: \"\" is not a duration"),
        ("ipvs: {excludeCIDRs: 10.0.0.0/8}\n", "ipvs.excludeCIDRs: \"10.0.0.0/8\" is not a list"),
        ("ipvs: {excludeCIDRs: [1]}\n", "ipvs.excludeCIDRs: [1] is not a list of texts"),
        ("oomScoreAdj: 1001\n", "oomScoreAdj: 1001 is not in -1000–1000"),
        ("oomScoreAdj: much\n", "oomScoreAdj: \"much\" is not a whole number"),
        ("conntrack: {maxPerCore: -1}\n", "conntrack.maxPerCore: -1"),
        ("featureGates: {AllowServiceExternalIPs: \"no\"}\n", "featureGates"),
        ("featureGates: [a]\n", "featureGates: [\"a\"]"),
        ("logging: {format: xml}\n", "logging.format"),
        ("logging: {verbosity: -1}\n", "logging.verbosity is negative"),
        ("clientConnection: {qps: fast}\n", "clientConnection.qps: \"fast\" is not a number"),
        ("healthzBindAddress: 0.0.0.0:99999\n", "healthzBindAddress"),
        ("detectLocalMode: InterfaceNamePrefix\n", "detectLocal.interfaceNamePrefix is empty"),
        ("nodePortAddresses: primary\n", "nodePortAddresses: \"primary\" is not a list"),
        ("kubeIPVS: {keepEstablished: 1}\n", "kubeIPVS.keepEstablished: 1 is not true or false"),
        (
            "kubeIPVS: {clusterIPs: both}\n",
            "kubeIPVS.clusterIPs: \"both\" is not address, route or route-then-address",
        ),
        ("kubeIPVS: {rules: ebpf}\n", "kubeIPVS.rules: \"ebpf\" is not auto, iptables or nftables"),
        (
            "kubeIPVS: {serviceCIDRs: [10.96.0.0/12, \"::/0\"]}\n",
            "kubeIPVS.serviceCIDRs: ::/0 is every address",
        ),
        ("clusterCIDR: 10.244.0.0\n", "clusterCIDR: \"10.244.0.0\""),
        ("clusterCIDR: 10.0.0.0/8,11.0.0.0/8\n", "two CIDRs of one family"),
        ("ipvs: {excludeCIDRs: [x]}\n", "ipvs.excludeCIDRs: \"x\""),
        ("ipvs: {syncPeriod: 1s, minSyncPeriod: 2s}\n", "ipvs.syncPeriod"),
        ("ipvs: {syncPeriod: fast}\n", "ipvs.syncPeriod"),
        ("ipvs: {minSyncPeriod: -1s}\n", "ipvs.minSyncPeriod: -1s is negative"),
        ("ipvs: {tcpTimeout: -1s}\n", "ipvs.tcpTimeout: -1s is negative"),
        ("conntrack: {min: -1}\n", "conntrack.min: -1"),
        ("conntrack: {udpTimeout: -1s}\n", "conntrack.udpTimeout: -1s is negative"),
        ("nodePortAddresses: [primary, 10.0.0.0/8]\n", "primary cannot be combined"),
        ("nodePortAddresses: [10.0.0.0]\n", "nodePortAddresses: \"10.0.0.0\""),
        ("metricsBindAddress: here\n", "metricsBindAddress: \"here\""),
        ("metricsBindAddress: 1.2.3.4:0\n", "the port of"),
        ("bindAddress: localhost\n", "bindAddress: \"localhost\""),
        ("kubeIPVS: {metrics: {maxServices: -1}}\n", "kubeIPVS.metrics.maxServices is negative"),
        ("kubeIPVS: {drainDeadline: -1h}\n", "kubeIPVS.drainDeadline: -1h is negative"),
        ("kubeIPVS: {externalIPs: {allow: [x]}}\n", "kubeIPVS.externalIPs.allow: \"x\""),
        ("kubeIPVS: {serviceProxyName: a=b}\n", "kubeIPVS.serviceProxyName: \"a=b\""),
        ("iptables: {masqueradeBit: 32}\n", "masqueradeBit: 32"),
        ("iptables: {masqueradeAll: 3}\n", "iptables.masqueradeAll: 3 is not true or false"),
        ("detectLocalMode: BridgeInterface\n", "detectLocal.bridgeInterface is empty"),
        ("detectLocalMode: Magic\n", "detectLocalMode: \"Magic\""),
    ];
    for (body, expected) in cases {
        let error = format!("{:#}", parse(body).unwrap_err());
        assert!(error.contains(expected), "{body:?} gave {error:?}");
    }
    let error = format!("{:#}", Config::parse("kind: ConfigMap\n", &ConfigFlags::default()).unwrap_err());
    assert!(error.contains("ConfigMap"), "{error}");
    let error =
        format!("{:#}", Config::read(Some(Path::new("/nonexistent")), &ConfigFlags::default()).unwrap_err());
    assert!(error.contains("/nonexistent"), "{error}");
}

#[test]
fn our_own_settings_are_in_one_place() {
    let config = parse(
        "kubeIPVS:\n  drainDeadline: 0s\n  keepEstablished: true\n  serviceProxyName: kube-ipvs\n  externalIPs:\n    allow: [198.51.100.9/24]\n",
    )
    .unwrap();
    assert_eq!(config.settings.drain_deadline, None, "0s: no deadline, as kube-proxy");
    assert!(config.settings.keep_established);
    assert_eq!(config.service_proxy_name.as_deref(), Some("kube-ipvs"));
    assert_eq!(parse("").unwrap().service_proxy_name, None);
    assert_eq!(config.settings.external_ips, ExternalIps::Within(vec!["198.51.100.0/24".parse().unwrap()]));
    let none = parse("featureGates: {AllowServiceExternalIPs: false}\n").unwrap();
    assert_eq!(none.settings.external_ips, ExternalIps::None);
    assert_eq!(config.service_metrics, None);
    let traffic =
        |text: &str| parse(&format!("kubeIPVS: {{metrics: {{{text}}}}}\n")).unwrap().service_metrics;
    assert_eq!((traffic("perService: true"), traffic("maxServices: 5")), (Some(1000), None));
    assert_eq!(traffic("perService: true, maxServices: 0"), Some(0));
    let nobody = parse("kubeIPVS: {externalIPs: {allow: []}}\n").unwrap();
    assert_eq!(nobody.settings.external_ips, ExternalIps::Within(Vec::new()), "an empty list allows none");
}

#[test]
fn what_reaches_the_kernel() {
    let config = parse(
        "ipvs: {strictARP: true, tcpFinTimeout: 20500ms}\nbindAddress: 10.1.1.1\nnodePortAddresses: [primary]\n\
         conntrack: {maxPerCore: 0, tcpBeLiberal: true, udpTimeout: 40s, tcpEstablishedTimeout: 0s}\n",
    )
    .unwrap();
    assert_eq!(config.settings.timeouts, Timeouts { tcp: 0, tcp_fin: 20, udp: 0 });
    assert_eq!(config.settings.node_port_addresses, NodePortAddresses::Primary);
    assert_eq!(config.settings.bind_address, Some("10.1.1.1".parse().unwrap()));
    assert_eq!(config.metrics_address.to_string(), "127.0.0.1:10249");
    let v6 = parse("bindAddress: \"::\"\n").unwrap();
    assert_eq!((v6.settings.bind_address, v6.metrics_address.to_string().as_str()), (None, "[::1]:10249"));
    let bare = parse("metricsBindAddress: 0.0.0.0\n").unwrap();
    assert_eq!(bare.metrics_address.to_string(), "0.0.0.0:10249");
    let sysctls: Vec<String> = config
        .node_settings()
        .unwrap()
        .sysctls
        .iter()
        .map(|s| format!("{}={}", s.path.trim_start_matches("/proc/sys/net/"), s.value))
        .collect();
    for expected in [
        "ipv4/conf/all/arp_ignore=1",
        "ipv4/conf/all/arp_announce=2",
        "netfilter/nf_conntrack_tcp_be_liberal=1",
        "netfilter/nf_conntrack_udp_timeout=40",
        "netfilter/nf_conntrack_tcp_timeout_close_wait=3600",
    ] {
        assert!(sysctls.iter().any(|s| s == expected), "{expected} is not in {sysctls:?}");
    }
    assert!(!sysctls.iter().any(|s| s.contains("established") || s.contains("_max")), "{sysctls:?}");
}

#[test]
fn addresses_and_networks_are_read_as_kube_proxy_reads_them() {
    let config = parse(
        "bindAddress: 010.001.1.1\nhealthzBindAddress: 000.0.0.0:010256\nmetricsBindAddress: 127.000.000.001:10249\n\
         clusterCIDR: 010.244.0.0/016,fd00::/64\nnodePortAddresses: [\"192.168.050.0/24\"]\n\
         ipvs: {excludeCIDRs: [010.0.0.0/8]}\n\
         kubeIPVS: {protectedCIDRs: [010.1.0.0/16], externalIPs: {allow: [\"::ffff:198.51.100.0/120\"]}}\n",
    )
    .unwrap();
    let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNet>>();
    assert_eq!(config.settings.bind_address, Some("10.1.1.1".parse().unwrap()));
    assert_eq!(config.healthz_address, Some("0.0.0.0:10256".parse().unwrap()));
    assert_eq!(config.metrics_address, "127.0.0.1:10249".parse().unwrap());
    let LocalTraffic::Cidrs(cidrs) = config.settings.local else { panic!("{:?}", config.settings.local) };
    assert_eq!(
        cidrs.into_iter().map(Option::unwrap).collect::<Vec<_>>(),
        nets(&["10.244.0.0/16", "fd00::/64"])
    );
    assert_eq!(config.settings.node_port_addresses, NodePortAddresses::Cidrs(nets(&["192.168.50.0/24"])));
    assert_eq!(
        (config.settings.exclude_cidrs, config.settings.protected),
        (nets(&["10.0.0.0/8"]), nets(&["10.1.0.0/16"]))
    );
    assert_eq!(config.settings.external_ips, ExternalIps::Within(nets(&["198.51.100.0/24"])));
    let mapped =
        parse("bindAddress: \"::ffff:10.1.1.1\"\nmetricsBindAddress: \"[::ffff:127.0.0.1]:80\"\n").unwrap();
    assert_eq!(mapped.settings.bind_address, Some("10.1.1.1".parse().unwrap()));
    assert_eq!(mapped.metrics_address, "127.0.0.1:80".parse().unwrap());
    assert_eq!(mapped.healthz_address, Some("0.0.0.0:10256".parse().unwrap()), "its family is IPv4");
}

#[test]
fn unknown_and_duplicate_fields_are_warnings() {
    let config = parse(
        "mode: ipvs\nnonsense: 1\nipvs: {sheduler: lc, scheduler: rr, scheduler: wlc}\nkubeIPVS: {x: 1}\n",
    );
    let config = config.unwrap();
    assert_eq!(&*config.settings.scheduler, "wlc", "the last value is used");
    for expected in
        ["unknown field nonsense", "unknown field ipvs.sheduler", "unknown field kubeIPVS.x", "twice"]
    {
        assert!(config.warnings.iter().any(|w| w.contains(expected)), "{expected}: {:?}", config.warnings);
    }
    let gates = parse("featureGates: {AllowServiceExternalIP: false, ContextualLogging: true}\n").unwrap();
    assert_eq!(gates.warnings.len(), 1, "{:?}", gates.warnings);
    assert!(gates.warnings[0].contains("AllowServiceExternalIP "), "{:?}", gates.warnings);
}

/// A value for the field that is neither its zero nor its default.
fn sample(field: &table::Field) -> Value {
    use serde_json::json;
    match (field.path, field.field_type) {
        ("mode", _) => json!("ipvs"),
        ("detectLocalMode", _) => json!("NodeCIDR"),
        ("bindAddress", _) => json!("192.0.2.1"),
        ("logging.format", _) => json!("json"),
        ("kubeIPVS.configReload.mode", _) => json!("ignore"),
        ("kubeIPVS.clusterIPs", _) => json!("route"),
        ("kubeIPVS.realServerOrder", _) => json!("node"),
        ("kubeIPVS.rules", _) => json!("nftables"),
        ("kubeIPVS.serviceDefaults", _) => json!([{"settings": {"hairpin": false}}]),
        ("clusterCIDR", _) => json!("192.0.2.0/24"),
        (path, table::FieldType::Text) if path.ends_with("BindAddress") => json!("192.0.2.1:1234"),
        (path, table::FieldType::Bool) => json!(!path.ends_with("localhostNodePorts")),
        (_, table::FieldType::Int) => json!(7),
        (_, table::FieldType::Float) => json!(7.5),
        (_, table::FieldType::Text) => json!("text"),
        (_, table::FieldType::Duration) => json!("25s"),
        (_, table::FieldType::List) => json!(["192.0.2.0/24"]),
        (_, table::FieldType::Gates) => json!({"AllowServiceExternalIPs": false}),
        (_, table::FieldType::Entries) => json!([{}]),
        (_, table::FieldType::Any) => json!({"a": "b"}),
    }
}

/// A field with an effect changes the configuration. A field without changes nothing but the warnings, if it has an
/// effect in kube-proxy.
#[test]
fn every_field_does_what_the_table_says() {
    let plain = Config::read(None, &ConfigFlags::default()).unwrap();
    for field in table::FIELDS {
        let mut value = sample(field);
        for name in field.path.rsplit('.') {
            value = serde_json::json!({name: value});
        }
        value["apiVersion"] = API_VERSION.into();
        value["kind"] = KIND.into();
        let config = Config::parse(&value.to_string(), &ConfigFlags::default()).unwrap();
        let warned = config.warnings.iter().any(|w| w.starts_with(field.path));
        let same = Config {
            values: config.values.clone(),
            warnings: config.warnings.clone(),
            min_sync_period: config.min_sync_period,
            ..plain.clone()
        };
        let acts = config != same || config.min_sync_period > Duration::ZERO;
        // These act only together with another field, and mode has one value.
        let others = ["mode", "kubeIPVS.metrics.maxServices", "kubeIPVS.serviceCIDRs"];
        let alone = field.path.starts_with("detectLocal.") || others.contains(&field.path);
        assert_eq!(acts, field.effect == table::Effect::Acts && !alone, "{}", field.path);
        assert_eq!(warned, matches!(field.effect, table::Effect::Missing(_)), "{}", field.path);
        assert_eq!(config.values.lines().filter(|(.., origin)| *origin == Origin::File).count(), 1);
    }
}
