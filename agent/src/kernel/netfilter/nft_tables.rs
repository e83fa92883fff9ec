// SPDX-License-Identifier: Apache-2.0
//! Whole tables of nf_tables (`<linux/netfilter/nf_tables.h>`): is one there, and away with it. Needs no
//! program `nft`.

use super::nfnetlink::{AttrIter, Attrs, NfError, NfSocket, Request};
use crate::core::model::Family;

/// The nfnetlink subsystem.
const NF_TABLES: u16 = 10;
const GET_TABLE: u16 = NF_TABLES << 8 | 1;
const DEL_TABLE: u16 = NF_TABLES << 8 | 2;
const GET_GENERATION: u16 = NF_TABLES << 8 | 16;
const ATTR_TABLE_NAME: u16 = 1;
const ATTR_GENERATION: u16 = 1;
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

/// A number that goes up with every change of tables, chains and rules in the network namespace; `None` from
/// a kernel without nf_tables.
///
/// # Errors
/// When the answer cannot be read.
pub fn generation(socket: &mut NfSocket) -> Result<Option<u32>, NfError> {
    let request = Request { kind: GET_GENERATION, flags: 0, family: 0, attrs: Attrs::default() };
    let answer = socket.ask(&[request])?.pop();
    let Some(Ok(answer)) = answer else { return Ok(None) };
    parse_generation(&answer)
}

pub(in crate::kernel) fn parse_generation(answer: &[u8]) -> Result<Option<u32>, NfError> {
    for attr in AttrIter(answer) {
        if let (ATTR_GENERATION, &[a, b, c, d]) = attr? {
            return Ok(Some(u32::from_be_bytes([a, b, c, d])));
        }
    }
    Ok(None)
}

/// Removes the table of a family with all that is in it, at once.
///
/// # Errors
/// What the kernel said.
pub fn remove(socket: &mut NfSocket, family: Family) -> Result<(), NfError> {
    socket.transaction(NF_TABLES, &request(DEL_TABLE, family))
}
