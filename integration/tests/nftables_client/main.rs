// SPDX-License-Identifier: Apache-2.0
//! nftables-netlink on a real kernel: what it writes is what it reads, and what nft(8) reads.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod expressions;
mod sets;
mod transactions;

use integration::lab::Netns;
use nftables_netlink::{Client, Command, Family, Table, Transaction};
use serde_json::Value;

const TABLE: &str = "kube";

fn in_netns(test: impl FnOnce(&Netns, &mut Client) + Send) {
    let ns = Netns::new("nft").unwrap();
    ns.enter(|| test(&ns, &mut Client::open().unwrap())).unwrap();
}

/// Applies a table of a family and further commands.
fn commit(client: &mut Client, family: Family, commands: impl IntoIterator<Item = Command>) {
    let table = Command::AddTable(Table::new(family, TABLE));
    let transaction: Transaction = std::iter::once(table).chain(commands).collect();
    client.commit(&transaction).unwrap();
}

/// The objects of a kind in the ruleset, as nft(8) reads it.
fn listed(ns: &Netns, kind: &str) -> Vec<Value> {
    let ruleset = ns.exec(&["nft", "-j", "list", "ruleset"]).unwrap().stdout;
    let ruleset: Value = serde_json::from_str(&ruleset).unwrap();
    let objects = ruleset["nftables"].as_array().unwrap().clone();
    objects.into_iter().filter_map(|mut object| object.get_mut(kind).map(Value::take)).collect()
}
