// SPDX-License-Identifier: Apache-2.0
//! From readings to rates: what passed between two readings, by Service.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::table_reading::{RealReading, TableReading, TrafficCounters, VirtualReading};
use crate::core::model::VsKey;

/// Traffic of one second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PerSecond {
    pub connections: f64,
    pub packets: f64,
    pub bytes: f64,
}

/// Connections now, and traffic since the reading before.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// Active and inactive.
    pub connections: u64,
    /// `None`: there is no earlier reading.
    pub per_second: Option<PerSecond>,
}

/// A Service with all its virtual servers, or a virtual server without a known Service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceLoad {
    /// `NAMESPACE/NAME`, or the name of the virtual server.
    pub name: String,
    pub load: Load,
    /// Those of each virtual server.
    pub real_servers: usize,
    /// Real servers of weight 0.
    pub draining: usize,
    pub virtual_servers: Vec<VirtualTraffic>,
}

/// A virtual server.
#[derive(Clone, Debug, PartialEq)]
pub struct VirtualTraffic {
    pub key: Option<VsKey>,
    /// `PROTO ADDR:PORT`, or the firewall mark.
    pub name: String,
    /// Empty: the port has no name, or the Service is unknown.
    pub port_name: String,
    pub scheduler: String,
    pub per_second: Option<PerSecond>,
    pub real_servers: Vec<RealTraffic>,
}

/// A real server.
#[derive(Clone, Debug, PartialEq)]
pub struct RealTraffic {
    pub addr: SocketAddr,
    pub weight: u32,
    pub active: u32,
    pub inactive: u32,
    pub per_second: Option<PerSecond>,
}

/// Remembers the last reading.
#[derive(Debug, Default)]
pub struct RateMeter(Option<Baseline>);

/// The counters of a reading.
#[derive(Debug)]
struct Baseline {
    at: Duration,
    servers: HashMap<String, ServerBaseline>,
}

#[derive(Debug)]
struct ServerBaseline {
    counters: TrafficCounters,
    real_servers: HashMap<SocketAddr, TrafficCounters>,
}

impl RateMeter {
    /// The traffic since the reading before, by Service.
    pub fn add(&mut self, reading: TableReading) -> Vec<ServiceLoad> {
        let baseline = Baseline::new(&reading);
        let before = self.0.replace(baseline);
        let seconds = before.as_ref().map(|before| reading.at.saturating_sub(before.at).as_secs_f64());
        let seconds = seconds.filter(|seconds| *seconds > 0.0);
        let before = before.filter(|_| seconds.is_some());
        let mut services = Services::default();
        for server in reading.virtual_servers {
            let earlier = before.as_ref().and_then(|before| before.servers.get(&server.name));
            services.add(server, earlier, seconds.unwrap_or(1.0));
        }
        services.list
    }
}

impl Baseline {
    fn new(reading: &TableReading) -> Self {
        let servers = reading.virtual_servers.iter().map(|server| {
            let real_servers = server.real_servers.iter().map(|real| (real.addr, real.counters)).collect();
            (server.name.clone(), ServerBaseline { counters: server.counters, real_servers })
        });
        Self { at: reading.at, servers: servers.collect() }
    }
}

/// Services in the order of their first virtual server.
#[derive(Default)]
struct Services {
    list: Vec<ServiceLoad>,
    places: HashMap<String, usize>,
}

impl Services {
    fn add(&mut self, server: VirtualReading, before: Option<&ServerBaseline>, seconds: f64) {
        let (name, port_name) = match &server.owner {
            Some(owner) => owner.split_once(':').unwrap_or((owner, "")),
            None => (server.name.as_str(), ""),
        };
        let place = *self.places.entry(name.to_owned()).or_insert_with(|| {
            self.list.push(ServiceLoad { name: name.to_owned(), ..ServiceLoad::default() });
            self.list.len() - 1
        });
        let Some(service) = self.list.get_mut(place) else { return };
        let port_name = port_name.to_owned();
        let reals = server.real_servers.into_iter().map(|real| {
            let earlier = before.and_then(|before| before.real_servers.get(&real.addr));
            RealTraffic::new(&real, earlier, seconds)
        });
        service.push(VirtualTraffic {
            key: server.key,
            name: server.name,
            port_name,
            scheduler: server.scheduler,
            per_second: rate(server.counters, before.map(|before| &before.counters), seconds),
            real_servers: reals.collect(),
        });
    }
}

