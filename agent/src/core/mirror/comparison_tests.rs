// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use super::*;
use crate::core::model::real_servers::RsState;
use crate::core::model::sets::{Entry, SetKind};
use crate::core::model::{Family, PERSISTENT, Protocol, RsKey};

fn vs(n: u8) -> VsKey {
    VsKey { protocol: Protocol::Tcp, addr: [10, 96, 0, n].into(), port: 80 }
}

fn spec() -> VsSpec {
    VsSpec { scheduler: "rr".into(), flags: 0, timeout: 0 }
}

fn servers(numbers: &[u8]) -> RealServers {
    let rs = |n: &u8| (RsKey { addr: [10, 244, 0, *n].into(), port: 80 }, RsState::USUAL);
    numbers.iter().map(rs).collect()
}

fn server(numbers: &[u8]) -> ObservedServer {
    ObservedServer { spec: spec(), real_servers: servers(numbers) }
}

fn mirror() -> Observed {
    let virtual_servers = [1, 2, 3].map(|n| (vs(n), server(&[n])));
    Observed { virtual_servers: virtual_servers.into_iter().collect(), ..Observed::default() }
}

fn list(numbers: &[u8]) -> Piece {
    Piece::Listed(numbers.iter().map(|n| (vs(*n), spec())).collect())
}

fn show(rows: &[(u8, &[u8])]) -> Piece {
    Piece::Shown(rows.iter().map(|(n, rs)| (vs(*n), spec(), servers(rs))).collect())
}

#[test]
fn an_empty_mirror_is_filled() {
    let (mut audit, mut observed) = (Audit::fill(), Observed::default());
    audit.add(list(&[1, 2, 3]), &mut observed);
    audit.add(show(&[(1, &[1]), (3, &[3])]), &mut observed);
    audit.add(show(&[(4, &[4])]), &mut observed);
    assert_eq!(audit.take_suspects(&observed), [vs(2), vs(4)], "each was in only one of the two lists");
    audit.confirm(vs(2), Some(server(&[2])), &mut observed);
    audit.confirm(vs(4), None, &mut observed);
    assert_eq!(observed, mirror());
}

#[test]
fn equal_virtual_servers_are_no_suspects() {
    let mut observed = mirror();
    let mut audit = Audit::compare(&observed);
    audit.add(list(&[1, 2]), &mut observed);
    audit.add(list(&[2, 3]), &mut observed);
    audit.add(show(&[(1, &[1]), (2, &[2]), (3, &[3]), (3, &[3])]), &mut observed);
    assert!(audit.take_suspects(&observed).is_empty());
    assert!(audit.finish().is_empty());
}

#[test]
fn a_suspect_is_drift_only_if_a_second_read_confirms_it() {
    let mut observed = mirror();
    let mut audit = Audit::compare(&observed);
    audit.add(list(&[1, 3, 9]), &mut observed);
    audit.add(show(&[(1, &[1, 7]), (2, &[2]), (3, &[3]), (9, &[])]), &mut observed);
    let persistent = VsSpec { flags: PERSISTENT, timeout: 600, ..spec() };
    audit.add(Piece::Shown(vec![(vs(2), persistent, servers(&[2]))]), &mut observed);
    assert_eq!(audit.take_suspects(&observed), [vs(1), vs(2), vs(9)]);
    audit.confirm(vs(1), Some(server(&[1, 7])), &mut observed);
    audit.confirm(vs(2), Some(server(&[2])), &mut observed);
    audit.confirm(vs(9), Some(server(&[])), &mut observed);
    let found: Vec<VsKey> = audit.finish().virtual_servers.into_iter().collect();
    assert_eq!(found, [vs(1), vs(9)]);
    assert_eq!(observed.virtual_servers[&vs(1)], server(&[1, 7]));
}

#[test]
fn ops_during_an_audit_are_no_drift() {
    let mut observed = mirror();
    let mut audit = Audit::compare(&observed);
    audit.add(list(&[1, 2, 3]), &mut observed);
    observed.virtual_servers.remove(&vs(2));
    observed.virtual_servers.insert(vs(4), server(&[4]));
    audit.add(show(&[(1, &[1]), (3, &[3]), (4, &[4])]), &mut observed);
    assert!(audit.take_suspects(&observed).is_empty());
}

#[test]
fn sets_and_addresses_are_compared_by_member() {
    let set = SetId { kind: SetKind::IpvsIps, family: Family::V4 };
    let ip = |n: u8| IpAddr::from([10, 96, 0, n]);
    let with = |numbers: &[u8]| {
        let members = numbers.iter().map(|n| Entry::Ip(ip(*n))).collect();
        ObservedSet { members, ..ObservedSet::fresh(set) }
    };
    let nets = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect::<Set<IpNet>>();
    let mut observed = Observed { device: true, addresses: nets(&["10.96.0.1/32"]), ..Observed::default() };
    observed.sets.insert(set, with(&[1, 2]));
    let mut audit = Audit::compare(&observed);
    audit.add(Piece::Set(set, Some(with(&[2, 3]))), &mut observed);
    let bound = nets(&["10.96.0.1/24", "10.96.0.2/32"]);
    let addresses = Addresses { device: true, bound: bound.clone(), elsewhere: vec![ip(9)] };
    audit.add(Piece::Addresses(addresses), &mut observed);
    let found = audit.finish();
    assert_eq!(found.entries, [(set, Entry::Ip(ip(1))), (set, Entry::Ip(ip(3)))].into());
    assert_eq!(found.addresses, [ip(1), ip(2)].into());
    assert_eq!(found.networks, ["10.96.0.1/24".parse().unwrap()].into());
    assert_eq!((&observed.sets[&set], &observed.addresses), (&with(&[2, 3]), &bound));
    let mut audit = Audit::compare(&observed);
    audit.add(Piece::Set(set, None), &mut observed);
    audit.add(Piece::Addresses(Addresses::default()), &mut observed);
    let found = audit.finish();
    assert_eq!(
        (found.entries.len(), found.addresses.len()),
        (2, 2),
        "all members of a set and all addresses of a device that no longer exist"
    );
    assert!(observed.sets.is_empty() && !observed.device);
}
