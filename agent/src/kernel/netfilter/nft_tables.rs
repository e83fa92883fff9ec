// SPDX-License-Identifier: Apache-2.0
//! Finds and removes the tables of kube-proxy's nftables mode, without the program `nft`.

use nftables_netlink::{Client, Command, CommitError, Error, Family as NftFamily, Scope, Transaction};

use crate::core::model::{Family, PerFamily};

/// The table of kube-proxy's nftables mode, one for each family.
const KUBE_PROXY: &str = "kube-proxy";

fn nft_family(family: Family) -> NftFamily {
    match family {
        Family::V4 => NftFamily::Ipv4,
        Family::V6 => NftFamily::Ipv6,
    }
}

/// Which families have a table of kube-proxy's nftables mode. A kernel without nf_tables has none.
///
/// # Errors
/// When the list cannot be read.
pub fn find(client: &mut Client) -> Result<PerFamily<bool>, Error> {
    let mut found = PerFamily::default();
    for family in Family::ALL {
        found[family] = match client.tables(Scope::Family(nft_family(family))) {
            Ok(tables) => tables.iter().any(|table| table.name == KUBE_PROXY),
            Err(Error::Refused(_)) => false,
            Err(error) => return Err(error),
        };
    }
    Ok(found)
}

/// The generation of nf_tables, which every change in the network namespace increases; `None`: the kernel has no
/// nf_tables.
///
/// # Errors
/// When the answer cannot be read.
pub fn generation(client: &mut Client) -> Result<Option<u32>, Error> {
    match client.generation() {
        Ok(generation) => Ok(Some(generation.id)),
        Err(Error::Refused(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes the table of a family with its contents, atomically.
///
/// # Errors
/// When the kernel refuses.
pub fn remove(client: &mut Client, family: Family) -> Result<(), CommitError> {
    let command = Command::DeleteTable { family: nft_family(family), table: KUBE_PROXY.to_owned() };
    client.commit(&Transaction::from_iter([command]))
}
