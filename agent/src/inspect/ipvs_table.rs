// SPDX-License-Identifier: Apache-2.0
//! The kernel's IPVS table, byte for byte as `ipvsadm -Ln` prints it, with the Service of each virtual server, or as
//! JSON.

use std::fmt::Write as _;
use std::net::SocketAddr;

use anyhow::Context;
use ipvs_netlink::{
    Client, Destination, Family, ForwardMethod, Info, PersistenceMask, Service, ServiceFlags, ServiceId,
};
use serde_json::{Value, json};

use super::owners::ServiceOwners;
use super::sort::{sort_destinations, sort_services};

/// The output format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ListFormat {
    /// Exactly as `ipvsadm -Ln`.
    #[default]
    Ipvsadm,
    /// With the Kubernetes Service of each virtual server.
    Wide,
    /// JSON, one object per virtual server.
    Json,
}

/// The kernel's table, in ipvsadm's order.
#[derive(Clone, Debug)]
pub struct IpvsTable {
    /// Version and size of the connection table.
    pub info: Info,
    /// Each virtual server with its real servers.
    pub servers: Vec<(Service, Vec<Destination>)>,
}

impl IpvsTable {
    /// Reads the table of the current network namespace.
    ///
    /// # Errors
    /// A missing module or privilege, or an incomplete reading.
    pub fn read() -> anyhow::Result<Self> {
        let mut client = Client::open().context("cannot list the virtual servers")?;
        let info = client.info()?;
        let mut services = client.services()?;
        sort_services(&mut services);
        let mut servers = Vec::with_capacity(services.len());
        for service in services {
            let mut destinations = client.destinations(&service.id)?;
            sort_destinations(&mut destinations);
            servers.push((service, destinations));
        }
        Ok(Self { info, servers })
    }

    /// Renders the table. All formats except ipvsadm's use `owners`.
    pub fn render(&self, format: ListFormat, owners: &ServiceOwners) -> String {
        match format {
            ListFormat::Ipvsadm => self.render_text(None),
            ListFormat::Wide => self.render_text(Some(owners)),
            ListFormat::Json => self.render_json(owners),
        }
    }

    fn render_text(&self, owners: Option<&ServiceOwners>) -> String {
        let mut text = format!(
            "IP Virtual Server version {} (size={})\n\
             Prot LocalAddress:Port Scheduler Flags\n  \
             -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n",
            self.info.version_text(),
            self.info.connection_table_size
        );
        for (service, destinations) in &self.servers {
            text.push_str(&service_line(service));
            if let Some(owners) = owners {
                let _ = write!(text, "  # {}", owners.name_of(&service.id).unwrap_or("-"));
            }
            text.push('\n');
            for dest in destinations {
                let addr = SocketAddr::new(dest.addr, dest.port).to_string();
                let _ = writeln!(
                    text,
                    "  -> {addr:<28} {:<7} {:<6} {:<10} {:<10}",
                    forward_name(dest.forward),
                    dest.weight as i32,
                    dest.active_connections,
                    dest.inactive_connections
                );
            }
        }
        text
    }

    fn render_json(&self, owners: &ServiceOwners) -> String {
        let servers: Vec<Value> = self.servers.iter().map(|(s, d)| service_json(s, d, owners)).collect();
        format!("{:#}\n", Value::Array(servers))
    }
}

fn service_line(service: &Service) -> String {
    let mut line = match &service.id {
        ServiceId::Fwmark { mark, family: Family::Inet6 } => format!("FWM  {mark} IPv6"),
        ServiceId::Fwmark { mark, .. } => format!("FWM  {mark}"),
        // Protocol padded to four, then a space: `TCP  `, `SCTP `.
        ServiceId::Address { protocol, addr, port } => {
            format!("{:<4} {}", protocol.to_string(), SocketAddr::new(*addr, *port))
        }
        other => other.to_string(),
    };
    let _ = write!(line, " {}", service.scheduler);
    line.push_str(&scheduler_flags(service));
    if service.flags.contains(ServiceFlags::PERSISTENT) {
        let _ = write!(line, " persistent {}", service.timeout);
        match service.persistence_mask {
            PersistenceMask::V4(mask) if mask != std::net::Ipv4Addr::BROADCAST => {
                let _ = write!(line, " mask {mask}");
            }
            PersistenceMask::V6(prefix) if prefix != 128 => {
                let _ = write!(line, " mask {prefix}");
            }
            _ => {}
        }
        if let Some(name) = &service.pe_name {
            let _ = write!(line, " pe {name}");
        }
    }
    if service.flags.contains(ServiceFlags::ONE_PACKET) {
        line.push_str(" ops");
    }
    line
}

/// ` (name,name)` for the scheduler's own flags, as ipvsadm names them.
fn scheduler_flags(service: &Service) -> String {
    let names = match service.scheduler.as_str() {
        "sh" => ["sh-fallback", "sh-port", "flag-3"],
        "mh" => ["mh-fallback", "mh-port", "flag-3"],
        _ => ["flag-1", "flag-2", "flag-3"],
    };
    let flags = [ServiceFlags::SCHED1, ServiceFlags::SCHED2, ServiceFlags::SCHED3];
    let set: Vec<&str> =
        flags.iter().zip(names).filter(|(flag, _)| service.flags.contains(**flag)).map(|(_, n)| n).collect();
    if set.is_empty() { String::new() } else { format!(" ({})", set.join(",")) }
}

fn forward_name(forward: ForwardMethod) -> &'static str {
    match forward {
        ForwardMethod::Masquerade => "Masq",
        ForwardMethod::Local => "Local",
        ForwardMethod::Tunnel => "Tunnel",
        ForwardMethod::Route => "Route",
        _ => "Bypass",
    }
}

fn service_json(service: &Service, destinations: &[Destination], owners: &ServiceOwners) -> Value {
    let mut object = match &service.id {
        ServiceId::Address { protocol, addr, port } => {
            json!({"protocol": protocol.to_string(), "address": addr.to_string(), "port": port})
        }
        ServiceId::Fwmark { mark, .. } => json!({"fwmark": mark}),
        other => json!({"id": other.to_string()}),
    };
    let real_servers: Vec<Value> = destinations
        .iter()
        .map(|dest| {
            json!({
                "address": dest.addr.to_string(),
                "port": dest.port,
                "forward": forward_name(dest.forward),
                "weight": dest.weight,
                "activeConnections": dest.active_connections,
                "inactiveConnections": dest.inactive_connections,
            })
        })
        .collect();
    object["scheduler"] = json!(service.scheduler);
    object["flags"] = json!(service.flags.without_hashed().bits());
    object["persistenceSeconds"] =
        json!(service.flags.contains(ServiceFlags::PERSISTENT).then_some(service.timeout));
    object["service"] = json!(owners.name_of(&service.id));
    object["realServers"] = Value::Array(real_servers);
    object
}

impl ServiceOwners {
    /// The Service of a virtual server.
    fn name_of(&self, id: &ServiceId) -> Option<&str> {
        crate::kernel::ipvs::vs_key(id).and_then(|key| self.get(&key.to_string()))
    }
}
