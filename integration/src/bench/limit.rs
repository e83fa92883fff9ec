// SPDX-License-Identifier: Apache-2.0
//! The limit: the work of a first sync as plain netlink sends, encoded beforehand.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use dummy_iface::DummyDevice;
use kube_ipvs::core::model::Family;
use kube_ipvs::core::model::sets::{Entry, SetId, SetType};
use kube_ipvs::core::model::settings::RulesMode;
use kube_ipvs::core::plan::op::{Op, Phase, Plan, Subsystem};
use kube_ipvs::core::plan::ownership::DEVICE;
use kube_ipvs::core::rules::nftables::TABLE;
use kube_ipvs::kernel::netfilter::ipset::IpsetClient;
use kube_ipvs::kernel::netfilter::nft_tables::nft_family;
use nftables_netlink::{Client, Command, Element, Key, KeyField, Scope, Set, Table, Transaction};
use nix::sys::socket::SockProtocol;

use crate::replay::{
    RawSocket, Send, encode_addresses, encode_commands, encode_entries, encode_transaction, flush_ipvs,
    remove_device,
};

/// Times of a replay, by subsystem.
#[derive(Clone, Copy, Debug)]
pub struct Parts {
    /// Sets and their entries.
    pub sets: Duration,
    /// Virtual and real servers.
    pub servers: Duration,
    /// Addresses.
    pub addresses: Duration,
}

impl Parts {
    /// The whole time.
    pub fn total(self) -> Duration {
        self.sets + self.servers + self.addresses
    }
}

/// The ops of a first sync again, encoded beforehand, as plain netlink sends. Creating the device and empty ipsets is not
/// measured. Rules are not part of it.
///
/// # Errors
/// When the kernel refuses one.
pub fn replay(plan: &Plan, rules: RulesMode) -> Result<Parts> {
    let of = |phase, subsystem| -> Vec<&Op> {
        plan.ops.iter().filter(|op| op.phase() == phase && op.subsystem() == subsystem).collect()
    };
    let mut ipvs = RawSocket::open(SockProtocol::NetlinkGeneric)?;
    let commands = encode_commands(ipvs.family()?, &of(Phase::Serve, Subsystem::Ipvs));
    let sets = of(Phase::Guard, Subsystem::Sets);
    let entries = match rules {
        RulesMode::Iptables => ipset_entries(sets)?,
        RulesMode::Nftables => vec![encode_transaction(&transaction(&sets)?)],
    };
    let mut netfilter = RawSocket::open(SockProtocol::NetlinkNetFilter)?;
    let mut device = DummyDevice::open(DEVICE)?;
    device.create()?;
    let index = device.state()?.context("no device")?.index;
    let bound = of(Phase::Open, Subsystem::Addresses);
    let bound: Vec<IpAddr> =
        bound.iter().filter_map(|op| if let Op::Bind(addr) = op { Some(*addr) } else { None }).collect();
    let mut route = RawSocket::open(SockProtocol::NetlinkRoute)?;
    let addresses = encode_addresses(index, &bound);
    let timed = |socket: &mut RawSocket, sends: &[Send]| {
        let start = Instant::now();
        socket.send(sends).map(|()| start.elapsed())
    };
    let parts = Parts {
        sets: timed(&mut netfilter, &entries)?,
        servers: timed(&mut ipvs, &commands)?,
        addresses: timed(&mut route, &addresses)?,
    };
    check(plan, rules, bound.len(), &mut device)?;
    Ok(parts)
}

/// Creates the ipsets. Returns their entries, encoded.
fn ipset_entries(sets: Vec<&Op>) -> Result<Vec<Send>> {
    let (sets, entries): (Vec<&Op>, Vec<&Op>) =
        sets.into_iter().partition(|op| matches!(op, Op::CreateSet(_)));
    let created = IpsetClient::open().context("ipset")?.execute(&sets);
    ensure!(created.iter().all(Result::is_ok), "a set was refused");
    encode_entries(&entries)
}

/// The sets and their entries in one transaction of nf_tables. The layout of keys is the agent's.
fn transaction(ops: &[&Op]) -> Result<Transaction> {
    let mut transaction = Transaction::new();
    for family in Family::ALL {
        transaction.push(Command::AddTable(Table::new(nft_family(family), TABLE)));
    }
    let mut elements: BTreeMap<SetId, Vec<Element>> = BTreeMap::new();
    for op in ops {
        match op {
            Op::CreateSet(id) => {
                let key = key_fields(*id);
                transaction.push(Command::AddSet(Set::new(nft_family(id.family), TABLE, id.name(), &key)));
            }
            Op::AddEntry(id, entry) => {
                let element = element(entry).with_context(|| format!("no raw form of {op}"))?;
                elements.entry(*id).or_default().push(element);
            }
            other => bail!("no raw form of {other}"),
        }
    }
    for (id, elements) in elements {
        let (family, table) = (nft_family(id.family), TABLE.to_owned());
        transaction.push(Command::AddElements { family, table, set: id.name(), elements });
    }
    Ok(transaction)
}

