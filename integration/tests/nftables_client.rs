// SPDX-License-Identifier: Apache-2.0
//! nftables-netlink on a real kernel: what it writes is what it reads, and what nft(8) reads.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use integration::lab::Netns;
use nftables_netlink::netlink_batch::Errno;
use nftables_netlink::*;
use serde_json::Value;

const TABLE: &str = "kube";

fn in_netns(test: impl FnOnce(&Netns, &mut Client) + Send) {
    let ns = Netns::new("nft").unwrap();
    ns.enter(|| test(&ns, &mut Client::open().unwrap())).unwrap();
}

fn nft(ns: &Netns, args: &[&str]) -> String {
    let command: Vec<&str> = std::iter::once("nft").chain(args.iter().copied()).collect();
    ns.exec(&command).unwrap().stdout
}

/// The objects of a kind in the ruleset, as nft(8) reads it.
fn listed(ns: &Netns, kind: &str) -> Vec<Value> {
    let ruleset: Value = serde_json::from_str(&nft(ns, &["-j", "list", "ruleset"])).unwrap();
    let objects = ruleset["nftables"].as_array().unwrap().clone();
    objects.into_iter().filter_map(|mut object| object.get_mut(kind).map(Value::take)).collect()
}

const R0: Register = Register::R0;

fn payload(base: PayloadBase, offset: u32, len: u32, register: Register) -> Expression {
    Expression::Payload { register, base, offset, len }
}

fn eq(data: &[u8]) -> Expression {
    Expression::Cmp { register: R0, op: CmpOp::Eq, data: data.to_vec() }
}

fn meta(key: MetaKey) -> Expression {
    Expression::Meta { register: R0, key }
}

fn verdict(verdict: Verdict) -> Expression {
    Expression::Verdict(verdict)
}

fn name16(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}

/// The destination, the protocol and the port of a packet, as the key of a set; then the lookup.
fn lookup(family: Family, set: &str, invert: bool) -> Vec<Expression> {
    let (offset, len) = if family == Family::Ipv6 { (24, 16) } else { (16, 4) };
    let behind = |n: u8| Register::new(u8::try_from(len / 4).unwrap() + n);
    vec![
        payload(PayloadBase::Network, offset, len, R0),
        Expression::Meta { register: behind(0), key: MetaKey::L4Proto },
        payload(PayloadBase::Transport, 2, 2, behind(1)),
        Expression::Lookup { set: set.to_owned(), register: R0, invert },
    ]
}

/// Expressions of a chain of type filter at the hook input.
fn filter_rules(family: Family) -> Vec<Vec<Expression>> {
    let states = (CtState::ESTABLISHED | CtState::RELATED).bits();
    let mask = |mask: u32, xor: u32| Expression::Bitwise {
        source: R0,
        destination: R0,
        mask: mask.to_ne_bytes().to_vec(),
        xor: xor.to_ne_bytes().to_vec(),
    };
    let neq0 = Expression::Cmp { register: R0, op: CmpOp::Neq, data: vec![0; 4] };
    let local = || Expression::Fib { register: R0, result: FibResult::AddrType, flags: FibFlags::DADDR };
    let unreachable = if family == Family::Ipv6 { 4 } else { 3 };
    let (tcp, counter) = (|| vec![meta(MetaKey::L4Proto), eq(&[6])], Expression::Counter(Counter::default()));
    let outside = Expression::Range {
        register: R0,
        op: RangeOp::Outside,
        from: 1000u16.to_be_bytes().to_vec(),
        to: 2000u16.to_be_bytes().to_vec(),
    };
    let set_mark = [
        Expression::Immediate { register: R0, data: 0x4000u32.to_ne_bytes().to_vec() },
        Expression::SetMeta { register: R0, key: MetaKey::Mark },
    ];
    vec![
        [tcp(), vec![payload(PayloadBase::Transport, 2, 2, R0), eq(&443u16.to_be_bytes()), counter]].concat(),
        [lookup(family, "services", false), vec![verdict(Verdict::Jump("other".to_owned()))]].concat(),
        [lookup(family, "services", true), vec![verdict(Verdict::Goto("other".to_owned()))]].concat(),
        vec![Expression::Ct { register: R0, key: CtKey::State }, mask(states, 0), neq0, verdict(Verdict::Accept)],
        set_mark.to_vec(),
        vec![meta(MetaKey::Mark), mask(!0x4000, 0x4000), Expression::SetMeta { register: R0, key: MetaKey::Mark }],
        vec![local(), eq(&2u32.to_ne_bytes()), verdict(Verdict::Return)],
        vec![meta(MetaKey::IifName), eq(&name16("eth0")), verdict(Verdict::Drop)],
        [tcp(), vec![payload(PayloadBase::Transport, 2, 2, R0), outside, verdict(Verdict::Drop)]].concat(),
        [tcp(), vec![Expression::Reject(Reject::TcpReset)]].concat(),
        vec![Expression::Reject(Reject::IcmpUnreachable(unreachable))],
    ]
}

