// SPDX-License-Identifier: Apache-2.0
//! One reading of the IPVS table, as far as it is about traffic.

use std::net::SocketAddr;
use std::time::Duration;

use super::super::ipvs_table::IpvsTable;
use super::super::ipvsadm::counters;
use super::super::owners::ServiceOwners;
use crate::core::model::VsKey;
use crate::kernel::ipvs::vs_key;

/// Everything since an object was made, from and to clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrafficCounters {
    pub connections: u64,
    pub packets: u64,
    pub bytes: u64,
}

/// The table at one time.
#[derive(Clone, Debug, Default)]
pub struct TableReading {
    /// By a clock that never goes back.
    pub at: Duration,
    pub virtual_servers: Vec<VirtualReading>,
}

/// A virtual server with its real servers.
#[derive(Clone, Debug)]
pub struct VirtualReading {
    /// `None`: a firewall mark.
    pub key: Option<VsKey>,
    /// `PROTO ADDR:PORT`, or the firewall mark.
    pub name: String,
    /// `NAMESPACE/NAME[:PORT-NAME]`, if the agent knows it.
    pub owner: Option<String>,
    pub scheduler: String,
    pub counters: TrafficCounters,
    pub real_servers: Vec<RealReading>,
}

/// A real server.
#[derive(Clone, Debug)]
pub struct RealReading {
    pub addr: SocketAddr,
    pub weight: u32,
    pub active: u32,
    pub inactive: u32,
    pub counters: TrafficCounters,
}

impl TableReading {
    /// The table as it was read at `at`.
    pub fn new(at: Duration, table: &IpvsTable, owners: &ServiceOwners) -> Self {
        let virtual_servers = table.servers.iter().map(|(service, destinations)| VirtualReading {
            key: vs_key(&service.id),
            name: service.id.to_string(),
            owner: owners.name_of(&service.id).map(str::to_owned),
            scheduler: service.scheduler.clone(),
            counters: sum(service.stats.as_ref().map(counters)),
            real_servers: destinations
                .iter()
                .map(|dest| RealReading {
                    addr: SocketAddr::new(dest.addr, dest.port),
                    weight: dest.weight,
                    active: dest.active_connections,
                    inactive: dest.inactive_connections,
                    counters: sum(dest.stats.as_ref().map(counters)),
                })
                .collect(),
        });
        Self { at, virtual_servers: virtual_servers.collect() }
    }
}

/// Both directions together.
fn sum(counters: Option<[u64; 5]>) -> TrafficCounters {
    let [connections, packets_in, packets_out, bytes_in, bytes_out] = counters.unwrap_or_default();
    TrafficCounters {
        connections,
        packets: packets_in.saturating_add(packets_out),
        bytes: bytes_in.saturating_add(bytes_out),
    }
}

#[cfg(test)]
mod tests {
    use ipvs_netlink::{Destination, Info, Service, ServiceId, Stats};

    use super::*;

    #[test]
    fn both_directions_are_added_and_services_are_named() {
        let mut service = Service::new(ServiceId::tcp("10.96.0.1:443".parse().unwrap()), "rr");
        let mut numbers = Stats::default();
        (numbers.connections, numbers.packets_in, numbers.packets_out) = (1, 2, 3);
        (numbers.bytes_in, numbers.bytes_out) = (40, 50);
        service.stats = Some(numbers);
        let mut dest = Destination::new("10.0.0.1:6443".parse().unwrap());
        dest.active_connections = 7;
        let info = Info::default();
        let table = IpvsTable { info, servers: vec![(service, vec![dest])] };
        let owners = ServiceOwners::parse("TCP 10.96.0.1:443 default/kubernetes:https\n");
        let reading = TableReading::new(Duration::from_secs(1), &table, &owners);
        let server = &reading.virtual_servers[0];
        assert_eq!(server.owner.as_deref(), Some("default/kubernetes:https"));
        assert_eq!(server.name, "TCP 10.96.0.1:443");
        assert_eq!(server.counters, TrafficCounters { connections: 1, packets: 5, bytes: 90 });
        assert_eq!(server.real_servers[0].active, 7);
        assert_eq!(server.real_servers[0].counters, TrafficCounters::default(), "the kernel told none");
    }
}
