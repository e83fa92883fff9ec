// SPDX-License-Identifier: Apache-2.0
//! Every expression: read as it was written, in each family, and by nft(8).

use nftables_netlink::*;
use serde_json::{Value, json};

use super::{TABLE, commit, in_netns, listed};

const R0: Register = Register::R0;

fn payload(base: PayloadBase, offset: u32, len: u32, register: Register) -> Expression {
    Expression::Payload { register, base, offset, len }
}

fn cmp(op: CmpOp, data: &[u8]) -> Expression {
    Expression::Cmp { register: R0, op, data: data.to_vec() }
}

fn eq(data: &[u8]) -> Expression {
    cmp(CmpOp::Eq, data)
}

fn meta(key: MetaKey) -> Expression {
    Expression::Meta { register: R0, key }
}

fn end(verdict: Verdict) -> Expression {
    Expression::Verdict(verdict)
}

fn mask(mask: u32, xor: u32) -> Expression {
    let bytes = |number: u32| number.to_ne_bytes().to_vec();
    Expression::Bitwise { source: R0, destination: R0, mask: bytes(mask), xor: bytes(xor) }
}

/// The name of an interface as a register has it.
fn interface(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}

fn tcp_port() -> Vec<Expression> {
    vec![meta(MetaKey::L4Proto), eq(&[6]), payload(PayloadBase::Transport, 2, 2, R0)]
}

/// A concatenation in registers that follow each other, looked up in a set.
fn lookup(family: Family, invert: bool) -> Vec<Expression> {
    let (offset, len) = if family == Family::Ipv6 { (24, 16) } else { (16, 4) };
    let behind = |n: u8| Register::new(u8::try_from(len / 4).unwrap() + n);
    vec![
        payload(PayloadBase::Network, offset, len, R0),
        Expression::Meta { register: behind(0), key: MetaKey::L4Proto },
        payload(PayloadBase::Transport, 2, 2, behind(1)),
        Expression::Lookup { set: "vips".to_owned(), register: R0, invert },
    ]
}

/// A rule, and what nft(8) makes of it.
type Shown = (Vec<Expression>, Value);

fn matched(op: &str, left: Value, right: impl Into<Value>) -> Value {
    json!({"match": {"op": op, "left": left, "right": right.into()}})
}

fn shown_meta(key: &str) -> Value {
    json!({"meta": {"key": key}})
}

fn with(mut first: Vec<Expression>, more: &[Expression]) -> Vec<Expression> {
    first.extend_from_slice(more);
    first
}

/// Rules for the hook input that compare ports, look up a set, or refuse a packet.
fn port_rules(family: Family) -> Vec<Shown> {
    let (ip, icmp, unreachable) =
        if family == Family::Ipv6 { ("ip6", "icmpv6", 4) } else { ("ip", "icmp", 3) };
    let port = || json!({"payload": {"protocol": "tcp", "field": "dport"}});
    let key = || {
        json!({"concat": [{"payload": {"protocol": ip, "field": "daddr"}}, {"meta": {"key": "l4proto"}},
                                   {"payload": {"protocol": "th", "field": "dport"}}]})
    };
    let range = |op| {
        let (from, to) = (1000u16.to_be_bytes().to_vec(), 2000u16.to_be_bytes().to_vec());
        Expression::Range { register: R0, op, from, to }
    };
    let high = cmp(CmpOp::Gte, &1024u16.to_be_bytes());
    let counter = Expression::Counter(Counter { packets: 7, bytes: 1000 });
    let bounds = || json!({"range": [1000, 2000]});
    vec![
        (
            with(tcp_port(), &[eq(&443u16.to_be_bytes()), counter, end(Verdict::Accept)]),
            json!([matched("==", port(), 443), {"counter": {"packets": 7, "bytes": 1000}}, {"accept": null}]),
        ),
        (
            with(lookup(family, false), &[end(Verdict::Jump("other".to_owned()))]),
            json!([matched("==", key(), "@vips"), {"jump": {"target": "other"}}]),
        ),
        (
            with(lookup(family, true), &[end(Verdict::Goto("other".to_owned()))]),
            json!([matched("!=", key(), "@vips"), {"goto": {"target": "other"}}]),
        ),
        (
            with(tcp_port(), &[range(RangeOp::Inside), end(Verdict::Drop)]),
            json!([matched("==", port(), bounds()), {"drop": null}]),
        ),
        (
            with(tcp_port(), &[range(RangeOp::Outside), end(Verdict::Drop)]),
            json!([matched("!=", port(), bounds()), {"drop": null}]),
        ),
        (
            with(tcp_port(), &[high, Expression::Reject(Reject::TcpReset)]),
            json!([matched(">=", port(), 1024), {"reject": {"type": "tcp reset"}}]),
        ),
        (
            vec![Expression::Reject(Reject::IcmpUnreachable(unreachable))],
            json!([{"reject": {"type": icmp, "expr": "port-unreachable"}}]),
        ),
    ]
}