impl ServiceLoad {
    fn push(&mut self, server: VirtualTraffic) {
        self.load.add(server.load());
        self.real_servers += server.real_servers.len();
        self.draining += server.draining();
        // In the order of addresses, whatever the order of the kernel is.
        let place = self.virtual_servers.partition_point(|other| other.key <= server.key);
        self.virtual_servers.insert(place, server);
    }
}

impl VirtualTraffic {
    /// Connections of its real servers, and its own traffic.
    pub fn load(&self) -> Load {
        let connections = self.real_servers.iter().map(|real| real.load().connections).sum();
        Load { connections, per_second: self.per_second }
    }

    /// The number of its real servers of weight 0.
    pub fn draining(&self) -> usize {
        self.real_servers.iter().filter(|real| real.is_draining()).count()
    }
}

impl RealTraffic {
    fn new(real: &RealReading, before: Option<&TrafficCounters>, seconds: f64) -> Self {
        let RealReading { addr, weight, active, inactive, counters } = *real;
        Self { addr, weight, active, inactive, per_second: rate(counters, before, seconds) }
    }

    /// Whether it gets no new connections.
    pub fn is_draining(&self) -> bool {
        self.weight == 0
    }

    /// Its connections and traffic.
    pub fn load(&self) -> Load {
        Load { connections: u64::from(self.active) + u64::from(self.inactive), per_second: self.per_second }
    }
}

impl Load {
    /// Adds the load of another part. A part without a rate leaves the rate of the others.
    pub fn add(&mut self, other: Self) {
        self.connections += other.connections;
        self.per_second = match (self.per_second, other.per_second) {
            (Some(a), Some(b)) => Some(PerSecond {
                connections: a.connections + b.connections,
                packets: a.packets + b.packets,
                bytes: a.bytes + b.bytes,
            }),
            (a, b) => a.or(b),
        };
    }
}

/// The rate between two readings. An object that is new has none: its counters may be old, when only its Service became
/// known.
fn rate(now: TrafficCounters, before: Option<&TrafficCounters>, seconds: f64) -> Option<PerSecond> {
    let before = *before?;
    let went_back =
        now.connections < before.connections || now.packets < before.packets || now.bytes < before.bytes;
    // The object was made again or its counters were zeroed: they count from then.
    let before = if went_back { TrafficCounters::default() } else { before };
    let per_second = |now: u64, before: u64| (now - before) as f64 / seconds;
    Some(PerSecond {
        connections: per_second(now.connections, before.connections),
        packets: per_second(now.packets, before.packets),
        bytes: per_second(now.bytes, before.bytes),
    })
}

#[cfg(test)]
mod tests {
    use super::super::top_tests::{many, reading, real, virtual_server};
    use super::*;

    fn rates(services: &[ServiceLoad]) -> Vec<Option<(f64, f64, f64)>> {
        let tuple = |rate: PerSecond| (rate.connections, rate.packets, rate.bytes);
        services.iter().map(|service| service.load.per_second.map(tuple)).collect()
    }

    fn one(at: u64, counters: [u64; 3]) -> TableReading {
        let real = real("10.0.0.1:80", 1, [2, 3], counters);
        reading(at, vec![virtual_server("10.96.0.1:80", Some("shop/web:http"), counters, vec![real])])
    }

    #[test]
    fn rates_are_differences_by_time() {
        let mut meter = RateMeter::default();
        let first = meter.add(one(10, [100, 1000, 50_000]));
        assert_eq!(rates(&first), [None], "one reading has no rate");
        assert_eq!((first[0].name.as_str(), first[0].load.connections), ("shop/web", 5));
        assert_eq!(first[0].virtual_servers[0].port_name, "http");
        let second = meter.add(one(12, [110, 1500, 70_000]));
        assert_eq!(rates(&second), [Some((5.0, 250.0, 10_000.0))]);
        let real = &second[0].virtual_servers[0].real_servers[0];
        assert_eq!(real.per_second.unwrap().packets, 250.0);
        // A reading that failed in between makes the time longer.
        assert_eq!(rates(&meter.add(one(22, [210, 1500, 70_000]))), [Some((10.0, 0.0, 0.0))]);
        assert_eq!(rates(&meter.add(one(22, [211, 1500, 70_000]))), [None], "no time passed");
    }