fn key_fields(id: SetId) -> Vec<KeyField> {
    let addr = if id.family == Family::V4 { KeyField::Ipv4Addr } else { KeyField::Ipv6Addr };
    let (proto, port) = (KeyField::InetProto, KeyField::InetService);
    match id.kind.set_type() {
        SetType::HashIp => vec![addr],
        SetType::HashIpPort => vec![addr, proto, port],
        SetType::HashIpPortIp => vec![addr, proto, port, addr],
        SetType::HashIpPortNet => vec![addr, proto, port, addr, port],
        SetType::BitmapPort => vec![port],
    }
}

/// An entry's element; `None`: of a kind that the bench's Services have none of.
fn element(entry: &Entry) -> Option<Element> {
    let vip = |addr: IpAddr, protocol: u8, port| Key::new().addr(addr).proto(protocol).port(port);
    Some(Element::new(match *entry {
        Entry::Ip(addr) => Key::new().addr(addr),
        Entry::IpPort(addr, protocol, port) => vip(addr, protocol.number(), port),
        Entry::IpPortIp(addr, protocol, port, other) => vip(addr, protocol.number(), port).addr(other),
        Entry::IpPortNet(..) | Entry::Port(_) => return None,
    }))
}

/// Checks that the replay did all the work.
fn check(plan: &Plan, rules: RulesMode, bound: usize, device: &mut DummyDevice) -> Result<()> {
    let wanted = plan.ops.iter().filter(|op| matches!(op, Op::AddEntry(..))).count();
    let entries: usize = match rules {
        RulesMode::Iptables => {
            let sets = IpsetClient::open().context("ipset")?.list().context("ipset")?;
            sets.values().map(|set| set.members.len()).sum()
        }
        RulesMode::Nftables => {
            let mut client = Client::open()?;
            let sets = client.sets(Scope::All)?;
            let ours = sets.iter().filter(|set| set.table == TABLE);
            let lens = ours.map(|set| anyhow::Ok(client.elements(set.family, TABLE, &set.name)?.len()));
            lens.sum::<Result<usize>>()?
        }
    };
    let services = ipvs_netlink::Client::open()?.services()?.len();
    let there = device.addresses()?.own.unwrap_or_default().len();
    let added = plan.ops.iter().filter(|op| matches!(op, Op::AddVirtualServer(..))).count();
    ensure!(
        (services, there, entries) == (added, bound, wanted),
        "{services} services, {there} addresses, {entries} entries after the replay"
    );
    Ok(())
}

/// Removes everything at once that a measurement left in this thread's namespace. A namespace that is
/// dropped is destroyed some time later, and until then its virtual servers are in the table of all namespaces:
/// that would slow down whatever is measured next.
///
/// # Errors
/// When the kernel refuses.
pub fn clear() -> Result<()> {
    flush_ipvs()?;
    let mut client = Client::open()?;
    let tables = client.tables(Scope::All)?.into_iter().filter(|table| table.name == TABLE);
    let removal = |table: Table| Command::DeleteTable { family: table.family, table: table.name };
    let removals: Transaction = tables.map(removal).collect();
    if !removals.is_empty() {
        client.commit(&removals)?;
    }
    match DummyDevice::open(DEVICE)?.state()? {
        Some(state) => remove_device(state.index),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube_ipvs::core::model::Protocol;
    use kube_ipvs::core::model::sets::SetKind;

    #[test]
    fn a_transaction_has_every_set_and_entry() {
        let id = SetId { kind: SetKind::ClusterIp, family: Family::V4 };
        let addr = IpAddr::from([10, 0, 0, 1]);
        let (create, add) = (Op::CreateSet(id), Op::AddEntry(id, Entry::IpPort(addr, Protocol::Tcp, 80)));
        let made = transaction(&[&create, &add]).unwrap();
        let [
            Command::AddTable(_),
            Command::AddTable(_),
            Command::AddSet(set),
            Command::AddElements { elements, .. },
        ] = made.commands()
        else {
            panic!("{made:?}")
        };
        assert_eq!((set.key_len, &elements[0].key[..]), (12, &[10, 0, 0, 1, 6, 0, 0, 0, 0, 80, 0, 0][..]));
        let port =
            Op::AddEntry(SetId { kind: SetKind::NodePortTcp, family: Family::V4 }, Entry::Port(30_000));
        assert!(transaction(&[&port]).is_err(), "an entry left out would make the limit lower");
    }
}