/// Rules for the hook input about connections, marks, routes and interfaces.
fn property_rules() -> Vec<Shown> {
    let fib = Expression::Fib { register: R0, result: FibResult::AddrType, flags: FibFlags::DADDR };
    let established = (CtState::ESTABLISHED | CtState::RELATED).bits();
    let ct = Expression::Ct { register: R0, key: CtKey::State };
    let set_mark = Expression::SetMeta { register: R0, key: MetaKey::Mark };
    let load = Expression::Immediate { register: R0, data: 0x4000u32.to_ne_bytes().to_vec() };
    let mangle = |value: Value| json!({"mangle": {"key": {"meta": {"key": "mark"}}, "value": value}});
    let states = matched("in", json!({"ct": {"key": "state"}}), json!(["established", "related"]));
    vec![
        (
            vec![ct, mask(established, 0), cmp(CmpOp::Neq, &[0; 4]), end(Verdict::Accept)],
            json!([states, {"accept": null}]),
        ),
        (vec![load, set_mark.clone()], json!([mangle(json!(0x4000))])),
        (
            vec![meta(MetaKey::Mark), mask(!0x4000, 0x4000), set_mark],
            json!([mangle(json!({"|": [shown_meta("mark"), 0x4000]}))]),
        ),
        (
            vec![fib, eq(&2u32.to_ne_bytes()), end(Verdict::Return)],
            json!([matched("==", json!({"fib": {"result": "type", "flags": ["daddr"]}}), "local"), {"return": null}]),
        ),
        (
            vec![meta(MetaKey::IifName), eq(&interface("eth0")), end(Verdict::Drop)],
            json!([matched("==", shown_meta("iifname"), "eth0"), {"drop": null}]),
        ),
    ]
}

/// Rules for the hook postrouting of type nat.
fn nat_rules() -> Vec<Shown> {
    let masquerade = Expression::Masquerade;
    let leaves = matched("==", shown_meta("oifname"), "eth0");
    vec![
        (
            vec![meta(MetaKey::OifName), eq(&interface("eth0")), masquerade(MasqueradeFlags::RANDOM_FULLY)],
            json!([leaves, {"masquerade": {"flags": "fully-random"}}]),
        ),
        (vec![masquerade(MasqueradeFlags::default())], json!([{"masquerade": null}])),
    ]
}

/// A rule for the hook prerouting of type nat that keeps the address, so that no other chain changes it.
fn keeps_address(family: Family) -> Shown {
    let (ip, offset, len) = if family == Family::Ipv6 { ("ip6", 24, 16) } else { ("ip", 16, 4) };
    let nat = Expression::Nat { kind: NatKind::Destination, family, address: R0 };
    let address = json!({"payload": {"protocol": ip, "field": "daddr"}});
    (vec![payload(PayloadBase::Network, offset, len, R0), nat], json!([{"dnat": {"addr": address}}]))
}

/// A rule that looks up the network of the sender with the length of its prefix.
fn network_rule(family: Family) -> Shown {
    let (ip, offset, len) = if family == Family::Ipv6 { ("ip6", 8, 16u8) } else { ("ip", 12, 4) };
    let shown_mask = if family == Family::Ipv6 { "ff00::" } else { "255.0.0.0" };
    let mut mask = vec![0; len.into()];
    mask[0] = 0xff;
    let network = Expression::Bitwise {
        source: Register::new(1),
        destination: Register::new(1),
        xor: vec![0; len.into()],
        mask,
    };
    (
        vec![
            payload(PayloadBase::Transport, 2, 2, R0),
            payload(PayloadBase::Network, offset, len.into(), Register::new(1)),
            network,
            Expression::Immediate { register: Register::new(1 + len / 4), data: vec![8] },
            Expression::Lookup { set: "networks".to_owned(), register: R0, invert: false },
            end(Verdict::Return),
        ],
        // nft(8) has no type for the length, but prints it.
        json!([matched("==", json!({"concat": [
            {"payload": {"protocol": "th", "field": "dport"}},
            {"&": [{"payload": {"protocol": ip, "field": "saddr"}}, shown_mask]},
            "0x8 [invalid type]"
        ]}), "@networks"), {"return": null}]),
    )
}