    #[test]
    fn counters_that_went_back_count_from_zero() {
        let mut meter = RateMeter::default();
        meter.add(one(0, [100, 1000, 50_000]));
        // Connections are above what they were, but the virtual server was made again.
        assert_eq!(rates(&meter.add(one(2, [120, 10, 600]))), [Some((60.0, 5.0, 300.0))]);
        assert_eq!(rates(&meter.add(one(4, [120, 10, 600]))), [Some((0.0, 0.0, 0.0))]);
    }

    #[test]
    fn new_and_removed_servers() {
        let server = |addr: &str, owner, counters| virtual_server(addr, owner, counters, vec![]);
        let mut meter = RateMeter::default();
        meter.add(reading(0, vec![server("10.96.0.1:80", Some("a/a"), [10, 10, 10])]));
        let both = meter.add(reading(
            1,
            vec![
                server("10.96.0.2:80", Some("b/b"), [1000, 1000, 1000]),
                server("10.96.0.1:80", Some("a/a"), [11, 12, 13]),
            ],
        ));
        assert_eq!(rates(&both), [None, Some((1.0, 2.0, 3.0))], "a new one has no rate yet");
        let left = meter.add(reading(2, vec![server("10.96.0.2:80", Some("b/b"), [1001, 1000, 1000])]));
        assert_eq!(left.len(), 1);
        assert_eq!(rates(&left), [Some((1.0, 0.0, 0.0))]);
        // It came back: with counters of its own, so without a rate.
        let back = meter.add(reading(3, vec![server("10.96.0.1:80", None, [12, 12, 12])]));
        assert_eq!(rates(&back), [None]);
        assert_eq!(back[0].name, "TCP 10.96.0.1:80", "without an agent it is named by its address");

        let with = |reals: &[&str]| {
            let reals = reals.iter().map(|addr| real(addr, 1, [0, 0], [8, 8, 8])).collect();
            virtual_server("10.96.0.3:80", Some("c/c"), [8, 8, 8], reals)
        };
        let mut meter = RateMeter::default();
        meter.add(reading(0, vec![with(&["10.0.0.1:1", "10.0.0.2:1"])]));
        let changed = meter.add(reading(1, vec![with(&["10.0.0.2:1", "10.0.0.3:1"])]));
        let reals = &changed[0].virtual_servers[0].real_servers;
        let has_rate: Vec<bool> = reals.iter().map(|real| real.per_second.is_some()).collect();
        assert_eq!(has_rate, [true, false]);
    }

    #[test]
    fn virtual_servers_of_a_service_are_added() {
        let table = |at, n: u64| {
            let reals = |weight| vec![real("10.0.0.1:1", weight, [1, 1], [n, n, n])];
            reading(
                at,
                vec![
                    virtual_server("192.0.2.1:80", Some("a/a:http"), [n, n, n], reals(1)),
                    virtual_server("10.96.0.1:80", Some("a/a:http"), [2 * n, n, n], reals(0)),
                ],
            )
        };
        let mut meter = RateMeter::default();
        meter.add(table(0, 10));
        let services = meter.add(table(2, 20));
        assert_eq!(services.len(), 1);
        assert_eq!((services[0].real_servers, services[0].draining, services[0].load.connections), (2, 1, 4));
        assert_eq!(rates(&services), [Some((15.0, 10.0, 10.0))]);
        let names: Vec<&str> =
            services[0].virtual_servers.iter().map(|server| server.name.as_str()).collect();
        assert_eq!(names, ["TCP 10.96.0.1:80", "TCP 192.0.2.1:80"]);
    }

    #[test]
    fn ten_thousand_services() {
        let mut meter = RateMeter::default();
        meter.add(many(0, 10_000));
        let services = meter.add(many(2, 10_000));
        assert_eq!(services.len(), 10_000);
        assert!(services.iter().all(|service| service.load.per_second.is_some()));
    }
}
