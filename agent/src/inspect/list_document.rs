// SPDX-License-Identifier: Apache-2.0
//! The IPVS table, its connections and its timeouts as a document (`kube-ipvs list -o json`, docs/schemas/list.json).

use ipvs_netlink::{Destination, Service, ServiceFlags, ServiceId, Stats};
use serde::Serialize;

use super::ipvs_conn::IpvsConnection;
use super::ipvsadm::{counters, forward_name, rates};
use super::owners::{ChosenSettings, ServiceOwners};

/// The version of the JSON: a field that is removed or means something else gets the next one.
const SCHEMA_VERSION: u32 = 1;

/// What was asked for: one of the three lists.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ListDocument {
    pub schema_version: u32,
    /// Without `-c` and `--timeout`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_servers: Option<Vec<ListedServer>>,
    /// With `-c`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<Vec<ListedConnection>>,
    /// With `--timeout`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<ListedTimeouts>,
}

/// A virtual server, by address or by firewall mark.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ListedServer {
    /// `TCP`, `UDP` or `SCTP`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The firewall mark of a virtual server without an address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fwmark: Option<u32>,
    /// What identifies a virtual server of another kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    pub scheduler: String,
    /// `IP_VS_SVC_F_*` of `<linux/ip_vs.h>`.
    pub flags: u32,
    /// Seconds for which a client keeps its real server; null: it does not.
    pub persistence_seconds: Option<u32>,
    /// Since the virtual server was added; null: the kernel reports none.
    pub counters: Option<ListedTraffic>,
    /// Estimated by the kernel; null: it reports none.
    pub per_second: Option<ListedTraffic>,
    /// `NAMESPACE/NAME[:PORT]`; null: no agent knows one.
    pub service: Option<String>,
    /// What annotations or `kubeIPVS.serviceDefaults` choose for the Service: names of annotations without
    /// `kube-ipvs.io/`, and their values.
    pub settings: ChosenSettings,
    pub real_servers: Vec<ListedRealServer>,
}

/// A real server.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ListedRealServer {
    pub address: String,
    pub port: u16,
    /// `Masq`, `Route`, `Tunnel`, `Local` or `Bypass`.
    pub forward: String,
    pub weight: u32,
    /// The weight is 0: it gets no new connections.
    pub draining: bool,
    pub active_connections: u32,
    pub inactive_connections: u32,
    pub persistent_connections: u32,
    pub upper_threshold: u32,
    pub lower_threshold: u32,
    pub counters: Option<ListedTraffic>,
    pub per_second: Option<ListedTraffic>,
}

/// Numbers of connections, packets and bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ListedTraffic {
    pub connections: u64,
    pub packets_in: u64,
    pub packets_out: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

/// A connection that IPVS knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ListedConnection {
    pub protocol: String,
    pub state: String,
    /// Seconds until it is forgotten if no packet comes.
    pub expires_seconds: u64,
    pub client: String,
    pub virtual_server: String,
    pub real_server: String,
    pub service: Option<String>,
}

/// Seconds after which IPVS forgets idle connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ListedTimeouts {
    pub tcp: u32,
    pub tcp_fin: u32,
    pub udp: u32,
}

impl Default for ListDocument {
    fn default() -> Self {
        Self { schema_version: SCHEMA_VERSION, virtual_servers: None, connections: None, timeouts: None }
    }
}

impl ListedServer {
    /// A virtual server with its real servers.
    pub fn build(service: &Service, destinations: &[Destination], owners: &ServiceOwners) -> Self {
        let mut listed = Self {
            scheduler: service.scheduler.clone(),
            flags: service.flags.without_hashed().bits(),
            persistence_seconds: service.flags.contains(ServiceFlags::PERSISTENT).then_some(service.timeout),
            counters: ListedTraffic::build(service.stats.as_ref(), counters),
            per_second: ListedTraffic::build(service.stats.as_ref(), rates),
            service: owners.name_of(&service.id).map(str::to_owned),
            settings: owners.settings_of(&service.id).cloned().unwrap_or_default(),
            real_servers: destinations.iter().map(ListedRealServer::build).collect(),
            ..Self::default()
        };
        match &service.id {
            ServiceId::Address { protocol, addr, port } => {
                (listed.protocol, listed.address) = (Some(protocol.to_string()), Some(addr.to_string()));
                listed.port = Some(*port);
            }
            ServiceId::Fwmark { mark, .. } => listed.fwmark = Some(*mark),
            other => listed.id = Some(other.to_string()),
        }
        listed
    }
}

impl ListedRealServer {
    fn build(dest: &Destination) -> Self {
        Self {
            address: dest.addr.to_string(),
            port: dest.port,
            forward: forward_name(dest.forward).to_owned(),
            weight: dest.weight,
            draining: dest.weight == 0,
            active_connections: dest.active_connections,
            inactive_connections: dest.inactive_connections,
            persistent_connections: dest.persistent_connections,
            upper_threshold: dest.upper_threshold,
            lower_threshold: dest.lower_threshold,
            counters: ListedTraffic::build(dest.stats.as_ref(), counters),
            per_second: ListedTraffic::build(dest.stats.as_ref(), rates),
        }
    }
}

impl ListedTraffic {
    /// The numbers of [`counters`] or [`rates`].
    fn build(stats: Option<&Stats>, of: fn(&Stats) -> [u64; 5]) -> Option<Self> {
        let [connections, packets_in, packets_out, bytes_in, bytes_out] = of(stats?);
        Some(Self { connections, packets_in, packets_out, bytes_in, bytes_out })
    }
}

impl ListedConnection {
    /// A connection, with the Service of its virtual server.
    pub fn build(connection: &IpvsConnection, owners: &ServiceOwners) -> Self {
        let key = connection.virtual_server();
        Self {
            protocol: connection.protocol.clone(),
            state: connection.state.clone(),
            expires_seconds: connection.expires,
            client: connection.client.to_string(),
            virtual_server: connection.vip.to_string(),
            real_server: connection.real_server.to_string(),
            service: key.and_then(|key| owners.get(&key.to_string()).map(str::to_owned)),
        }
    }
}