fn commands(family: Family, rules: &[(&str, &[Expression])]) -> Vec<Command> {
    let addr = if family == Family::Ipv6 { KeyField::Ipv6Addr } else { KeyField::Ipv4Addr };
    let key = [addr, KeyField::InetProto, KeyField::InetService];
    let input = BaseChain::filter(Hook::Input, priority::FILTER);
    let mut commands = vec![
        Command::AddSet(Set::new(family, TABLE, "vips", &key)),
        Command::AddSet(Set::new(
            family,
            TABLE,
            "networks",
            &[KeyField::InetService, addr, KeyField::InetProto],
        )),
        Command::AddChain(Chain::new(family, TABLE, "other")),
        Command::AddChain(Chain::base(family, TABLE, "input", input)),
        Command::AddChain(Chain::base(family, TABLE, "pre", BaseChain::nat(Hook::Prerouting, -101))),
        Command::AddChain(Chain::base(family, TABLE, "post", BaseChain::nat(Hook::Postrouting, 100))),
    ];
    commands.extend(rules.iter().enumerate().map(|(n, (chain, expressions))| {
        let mut rule = Rule::new(family, TABLE, *chain, *expressions);
        rule.userdata = userdata::comment(&format!("rule {n}"));
        Command::AddRule(rule)
    }));
    commands
}

#[test]
fn every_expression_is_read_as_it_was_written() {
    for family in [Family::Ipv4, Family::Ipv6] {
        in_netns(|ns, client| {
            let (input, nat) =
                ([port_rules(family), property_rules(), vec![network_rule(family)]].concat(), nat_rules());
            let pre = [keeps_address(family)];
            let chains = (input.iter().map(|rule| ("input", rule)))
                .chain(pre.iter().map(|rule| ("pre", rule)))
                .chain(nat.iter().map(|rule| ("post", rule)));
            let rules: Vec<(&str, &[Expression])> =
                chains.map(|(chain, (expressions, _))| (chain, &expressions[..])).collect();
            commit(client, family, commands(family, &rules));
            let read = client.rules(Scope::Table(family, TABLE)).unwrap();
            assert_eq!(read.len(), rules.len());
            for (n, (rule, (chain, expressions))) in read.iter().zip(&rules).enumerate() {
                assert_eq!((rule.chain.as_str(), &rule.expressions[..]), (*chain, *expressions));
                assert_eq!(userdata::comment_of(&rule.userdata), Some(format!("rule {n}")));
                assert!(rule.handle.is_some());
            }
            let seen = listed(ns, "rule");
            let expected: Vec<&Value> =
                input.iter().chain(&pre).chain(&nat).map(|(_, shown)| shown).collect();
            assert_eq!(seen.iter().map(|rule| &rule["expr"]).collect::<Vec<_>>(), expected);
            assert!(seen.iter().enumerate().all(|(n, rule)| rule["comment"] == format!("rule {n}")));
            let post = client.chain_rules(family, TABLE, "post").unwrap();
            assert_eq!(post[..], read[input.len() + pre.len()..]);
            assert!(client.chain_rules(family, TABLE, "none").unwrap().is_empty());
        });
    }
}

#[test]
fn rules_for_both_families() {
    in_netns(|ns, client| {
        let source = payload(PayloadBase::Network, 12, 4, R0);
        let network =
            Expression::Bitwise { source: R0, destination: R0, mask: vec![255, 0, 0, 0], xor: vec![0; 4] };
        let reject = Expression::Reject(Reject::IcmpxUnreachable(1));
        let rule = [meta(MetaKey::NfProto), eq(&[2]), source, network, eq(&[10, 0, 0, 0]), reject];
        commit(client, Family::Inet, commands(Family::Inet, &[("input", &rule)]));
        assert_eq!(client.rules(Scope::All).unwrap()[0].expressions, rule);
        let shown = json!([
            {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}},
                       "right": {"prefix": {"addr": "10.0.0.0", "len": 8}}}},
            {"reject": {"type": "icmpx", "expr": "port-unreachable"}}
        ]);
        assert_eq!(listed(ns, "rule")[0]["expr"], shown);
    });
}

/// Expressions of nft(8) that this crate does not know.
#[test]
fn a_foreign_rule_is_no_error() {
    in_netns(|ns, client| {
        let rules = "table ip foreign { map m { type ipv4_addr : verdict; }
            chain c { ip saddr vmap @m; ip ttl set 9; limit rate 5/second log prefix \"x\"; ct original packets 3; }
            }";
        ns.exec_with(&["nft", "-f", "-"], Some(rules)).unwrap();
        let rules = client.rules(Scope::All).unwrap();
        let others = |rule: &Rule| {
            let is_other = |expression: &&Expression| matches!(expression, Expression::Other { .. });
            rule.expressions.iter().filter(is_other).count()
        };
        assert_eq!(rules.iter().map(others).collect::<Vec<_>>(), [1, 1, 2, 1], "{rules:#?}");
        // And it can be written again.
        let again = rules.iter().cloned().map(Command::AddRule);
        client.commit(&again.collect()).unwrap();
        let read = client.rules(Scope::All).unwrap();
        let written = |rule: &Rule| rule.expressions.clone();
        assert_eq!(
            read[4..].iter().map(written).collect::<Vec<_>>(),
            rules.iter().map(written).collect::<Vec<_>>()
        );
    });
}
