// SPDX-License-Identifier: Apache-2.0
//! The objects of the cluster, their random changes, and the expected kernel state.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fastrand::Rng;
use serde_json::{Value, json};

use crate::objects::{Port, ServiceBuilder, State, node, slice, slice_of};

/// The ports of Service `web`, and of its endpoints.
const WEB: [Port<'static>; 2] = [("http", "TCP", 80), ("dns", "UDP", 53)];
/// The TCP ports of every pod.
pub const POD_TCP: u16 = 8080;
/// As [`POD_TCP`], for datagrams.
pub const POD_UDP: u16 = 5353;
const POD_PORTS: [Port<'static>; 2] = [("http", "TCP", POD_TCP), ("dns", "UDP", POD_UDP)];
const LB: [Port<'static>; 1] = [("http", "TCP", 80)];
/// Node ports of `web`; ports from here on are node ports.
pub const NODE_PORTS: [u16; 2] = [30080, 30053];
/// Services that are added, changed and deleted.
pub const EXTRAS: u8 = 24;

/// Services without traffic that never change.
const IDLE: u16 = 100;

/// The state of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// In slices, with these conditions.
    In(State),
    /// Not in any slice.
    Gone,
}

/// A Service without traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Extra {
    external: bool,
    affinity: bool,
    udp: bool,
    /// Last octets of the addresses of its endpoints, which do not exist.
    endpoints: BTreeSet<u8>,
}

/// All objects.
#[derive(Clone, Debug)]
pub struct World {
    /// The addresses of the pods; the first two are always ready.
    pods: Vec<[IpAddr; 2]>,
    /// The state of each pod.
    pub phases: Vec<Phase>,
    extras: BTreeMap<u8, Extra>,
    /// A Service with an endpoint that the kernel refuses.
    wild: bool,
    nodes: Vec<Value>,
    /// Addresses of the node that serve node ports.
    node: [IpAddr; 2],
}

/// The expected kernel state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Virtual servers as in `ipvsadm -Sn`, with the real servers of weight other than 0.
    pub servers: BTreeMap<String, BTreeSet<String>>,
    /// Addresses on `kube-ipvs0`.
    pub addresses: BTreeSet<IpAddr>,
}

/// An address of the range of extra Services.
fn extra_ip(extra: u8, v6: bool, external: bool) -> String {
    match (v6, external) {
        (false, false) => format!("10.96.1.{extra}"),
        (false, true) => format!("198.51.100.{extra}"),
        (true, false) => format!("fd00:96::1:{extra:x}"),
        (true, true) => format!("2001:db8:100::{extra:x}"),
    }
}

fn idle_ips(number: u16) -> [String; 2] {
    [format!("10.96.{}.{}", 4 + number / 200, number % 200 + 1), format!("fd00:96::2:{number:x}")]
}

fn idle_endpoints(v6: bool) -> [&'static str; 2] {
    if v6 { ["fd00:244:3::5", "fd00:244:3::6"] } else { ["10.244.3.5", "10.244.3.6"] }
}

fn idle_objects(number: u16) -> Vec<Value> {
    let name = format!("idle-{number}");
    let ips = idle_ips(number);
    let service = ServiceBuilder::new(&name, &[&ips[0], &ips[1]], &LB).build();
    let slices = [false, true].map(|v6| slice(&name, &idle_endpoints(v6), &POD_PORTS[..1]));
    std::iter::once(service).chain(slices).collect()
}

/// Every address of one family that a Service can have.
pub fn all_vips(v6: bool) -> Vec<IpAddr> {
    let steady: &[&str] = if v6 {
        &["fd00:96::10", "2001:db8:113::10", "fd00:96::20", "2001:db8:113::20"]
    } else {
        &["10.96.0.10", "203.0.113.10", "10.96.0.20", "203.0.113.20"]
    };
    let extras = (1..=EXTRAS).flat_map(|n| [extra_ip(n, v6, false), extra_ip(n, v6, true)]);
    let all = steady.iter().map(ToString::to_string).chain(extras);
    all.filter_map(|text| text.parse().ok()).collect()
}

impl World {
    /// Steady Services only. `allowed`: who may use the load balancer.
    pub fn new(pods: Vec<[IpAddr; 2]>, node_addresses: [[IpAddr; 2]; 2]) -> Self {
        let object = |(name, addresses): (&str, [IpAddr; 2])| {
            let texts = addresses.map(|address| address.to_string());
            node(name, &[&texts[0], &texts[1]])
        };
        let phases = vec![Phase::In(State::Ready); pods.len()];
        let nodes = ["node-a", "node-b"].into_iter().zip(node_addresses).map(object).collect();
        Self { pods, phases, extras: BTreeMap::new(), wild: false, nodes, node: node_addresses[0] }
    }

