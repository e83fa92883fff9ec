// SPDX-License-Identifier: Apache-2.0
//! Finds and removes the tables of kube-proxy's nftables mode (`<linux/netfilter/nf_tables.h>`), without the program
//! `nft`.

use netlink_batch::{AttributeIter, Attributes, Error, Socket};

use super::nfnetlink::{self, Request};
use crate::core::model::{Family, PerFamily};

/// The nfnetlink subsystem.
const NF_TABLES: u16 = 10;
const GET_TABLE: u16 = NF_TABLES << 8 | 1;
const DEL_TABLE: u16 = NF_TABLES << 8 | 2;
const GET_GENERATION: u16 = NF_TABLES << 8 | 16;
const ATTR_TABLE_NAME: u16 = 1;
const ATTR_GENERATION: u16 = 1;
/// The table of kube-proxy's nftables mode, one for each family.
const KUBE_PROXY: &str = "kube-proxy";

fn number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

fn request(kind: u16, family: Family) -> Request {
    let mut attrs = Attributes::default();
    attrs.put_str(ATTR_TABLE_NAME, KUBE_PROXY);
    Request { kind, family: number(family), attrs, ..Request::default() }
}

/// Which families have a table of kube-proxy's nftables mode. A kernel without
/// nf_tables has none.
///
/// # Errors
/// When the answer cannot be read.
pub fn find(socket: &mut Socket) -> Result<PerFamily<bool>, Error> {
    let answers = socket.ask_all(&Family::ALL.map(|family| request(GET_TABLE, family)))?;
    let mut found = PerFamily::default();
    for (family, answer) in Family::ALL.into_iter().zip(answers) {
        found[family] = answer.is_ok();
    }
    Ok(found)
}

/// The generation of nf_tables, which every change in the network namespace increases; `None`: the kernel has no
/// nf_tables.
///
/// # Errors
/// When the answer cannot be read.
pub fn generation(socket: &mut Socket) -> Result<Option<u32>, Error> {
    match socket.ask(&Request { kind: GET_GENERATION, ..Request::default() })? {
        Ok(answer) => parse_generation(nfnetlink::attributes(&answer)),
        Err(_) => Ok(None),
    }
}

pub(in crate::kernel) fn parse_generation(answer: &[u8]) -> Result<Option<u32>, Error> {
    for attr in AttributeIter::new(answer) {
        if let (ATTR_GENERATION, &[a, b, c, d]) = attr? {
            return Ok(Some(u32::from_be_bytes([a, b, c, d])));
        }
    }
    Ok(None)
}

/// Removes the table of a family with its contents, atomically.
///
/// # Errors
/// When the kernel refuses.
pub fn remove(socket: &mut Socket, family: Family) -> Result<(), Error> {
    nfnetlink::transaction(socket, NF_TABLES, request(DEL_TABLE, family))
}
