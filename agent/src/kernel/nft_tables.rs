// SPDX-License-Identifier: Apache-2.0
//! Whole tables of nf_tables (`<linux/netfilter/nf_tables.h>`): is one there, and away with it. Needs no
//! program `nft`.

use super::nfnetlink::{Attrs, NfError, NfSocket, Request};
use crate::core::model::Family;

/// The nfnetlink subsystem.
const NF_TABLES: u16 = 10;
const GET_TABLE: u16 = NF_TABLES << 8 | 1;
const DEL_TABLE: u16 = NF_TABLES << 8 | 2;
const ATTR_TABLE_NAME: u16 = 1;
/// Where kube-proxy's nftables mode has everything of a family.
const KUBE_PROXY: &str = "kube-proxy";

fn number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

fn request(kind: u16, family: Family) -> Request {
    let mut attrs = Attrs::default();
    attrs.put_str(ATTR_TABLE_NAME, KUBE_PROXY);
    Request { kind, flags: 0, family: number(family), attrs }
}

/// Which families have a table of kube-proxy's nftables mode, by [`Family::index`]. A kernel without
/// nf_tables has none.
///
/// # Errors
/// When the answer cannot be read.
pub fn find(socket: &mut NfSocket) -> Result<[bool; 2], NfError> {
    let answers = socket.ask(&Family::ALL.map(|family| request(GET_TABLE, family)))?;
    let mut found = [false; 2];
    for (family, answer) in Family::ALL.into_iter().zip(answers) {
        found[family.index()] = answer.is_ok();
    }
    Ok(found)
}

/// Removes the table of a family with all that is in it, at once.
///
/// # Errors
/// What the kernel said.
pub fn remove(socket: &mut NfSocket, family: Family) -> Result<(), NfError> {
    socket.transaction(NF_TABLES, &request(DEL_TABLE, family))
}
