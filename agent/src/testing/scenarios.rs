// SPDX-License-Identifier: Apache-2.0
//! Named scenarios: moves from one state of the cluster to another. Together they need every kind of op.

use serde_json::{Value, json};

use super::cluster::Cluster;
use crate::core::mirror::ObservedSet;
use crate::core::mirror::comparison::NftTables;
use crate::core::model::sets::{SetId, SetKind};
use crate::core::model::settings::RulesMode;
use crate::core::model::{Family, PerFamily, VsKey};
use crate::core::rules::chains::Table;
use crate::core::rules::removal::Removal;
use crate::core::rules::save::parse_save;
use crate::kernel::fake::FakeKernel;

pub struct Scenario {
    pub name: &'static str,
    pub before: Cluster,
    pub after: Cluster,
    /// A change of the kernel before the objects change.
    pub meanwhile: fn(&mut FakeKernel),
    /// The agent restarts after `meanwhile`.
    pub restarts: bool,
}

fn scenario(name: &'static str, before: Cluster, after: Cluster) -> Scenario {
    Scenario { name, before, after, meanwhile: |_| {}, restarts: false }
}

const TCP: &[&str] = &["p/TCP/8080"];

fn ports(list: Value) -> Value {
    json!({"clusterIP": "10.96.0.1", "ports": list})
}

fn tcp(node_port: u16) -> Value {
    json!([{"name": "p", "port": 80, "nodePort": node_port}])
}

/// `base` with more fields.
fn spec(mut base: Value, more: Value) -> Value {
    base.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    base
}

fn plain() -> Cluster {
    Cluster::default().service("a", ports(tcp(0)), &[])
}

fn both(cluster: Cluster) -> Cluster {
    cluster.slice("a", &["10.244.1.1@n1", "10.244.2.1@n2"], TCP)
}

fn load_balancer(more: Value) -> Cluster {
    let base = spec(ports(tcp(30080)), json!({"type": "LoadBalancer"}));
    both(Cluster::default().service("a", spec(base, more), &["203.0.113.1"]))
}

/// Rules of the iptables mode and the table of the nftables mode.
fn add_rules_of_other_modes(kernel: &mut FakeKernel) {
    *kernel = super::kernel();
    for rules in kernel.state.rules.iter_mut() {
        *rules = parse_save(
            "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-A - [0:0]\n-A KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-SVC-A\n\
             COMMIT\n*filter\n:KUBE-SERVICES - [0:0]\n-A FORWARD -m conntrack --ctstate NEW -m comment \
             --comment \"kubernetes service portals\" -j KUBE-SERVICES\nCOMMIT\n",
        );
    }
    let kube_proxy = NftTables { kube_proxy: true, ..NftTables::default() };
    kernel.state.node.nft_tables = PerFamily::new(kube_proxy, kube_proxy);
}

fn add_drift(kernel: &mut FakeKernel) {
    for server in kernel.state.virtual_servers.values_mut() {
        server.spec.scheduler = "wrr".into();
        server.real_servers.values_mut().for_each(|rs| rs.weight = 9);
    }
    kernel.state.node.sysctls.values_mut().for_each(|value| *value = 0);
    kernel.state.node.timeouts.tcp_fin = 120;
    kernel.state.addresses.insert("10.97.0.1/24".parse().unwrap());
    kernel.state.rules[Family::V4].jumps.clear();
    kernel.state.rules[Family::V6].chains.values_mut().for_each(|chain| _ = chain.pop());
}

/// Every real server has connections.
fn all_busy(kernel: &mut FakeKernel) {
    let servers = &kernel.state.virtual_servers;
    let all = servers.iter().flat_map(|(vs, server)| server.real_servers.keys().map(|rs| (*vs, rs)));
    kernel.state.busy = all.collect();
}

/// One of our sets is too small and another one has a wrong type.
fn damage_sets(kernel: &mut FakeKernel) {
    let set = |kind| SetId { kind, family: Family::V4 };
    kernel.state.sets.entry(set(SetKind::ClusterIp)).or_default().capacity = 1;
    let misfit = ObservedSet { misfit: true, ..ObservedSet::default() };
    kernel.state.sets.insert(set(SetKind::ExternalIp), misfit);
}

fn reset_kernel(kernel: &mut FakeKernel) {
    *kernel = super::kernel();
}