#[test]
fn experiment() {
    in_netns(|ns, client| {
        for family in [Family::Ipv4, Family::Ipv6] {
            let addr = if family == Family::Ipv4 { KeyField::Ipv4Addr } else { KeyField::Ipv6Addr };
            let key = [addr, KeyField::InetProto, KeyField::InetService];
            let mut t = Transaction::new();
            t.push(Command::AddTable(Table::new(family, TABLE)));
            t.push(Command::AddSet(Set::new(family, TABLE, "services", &key)));
            t.push(Command::AddChain(Chain::new(family, TABLE, "other")));
            t.push(Command::AddChain(Chain::base(family, TABLE, "input", BaseChain::filter(Hook::Input, -7))));
            t.push(Command::AddChain(Chain::base(family, TABLE, "post", BaseChain::nat(Hook::Postrouting, 100))));
            for e in filter_rules(family) {
                let mut rule = Rule::new(family, TABLE, "input", e);
                rule.userdata = userdata::comment("hello");
                t.push(Command::AddRule(rule));
            }
            t.push(Command::AddRule(Rule::new(family, TABLE, "post", [meta(MetaKey::OifName), eq(&name16("eth0")), Expression::Masquerade(MasqueradeFlags::RANDOM_FULLY)])));
            t.push(Command::AddRule(Rule::new(family, TABLE, "post", [Expression::Masquerade(MasqueradeFlags::default())])));
            client.commit(&t).unwrap();
            let rules = client.chain_rules(family, TABLE, "input").unwrap();
            for (read, written) in rules.iter().zip(filter_rules(family)) {
                assert_eq!(read.expressions, written);
            }
            dbg!(client.sets(Scope::All).unwrap());
            dbg!(client.chains(Scope::All).unwrap());
        }
        println!("{}", nft(ns, &["list", "ruleset"]));
        println!("{}", nft(ns, &["-j", "list", "ruleset"]));
        nft(ns, &["add table ip foo; add set ip foo a { type ipv4_addr . inet_proto . inet_service . ipv4_addr ; flags interval; }; add element ip foo a { 10.0.0.1 . tcp . 80 . 10.0.0.0/8 }; add set ip foo b { type ipv4_addr; flags interval; }; add element ip foo b { 10.0.0.0/8 }; add set ip foo c { type ipv4_addr . inet_service; size 70 ; comment \"hi\"; }; add chain ip foo x { comment \"abc\" ; }; add rule ip foo x masquerade random,fully-random comment \"rule\"; add set ip foo d { type ipv4_addr; }; add table ip bar { comment \"tab\"; };"]);
        for s in client.sets(Scope::Table(Family::Ipv4, "foo")).unwrap() {
            dbg!(&s);
            dbg!(client.elements(Family::Ipv4, "foo", &s.name).unwrap());
        }
        dbg!(client.rules(Scope::Table(Family::Ipv4, "foo")).unwrap());
        dbg!(client.tables(Scope::All).unwrap());
        dbg!(client.generation().unwrap());
        let _ = Errno::EPERM;
        let _ = listed(ns, "rule");
    });
}
