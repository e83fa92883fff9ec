// SPDX-License-Identifier: Apache-2.0
//! `kube-ipvs list`: the IPVS table, as `ipvsadm -Ln` prints it.

use crate::cli::ListArgs;
use crate::inspect::ipvs_table::{IpvsTable, ListFormat};
use crate::inspect::owners::ServiceOwners;
use crate::words;

/// Prints the table of the kernel.
///
/// # Errors
/// When the kernel has no IPVS, or a privilege is missing.
pub fn run(args: &ListArgs) -> anyhow::Result<()> {
    let table = IpvsTable::read()?;
    let is_plain = args.output == ListFormat::Ipvsadm;
    let owners = if is_plain { Ok(ServiceOwners::default()) } else { ServiceOwners::ask() };
    let owners = owners.unwrap_or_else(|error| {
        eprintln!("kube-ipvs: Services are not shown: {}", words::chain(&error));
        ServiceOwners::default()
    });
    super::print(&table.render(args.output, &owners))
}