fn services() -> Vec<Scenario> {
    let v6 = json!({"clusterIPs": ["10.96.0.1", "fd00:96::1"], "ipFamilies": ["IPv4", "IPv6"]});
    let dual =
        |more: Value| Cluster::default().service("a", spec(spec(ports(tcp(30080)), v6.clone()), more), &[]);
    let two = json!([{"name": "p", "port": 80}, {"name": "q", "port": 81, "protocol": "UDP"}]);
    vec![
        scenario("a Service is added", Cluster::default(), both(plain())),
        scenario("a Service is deleted", both(plain()), Cluster::default()),
        scenario("endpoints are added and removed", both(plain()), plain().slice("a", &["10.244.1.1@n1", "10.244.1.2@n1"], TCP)),
        scenario("all endpoints terminate", both(plain()), plain().slice("a", &["-10.244.1.1@n1"], TCP)),
        scenario("a port changes and another is added", both(plain()), both(Cluster::default().service("a", ports(two), &[]))),
        scenario("a ClusterIP becomes a NodePort", both(plain()), both(Cluster::default().service("a", ports(tcp(30080)), &[]))),
        scenario("dual stack becomes single stack", dual(json!({})).slice("a", &["fd00:244:1::1@n1"], TCP), both(plain())),
        scenario(
            "session affinity changes in place",
            both(plain()),
            both(Cluster::default().service("a", spec(ports(tcp(0)), json!({"sessionAffinity": "ClientIP"})), &[])),
        ),
        scenario(
            "an external IP is no longer shared",
            Cluster::default()
                .service("a", spec(ports(tcp(0)), json!({"externalIPs": ["198.51.100.1"]})), &[])
                .service("b", json!({"clusterIP": "10.96.0.2", "externalIPs": ["198.51.100.1"], "ports": [{"port": 81}]}), &[]),
            Cluster::default().service("a", spec(ports(tcp(0)), json!({"externalIPs": ["198.51.100.1"]})), &[]),
        ),
        scenario(
            "two Services claim one address and port",
            Cluster::default().service("b", spec(ports(tcp(0)), json!({"clusterIP": "10.96.0.2", "externalIPs": ["198.51.100.1"]})), &[]),
            both(Cluster::default().service("a", spec(ports(tcp(0)), json!({"externalIPs": ["198.51.100.1"]})), &[]))
                .service("b", spec(ports(tcp(0)), json!({"clusterIP": "10.96.0.2", "externalIPs": ["198.51.100.1"]})), &[]),
        ),
    ]
}

fn load_balancers() -> Vec<Scenario> {
    let restricted = |ranges: &[&str]| load_balancer(json!({"loadBalancerSourceRanges": ranges}));
    let local = json!({"externalTrafficPolicy": "Local", "healthCheckNodePort": 32000});
    let sctp = json!([{"name": "p", "port": 80, "nodePort": 30080, "protocol": "SCTP"}]);
    vec![
        scenario("a load balancer becomes Local", load_balancer(json!({})), load_balancer(local.clone())),
        scenario("a load balancer becomes a ClusterIP", load_balancer(local), both(plain())),
        scenario(
            "source ranges are narrowed",
            restricted(&["192.168.0.0/16", "198.51.100.0/24"]),
            restricted(&["198.51.100.7/32"]),
        ),
        scenario("source ranges are removed", restricted(&["198.51.100.7/32"]), load_balancer(json!({}))),
        scenario(
            "a NodePort changes its protocol",
            load_balancer(json!({})),
            load_balancer(json!({"ports": sctp})),
        ),
    ]
}

