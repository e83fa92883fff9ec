// SPDX-License-Identifier: Apache-2.0
//! `kube-ipvs list`: the IPVS table, as `ipvsadm -Ln` prints it.

use crate::cli::ListArgs;
use crate::inspect::filter::Filter;
use crate::inspect::ipvs_conn;
use crate::inspect::ipvs_table::{IpvsTable, ListFormat, read_timeouts};
use crate::inspect::ipvsadm::Columns;
use crate::inspect::list_document::{ListDocument, ListedConnection, ListedTimeouts};
use crate::inspect::owners::ServiceOwners;

/// Prints a part of the kernel's IPVS state.
///
/// # Errors
/// The kernel has no IPVS, a privilege is missing, or a Service is named and no agent runs that knows Services.
pub fn run(args: &ListArgs) -> anyhow::Result<()> {
    let filter = args.filter();
    if args.show.timeout {
        return super::print(&timeouts(args.output)?);
    }
    let owners = owners(args.output, &filter)?;
    let is_json = args.output == ListFormat::Json;
    let shown = (args.output == ListFormat::Wide).then_some(&owners);
    if args.show.connections {
        return super::print(&match is_json {
            true => connections(&filter, &owners)?,
            false => ipvs_conn::text(&filter, &owners, shown.is_some())?,
        });
    }
    let table = IpvsTable::read(&filter, &owners, !args.nosort)?;
    super::print(&match is_json {
        true => document(&ListDocument {
            virtual_servers: Some(table.listed(&owners)),
            ..ListDocument::default()
        })?,
        false => table.text(args.columns(), shown),
    })
}

/// The Services of virtual servers, if the list needs them.
fn owners(format: ListFormat, filter: &Filter) -> anyhow::Result<ServiceOwners> {
    if format == ListFormat::Ipvsadm && !filter.needs_owners() {
        return Ok(ServiceOwners::default());
    }
    match ServiceOwners::ask(&filter.owners_of()) {
        Err(error) if filter.needs_owners() => {
            Err(anyhow::Error::from(error).context("cannot select by Service"))
        }
        Err(error) => {
            eprintln!("kube-ipvs: Services are not shown: {error}");
            Ok(ServiceOwners::default())
        }
        Ok(known) => Ok(known),
    }
}

fn timeouts(format: ListFormat) -> anyhow::Result<String> {
    let [tcp, tcp_fin, udp] = read_timeouts()?;
    Ok(match format {
        ListFormat::Json => {
            let timeouts = Some(ListedTimeouts { tcp, tcp_fin, udp });
            document(&ListDocument { timeouts, ..ListDocument::default() })?
        }
        _ => format!("Timeout (tcp tcpfin udp): {tcp} {tcp_fin} {udp}\n"),
    })
}

fn connections(filter: &Filter, owners: &ServiceOwners) -> anyhow::Result<String> {
    let mut all = Vec::new();
    ipvs_conn::read(filter, owners, |connection| all.push(ListedConnection::build(connection, owners)))?;
    document(&ListDocument { connections: Some(all), ..ListDocument::default() })
}

fn document(document: &ListDocument) -> anyhow::Result<String> {
    Ok(format!("{:#}\n", serde_json::to_value(document)?))
}

impl ListArgs {
    fn filter(&self) -> Filter {
        Filter {
            target: self.target.clone(),
            namespace: self.namespace.clone(),
            protocol: self.protocol.map(Into::into),
            draining: self.draining,
            empty: self.empty,
        }
    }

    fn columns(&self) -> Columns {
        let (show, exact) = (&self.show, self.exact);
        match () {
            () if show.stats => Columns::Stats { exact },
            () if show.rate => Columns::Rate { exact },
            () if show.thresholds => Columns::Thresholds,
            () if show.persistent_conn => Columns::Persistent,
            () => Columns::Usual,
        }
    }
}
