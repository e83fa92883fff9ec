// SPDX-License-Identifier: Apache-2.0
//! Finds and removes the tables of kube-proxy's nftables mode and of our rules mode `nftables`, without the program `nft`.

use nftables_netlink::{Client, Command, CommitError, Error, Family as NftFamily, Scope, Transaction};

use crate::core::mirror::comparison::{KUBE_PROXY, NftTables};
use crate::core::model::{Family, PerFamily};
use crate::core::plan::outcome::{Cause, OpError};
use crate::core::rules::nftables;
use crate::words;

pub fn nft_family(family: Family) -> NftFamily {
    match family {
        Family::V4 => NftFamily::Ipv4,
        Family::V6 => NftFamily::Ipv6,
    }
}

/// The tables of other modes that exist. A kernel without nf_tables has none.
///
/// # Errors
/// When the list cannot be read.
pub fn find(client: &mut Client) -> Result<PerFamily<NftTables>, Error> {
    let mut found = PerFamily::default();
    for family in Family::ALL {
        found[family] = match client.tables(Scope::Family(nft_family(family))) {
            Ok(tables) => {
                let has = |name: &str| tables.iter().any(|table| table.name == name);
                NftTables { kube_proxy: has(KUBE_PROXY), kube_ipvs: has(nftables::TABLE) }
            }
            Err(Error::Refused(_)) => NftTables::default(),
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

/// Whether the kernel has nf_tables.
///
/// # Errors
/// When it does not answer, or the process lacks a privilege.
pub fn is_available() -> Result<bool, Error> {
    Ok(generation(&mut Client::open()?)?.is_some())
}

/// Removes a table of a family with its contents, atomically.
///
/// # Errors
/// When the kernel refuses.
pub fn remove(client: &mut Client, family: Family, table: &str) -> Result<(), CommitError> {
    let command = Command::DeleteTable { family: nft_family(family), table: table.to_owned() };
    client.commit(&Transaction::from_iter([command]))
}

/// Removes tables of a family that are not in use.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_all(family: Family, tables: NftTables) -> Result<(), OpError> {
    for table in tables.names() {
        let failed = |error: &(dyn std::error::Error + 'static)| {
            let causes = words::causes(error);
            OpError::uncertain(Cause::Other, format!("cannot remove the nftables table {table}: {causes}"))
        };
        let mut client = Client::open().map_err(|error| failed(&error))?;
        remove(&mut client, family, table).map_err(|error| failed(&error))?;
        tracing::info!(%family, "removed the nftables table {table}, which is not in use");
    }
    Ok(())
}