    /// Makes one random change. `alive`: the pods that answer; only these may become ready.
    pub fn change(&mut self, rng: &mut Rng, alive: &[bool]) {
        match rng.u8(..10) {
            0..4 => self.change_pod(rng, alive),
            4..9 => self.change_extra(rng),
            _ => self.wild = !self.wild,
        }
    }

    fn change_pod(&mut self, rng: &mut Rng, alive: &[bool]) {
        let pod = rng.usize(2..self.pods.len());
        let next =
            [Phase::In(State::Ready), Phase::In(State::NotReady), Phase::In(State::Terminating), Phase::Gone];
        let next = next[rng.usize(..next.len())];
        // A pod that terminates is replaced by a new pod with its address.
        let comes_back = self.phases[pod] == Phase::In(State::Terminating) && next != Phase::Gone;
        if alive[pod] && !comes_back {
            self.phases[pod] = next;
        }
    }

    fn change_extra(&mut self, rng: &mut Rng) {
        let number = rng.u8(1..=EXTRAS);
        if rng.u8(..3) == 0 && self.extras.remove(&number).is_some() {
            return;
        }
        let endpoints = (0..rng.u8(..4)).map(|_| rng.u8(10..30)).collect();
        let extra = Extra { external: rng.bool(), affinity: rng.bool(), udp: rng.bool(), endpoints };
        self.extras.insert(number, extra);
    }

    /// All objects, as the API server has them.
    pub fn objects(&self) -> Vec<Value> {
        let mut all = self.nodes.clone();
        all.push(
            ServiceBuilder::new("web", &["10.96.0.10", "fd00:96::10"], &WEB)
                .external_ips(&["203.0.113.10", "2001:db8:113::10"])
                .node_ports(&NODE_PORTS)
                .build(),
        );
        all.push(
            ServiceBuilder::new("lb", &["10.96.0.20", "fd00:96::20"], &LB)
                .load_balancer(&["203.0.113.20", "2001:db8:113::20"])
                .source_ranges(&["192.168.50.100/32", "fd00:50::100/128"])
                .build(),
        );
        for family in 0..2 {
            let ready: Vec<(String, State)> = self.in_slices(family).collect();
            let endpoints: Vec<(&str, State)> =
                ready.iter().map(|(ip, state)| (ip.as_str(), *state)).collect();
            all.push(slice_of("web", &endpoints, &POD_PORTS));
            all.push(slice_of("lb", &endpoints, &POD_PORTS[..1]));
        }
        all.extend((0..IDLE).flat_map(idle_objects));
        self.extras.iter().for_each(|(number, extra)| all.extend(extra.objects(*number)));
        if self.wild {
            all.push(ServiceBuilder::new("wild", &["10.96.0.50"], &LB).build());
            all.push(slice("wild", &["192.168.50.255", "10.244.3.99"], &POD_PORTS[..1]));
        }
        all
    }

    /// The pods in the slices of a family.
    fn in_slices(&self, family: usize) -> impl Iterator<Item = (String, State)> {
        self.pods.iter().zip(&self.phases).enumerate().filter_map(move |(number, (pod, phase))| match phase {
            Phase::In(state) => {
                let place = if number % 2 == 0 { "@node-a" } else { "@node-b" };
                Some((format!("{}{place}", pod[family]), *state))
            }
            Phase::Gone => None,
        })
    }

