// SPDX-License-Identifier: Apache-2.0
//! `kube-ipvs list`: what IPVS holds, as `ipvsadm -Ln` prints it.

use std::io::Write as _;

use crate::cli::ListArgs;
use crate::inspect::list::{Format, Table};
use crate::inspect::owners::Owners;
use crate::words;

/// Prints the table of the kernel.
///
/// # Errors
/// When the kernel has no IPVS or may not be asked.
pub fn run(args: &ListArgs) -> anyhow::Result<()> {
    let table = Table::read()?;
    let owners = if args.output == Format::Ipvsadm {
        Owners::default()
    } else {
        Owners::ask().unwrap_or_else(|error| {
            eprintln!("kube-ipvs: Services are not shown: {}", words::chain(&error));
            Owners::default()
        })
    };
    let text = table.render(args.output, &owners);
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
