// SPDX-License-Identifier: Apache-2.0
//! The kernel's IPVS table, as ipvsadm prints it, with the Service of each virtual server, or as JSON.

use std::fmt::Write as _;

use anyhow::Context;
use ipvs_netlink::{Client, Destination, Info, Service, ServiceId};

use super::filter::Filter;
use super::ipvsadm::{Columns, version_line};
use super::list_document::ListedServer;
use super::owners::{ChosenSettings, ServiceOwners};
use super::sort::{sort_destinations, sort_services};
use crate::core::model::{RsKey, VsKey};
use crate::kernel::ipvs::service_id;

/// The output format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ListFormat {
    /// Exactly as `ipvsadm -Ln`.
    #[default]
    Ipvsadm,
    /// With the Kubernetes Service of each virtual server, and the settings that are chosen for it.
    Wide,
    /// JSON with everything that the kernel tells, in fields.
    Json,
}

/// The kernel's table.
#[derive(Clone, Debug)]
pub struct IpvsTable {
    /// Version and size of the connection table.
    pub info: Info,
    /// Each virtual server with its real servers.
    pub servers: Vec<(Service, Vec<Destination>)>,
}

/// The timeouts of connections in seconds: TCP, TCP after a FIN, UDP.
///
/// # Errors
/// A missing module or privilege.
pub fn read_timeouts() -> anyhow::Result<[u32; 3]> {
    let config = Client::open().context("cannot read the timeouts")?.config()?;
    Ok([config.tcp, config.tcp_fin, config.udp])
}

/// The version of IPVS in the kernel.
///
/// # Errors
/// A missing module or privilege.
pub fn version() -> anyhow::Result<String> {
    Ok(Client::open().context("cannot read the version")?.info()?.version_text())
}

/// Active and inactive connections of each real server of a virtual server.
///
/// # Errors
/// A missing module or privilege, or the virtual server does not exist.
pub fn connections(key: &VsKey) -> anyhow::Result<Vec<(RsKey, u32, u32)>> {
    let mut client = Client::open().context("cannot read connections")?;
    let destinations = client.destinations(&service_id(key))?;
    let of = |dest: Destination| {
        let rs = RsKey { addr: dest.addr, port: dest.port };
        (rs, dest.active_connections, dest.inactive_connections)
    };
    Ok(destinations.into_iter().map(of).collect())
}

impl IpvsTable {
    /// Reads the table of the current network namespace: the part that `filter` selects, in ipvsadm's order if `sorted`.
    ///
    /// # Errors
    /// A missing module or privilege, or an incomplete reading.
    pub fn read(filter: &Filter, owners: &ServiceOwners, sorted: bool) -> anyhow::Result<Self> {
        let mut client = Client::open().context("cannot list the virtual servers")?;
        let info = client.info()?;
        let mut services = client.services()?;
        services.retain(|service| filter.has_service(service, owners));
        if sorted {
            sort_services(&mut services);
        }
        let mut servers = Vec::new();
        for service in services {
            let Some(mut destinations) = filter.select(client.destinations(&service.id)?) else { continue };
            if sorted {
                sort_destinations(&mut destinations);
            }
            servers.push((service, destinations));
        }
        Ok(Self { info, servers })
    }

    /// The text of ipvsadm; with `owners`, each virtual server has its Service and what is chosen for that.
    pub fn text(&self, columns: Columns, owners: Option<&ServiceOwners>) -> String {
        let mut text = version_line(&self.info) + &columns.title();
        for (service, destinations) in &self.servers {
            text.push_str(&columns.service(service));
            if let Some(owners) = owners {
                let _ = write!(text, "  # {}", owners.name_of(&service.id).unwrap_or("-"));
                let settings = owners.settings_of(&service.id).into_iter().flatten();
                text.extend(
                    settings.map(|(name, value)| format!(" {name}={}", value.as_str().unwrap_or_default())),
                );
            }
            text.push('\n');
            text.extend(destinations.iter().map(|dest| columns.destination(dest)));
        }
        text
    }

    /// The virtual servers as JSON.
    pub fn listed(&self, owners: &ServiceOwners) -> Vec<ListedServer> {
        self.servers.iter().map(|(service, dests)| ListedServer::build(service, dests, owners)).collect()
    }
}

impl ServiceOwners {
    /// The Service of a virtual server.
    pub(super) fn name_of(&self, id: &ServiceId) -> Option<&str> {
        crate::kernel::ipvs::vs_key(id).and_then(|key| self.get(&key.to_string()))
    }

    /// The settings that are chosen for a virtual server.
    pub(super) fn settings_of(&self, id: &ServiceId) -> Option<&ChosenSettings> {
        crate::kernel::ipvs::vs_key(id).and_then(|key| self.settings(&key.to_string()))
    }
}