    /// The expected kernel state for these objects.
    pub fn wanted(&self) -> Wanted {
        let mut wanted = Wanted::default();
        for family in 0..2 {
            let v6 = family == 1;
            let ready = |port| {
                let pods = self.pods.iter().zip(&self.phases);
                let ready = pods.filter(|(_, phase)| **phase == Phase::In(State::Ready));
                ready.map(move |(pod, _)| at(pod[family], port)).collect::<BTreeSet<_>>()
            };
            let steady = &all_vips(v6)[..4];
            for (vip, own) in steady.iter().zip([true, true, false, false]) {
                wanted.serve(*vip, "TCP", 80, ready(POD_TCP));
                if own {
                    wanted.serve(*vip, "UDP", 53, ready(POD_UDP));
                }
                wanted.addresses.insert(*vip);
            }
            wanted.serve(self.node[family], "TCP", NODE_PORTS[0], ready(POD_TCP));
            wanted.serve(self.node[family], "UDP", NODE_PORTS[1], ready(POD_UDP));
        }
        for vip in (0..IDLE).flat_map(idle_ips).filter_map(|text| text.parse().ok()) {
            let v6 = IpAddr::is_ipv6(&vip);
            let endpoints = idle_endpoints(v6).into_iter().filter_map(|text| text.parse().ok());
            wanted.serve(vip, "TCP", 80, endpoints.map(|ip| at(ip, POD_TCP)).collect());
            wanted.addresses.insert(vip);
        }
        for (number, extra) in &self.extras {
            extra.wanted(*number, &mut wanted);
        }
        if self.wild
            && let Ok(vip) = "10.96.0.50".parse()
        {
            wanted.serve(vip, "TCP", 80, BTreeSet::from(["10.244.3.99:8080".to_owned()]));
            wanted.addresses.insert(vip);
        }
        wanted
    }
}

impl Wanted {
    fn serve(&mut self, vip: IpAddr, protocol: &str, port: u16, real_servers: BTreeSet<String>) {
        let flag = if protocol == "TCP" { "-t" } else { "-u" };
        self.servers.insert(format!("{flag} {}", at(vip, port)), real_servers);
    }
}

/// `ADDRESS:PORT` as `ipvsadm -Sn` writes it.
fn at(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

impl Extra {
    fn protocol(&self) -> &'static str {
        if self.udp { "UDP" } else { "TCP" }
    }

    fn endpoints(&self, v6: bool) -> Vec<String> {
        let text = |host: &u8| if v6 { format!("fd00:244:3::{host:x}") } else { format!("10.244.3.{host}") };
        self.endpoints.iter().map(text).collect()
    }

    fn objects(&self, number: u8) -> Vec<Value> {
        let name = format!("extra-{number}");
        let port = [("port", self.protocol(), 80)];
        let ips = [false, true].map(|v6| extra_ip(number, v6, false));
        let mut service = ServiceBuilder::new(&name, &[&ips[0], &ips[1]], &port);
        if self.external {
            let ips = [false, true].map(|v6| extra_ip(number, v6, true));
            service = service.external_ips(&[&ips[0], &ips[1]]);
        }
        if self.affinity {
            service = service.affinity(60);
        }
        let slices = [false, true].map(|v6| {
            let endpoints = self.endpoints(v6);
            let texts: Vec<&str> = endpoints.iter().map(String::as_str).collect();
            let mut slice = slice(&name, &texts, &[("port", self.protocol(), POD_TCP)]);
            slice["addressType"] = json!(if v6 { "IPv6" } else { "IPv4" });
            slice["metadata"]["name"] = json!(format!("{name}-{}", if v6 { "v6" } else { "v4" }));
            slice
        });
        std::iter::once(service.build()).chain(slices).collect()
    }

    fn wanted(&self, number: u8, wanted: &mut Wanted) {
        for v6 in [false, true] {
            for external in [false, true].into_iter().filter(|external| !external || self.external) {
                let Ok(vip) = extra_ip(number, v6, external).parse::<IpAddr>() else { continue };
                let endpoints = self.endpoints(v6);
                let ips = endpoints.iter().filter_map(|text| text.parse().ok());
                wanted.serve(vip, self.protocol(), 80, ips.map(|ip| at(ip, POD_TCP)).collect());
                wanted.addresses.insert(vip);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_keeps_two_pods_ready() {
        let pod = |n: u8| [IpAddr::from([10, 244, 1, n]), format!("fd00:244:1::{n:x}").parse().unwrap()];
        let nodes =
            [2, 3].map(|n: u8| [IpAddr::from([192, 168, 50, n]), format!("fd00:50::{n}").parse().unwrap()]);
        let mut world = World::new((10..16).map(pod).collect(), nodes);
        let mut rng = Rng::with_seed(7);
        let mut states = BTreeSet::new();
        for _ in 0..500 {
            world.change(&mut rng, &[true; 6]);
            let wanted = world.wanted();
            let web = &wanted.servers["-t 10.96.0.10:80"];
            assert!(web.contains("10.244.1.10:8080") && web.contains("10.244.1.11:8080"), "{web:?}");
            assert!(
                all_vips(false)
                    .iter()
                    .chain(&all_vips(true))
                    .filter(|ip| wanted.addresses.contains(ip))
                    .count()
                    >= 8
            );
            states.insert(format!("{:?}", world.objects()));
        }
        assert!(states.len() > 300, "only {} different states", states.len());
    }
}