fn kernels() -> Vec<Scenario> {
    let udp = |endpoints: &[&str]| {
        let port = json!([{"name": "p", "port": 53, "nodePort": 30053, "protocol": "UDP"}]);
        Cluster::default().service("a", ports(port), &[]).slice("a", endpoints, &["p/UDP/53"])
    };
    let many = (0..4).fold(plain(), |cluster, n| {
        let vip = format!("10.96.1.{n}");
        let more = json!({"clusterIP": vip, "externalIPs": ["198.51.100.9"]});
        cluster.service(&format!("many-{n}"), spec(ports(json!([{"port": 90 + n}])), more), &[])
    });
    let moved = Cluster { node: crate::core::model::Node { zone: None, ..super::node() }, ..both(plain()) };
    vec![
        Scenario {
            meanwhile: add_drift,
            ..scenario("other programs cause drift", both(plain()), both(plain()))
        },
        Scenario { meanwhile: all_busy, ..scenario("real servers drain", both(plain()), plain()) },
        Scenario {
            meanwhile: damage_sets,
            ..scenario("sets are too small or of a wrong type", plain(), many)
        },
        Scenario {
            meanwhile: add_rules_of_other_modes,
            restarts: true,
            ..scenario("rules of other kube-proxy modes exist", Cluster::default(), both(plain()))
        },
        Scenario {
            meanwhile: reset_kernel,
            ..scenario("the node loses its state", both(plain()), both(plain()))
        },
        scenario("a UDP endpoint is replaced", udp(&["10.244.1.1@n1"]), udp(&["10.244.2.1@n2"])),
        scenario("the first UDP endpoint is added", udp(&[]), udp(&["10.244.2.1@n2"])),
        scenario("the Node changes", both(plain()), moved),
    ]
}

fn routes() -> Vec<Scenario> {
    let more = json!({
        "clusterIPs": ["10.96.0.1", "fd00:96::1"], "ipFamilies": ["IPv4", "IPv6"], "externalIPs": ["198.51.100.1"],
    });
    let dual = || both(Cluster::default().service("a", spec(ports(tcp(30080)), more.clone()), &[]));
    let other = json!({"clusterIP": "10.96.0.2", "ports": [{"port": 81}]});
    let routed = |cluster: Cluster| {
        let routed = ["10.96.0.0/16", "fd00:96::/112"].iter().map(|net| net.parse().unwrap()).collect();
        Cluster { routed, ..cluster }
    };
    vec![
        scenario(
            "a Service is added behind a route",
            routed(dual()),
            routed(dual().service("b", other, &[])),
        ),
        Scenario {
            restarts: true,
            ..scenario("a route replaces the addresses of ClusterIPs", dual(), routed(dual()))
        },
        Scenario {
            restarts: true,
            ..scenario("addresses of ClusterIPs replace a route", routed(dual()), dual())
        },
        Scenario {
            meanwhile: |kernel| kernel.state.node.routes.clear(),
            ..scenario("another program removes the routes", routed(dual()), routed(dual()))
        },
    ]
}

/// All scenarios in both rules modes, and changes of the mode.
pub fn all() -> Vec<Scenario> {
    let all = || services().into_iter().chain(load_balancers()).chain(kernels()).chain(routes());
    let with = |rules: RulesMode, cluster: Cluster| Cluster { rules, ..cluster };
    let in_nftables = |scenario: Scenario| {
        let of = |cluster| with(RulesMode::Nftables, cluster);
        Scenario { before: of(scenario.before), after: of(scenario.after), ..scenario }
    };
    let change = |name, before, after| Scenario {
        meanwhile: leave_to_other_mode,
        restarts: true,
        ..scenario(name, with(before, load_balancer(json!({}))), with(after, load_balancer(json!({}))))
    };
    let changes = [
        change("from iptables to nftables", RulesMode::Iptables, RulesMode::Nftables),
        change("from nftables to iptables", RulesMode::Nftables, RulesMode::Iptables),
    ];
    all().chain(all().map(in_nftables)).chain(changes).collect()
}

/// Sets and rules as an agent in the other rules mode finds them.
fn leave_to_other_mode(kernel: &mut FakeKernel) {
    let state = &mut kernel.state;
    state.node.other_sets = std::mem::take(&mut state.sets).into_iter().collect();
    for family in Family::ALL {
        let rules = std::mem::take(&mut state.rules[family]);
        let mut leftovers = Removal::default();
        for (table, chain) in rules.chains.into_keys() {
            match table {
                Table::KubeIpvs => state.node.nft_tables[family].kube_ipvs = true,
                table => leftovers.tables.entry(table.name().to_owned()).or_default().chains.push(chain),
            }
        }
        state.rules[family].leftovers = leftovers;
    }
}

pub fn tcp_server(addr: &str, port: u16) -> VsKey {
    VsKey { protocol: crate::core::model::Protocol::Tcp, addr: addr.parse().unwrap(), port }
}
