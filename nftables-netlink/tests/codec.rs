// SPDX-License-Identifier: Apache-2.0
//! Messages of transactions and of lists as bytes, written by hand from `<linux/netfilter/nf_tables.h>` and
//! `<linux/netfilter/nfnetlink.h>`.
#![cfg(target_endian = "little")]
#![allow(clippy::unwrap_used, reason = "the helpers of tests, too")]

use nftables_netlink::netlink_batch::{Message, Received};
use nftables_netlink::*;
use proptest::prelude::*;

const NEW: u16 = 0x400;
const NEW_ONLY: u16 = 0x600;
const APPEND: u16 = 0xc00;

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(pair).collect()
}

/// What follows the netlink header.
fn body(message: &TransactionMessage<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    message.write(&mut out);
    out
}

/// Kind, flags and body of the only message of a command.
fn encoded(command: Command) -> (u16, u16, Vec<u8>) {
    let transaction: Transaction = [command].into_iter().collect();
    let messages = transaction.messages();
    assert_eq!(messages.len(), 3);
    (messages[1].kind(), messages[1].flags(), body(&messages[1]))
}

fn names() -> (Family, String, String) {
    (Family::Ipv4, "t".to_owned(), "c".to_owned())
}

fn set() -> Set {
    let key = [KeyField::Ipv4Addr, KeyField::InetProto, KeyField::InetService, KeyField::Ipv4Addr];
    let mut set = Set::intervals(Family::Ipv4, "t", "s", &key);
    set.size = Some(256);
    set
}

#[test]
fn tables_and_chains() {
    let mut table = Table::new(Family::Inet, "t");
    table.flags = TableFlags::DORMANT;
    table.userdata = vec![7];
    let mut chain = Chain::base(Family::Ipv6, "t", "c", BaseChain::nat(Hook::Postrouting, -1));
    chain.userdata = vec![8];
    let (family, t, c) = names();
    let plain = Chain::new(family, "t", "c");
    let inet = "01000000 06000100 7400 0000  08000200 00000001  05000600 07 000000";
    let base = "0a000000 06000100 7400 0000  06000300 6300 0000
                14000480  08000100 00000004  08000200 ffffffff
                08000500 00000001  08000700 6e617400  05000c00 08 000000";
    let named = "02000000 06000100 7400 0000  06000300 6300 0000";
    for (command, kind, flags, hex) in [
        (Command::AddTable(table.clone()), 0xa00, NEW, inet),
        (Command::CreateTable(table), 0xa00, NEW_ONLY, inet),
        (Command::DeleteTable { family, table: t.clone() }, 0xa02, 0, "02000000 06000100 7400 0000"),
        (Command::AddChain(plain), 0xa03, NEW, named),
        (Command::AddChain(chain.clone()), 0xa03, NEW, base),
        (Command::CreateChain(chain), 0xa03, NEW_ONLY, base),
        (Command::DeleteChain { family, table: t, chain: c }, 0xa05, 0, named),
    ] {
        assert_eq!(encoded(command.clone()), (kind, flags, bytes(hex)), "{command}");
    }
}

#[test]
fn rules() {
    let mut rule = Rule::new(Family::Ipv4, "t", "c", [Expression::Verdict(Verdict::Drop)]);
    rule.userdata = vec![9];
    let (family, table, chain) = names();
    let added = "02000000 06000100 7400 0000  06000200 6300 0000
                 34000480  30000180  0e000100 696d6d65646961746500 0000  1c000280  08000100 00000000
                 10000280  0c000280  08000100 00000000
                 05000700 09 000000";
    let all = "02000000 06000100 7400 0000  06000200 6300 0000";
    let one = format!("{all} 0c000300 0000000000000102");
    let flush = Command::FlushChain { family, table: table.clone(), chain: chain.clone() };
    for (command, kind, flags, hex) in [
        (Command::AddRule(rule.clone()), 0xa06, APPEND, added),
        (Command::InsertRule(rule), 0xa06, NEW, added),
        (flush, 0xa08, 0, all),
        (Command::DeleteRule { family, table, chain, handle: 258 }, 0xa08, 0, &one),
    ] {
        assert_eq!(encoded(command.clone()), (kind, flags, bytes(hex)), "{command}");
    }
}

#[test]
fn sets_and_elements() {
    let (family, table, set_name) = (Family::Ipv4, "t".to_owned(), "s".to_owned());
    // The type is 7 << 18 | 12 << 12 | 13 << 6 | 7.
    let added = "02000000 06000100 7400 0000  06000200 7300 0000  08000300 00000084  08000400 001cc347
                 08000500 00000010  08000a00 00000000
                 40000980  08000100 00000100
                 34000280  0c000180 08000100 00000004  0c000180 08000100 00000001
                           0c000180 08000100 00000002  0c000180 08000100 00000004
                 0a000d00 000402000000 0000";
    let named = "02000000 06000100 7400 0000  06000200 7300 0000";
    let listed = "02000000 06000100 7400 0000  06000200 7300 0000
                  4c000380  20000180  0c000180 08000100 0a000000  10000a80 0a000100 0aff00000000 0000
                  10000180  0c000180 08000100 0a000001
                  18000180  08000300 00000001  0c000180 08000100 0a000009";
    let elements = vec![
        Element::range([10, 0, 0, 0], [10, 255, 0, 0, 0, 0]),
        Element::new([10, 0, 0, 1]),
        Element { key: vec![10, 0, 0, 9], key_end: None, is_interval_end: true },
    ];
    let add = Command::AddElements {
        family,
        table: table.clone(),
        set: set_name.clone(),
        elements: elements.clone(),
    };
    let delete = Command::DeleteElements { family, table: table.clone(), set: set_name.clone(), elements };
    let flush = Command::FlushSet { family, table: table.clone(), set: set_name.clone() };
    for (command, kind, flags, hex) in [
        (Command::AddSet(set()), 0xa09, NEW, added),
        (Command::CreateSet(set()), 0xa09, NEW_ONLY, added),
        (Command::DeleteSet { family, table, set: set_name }, 0xa0b, 0, named),
        (add, 0xa0c, NEW, listed),
        (delete, 0xa0e, 0, listed),
        (flush, 0xa0e, 0, named),
    ] {
        assert_eq!(encoded(command.clone()), (kind, flags, bytes(hex)), "{command}");
    }
}

#[test]
fn a_transaction_begins_and_ends_with_messages_of_nfnetlink() {
    let mut transaction = Transaction::new();
    let ends = |transaction: &Transaction| {
        let messages = transaction.messages();
        let (first, last) = (messages.first().unwrap(), messages.last().unwrap());
        assert_eq!((first.kind(), first.flags(), last.kind(), last.flags()), (16, 0, 17, 0));
        (body(first), body(last))
    };
    assert_eq!(ends(&transaction), (bytes("0000000a"), bytes("0000000a")));
    transaction.require_generation(0x0102_0304);
    assert_eq!(ends(&transaction).0, bytes("0000000a 08000100 01020304"));
}

#[test]
fn sets_of_a_transaction_have_different_numbers() {
    let transaction: Transaction = [Command::AddSet(set()), Command::AddSet(set())].into_iter().collect();
    let messages = transaction.messages();
    let id = |message| body(message).windows(8).find(|w| w[..4] == [8, 0, 10, 0]).unwrap().to_vec();
    assert_ne!(id(&messages[1]), id(&messages[2]));
}

#[test]
fn many_elements_take_messages_of_at_most_32_kib() {
    let elements: Vec<Element> = (0..100_000u32).map(|n| Element::new(n.to_be_bytes())).collect();
    let names = |elements: &[Element]| {
        let (family, table, set) = (Family::Ipv4, "t".to_owned(), "s".to_owned());
        [Command::AddElements { family, table, set, elements: elements.to_vec() }]
    };
    let transaction: Transaction = names(&elements).into_iter().collect();
    let messages = transaction.messages();
    // Each takes 16 bytes: 2048 fit.
    assert_eq!(messages.len(), 2 + 100_000usize.div_ceil(2048));
    let mut read = Vec::new();
    for message in &messages[1..messages.len() - 1] {
        let bytes = body(message);
        assert!(bytes.len() <= 32 * 1024 + 24, "{}", bytes.len());
        assert_eq!(message.command, Some(0));
        read.extend(parse_elements(&bytes).unwrap().2);
    }
    assert_eq!(read, elements);
    // An empty list would remove everything.
    let nothing: Transaction = names(&[]).into_iter().collect();
    assert_eq!(nothing.messages().len(), 2);
}

#[test]
fn generations_and_notifications() {
    let generation = bytes("00000005 08000100 00000105  08000200 00000007  08000300 6e667400");
    let notify = |kind, payload: &[u8]| {
        Notification::parse(&Received { kind, flags: 0, seq: 0, port: 0, payload }).unwrap()
    };
    let Notification::Generation(read) = notify(0xa0f, &generation) else { panic!("no generation") };
    assert_eq!((read.id, read.pid, read.process.as_str()), (261, 7, "nft"));
    assert_eq!(Generation::parse(&generation).unwrap(), read);
    let chain = || "c".to_owned();
    let named = bytes("02000000 06000100 7400 0000  06000200 6300 0000");
    let handled = bytes("02000000 06000100 7400 0000  06000200 6300 0000  0c000300 0000000000000102");
    let of_chain = bytes("02000000 06000100 7400 0000  0c000200 0000000000000102  06000300 6300 0000");
    for (kind, payload, action, object) in [
        (0xa00, &named, Action::New, Object::Table),
        (0xa02, &named, Action::Delete, Object::Table),
        (0xa03, &of_chain, Action::New, Object::Chain(chain())),
        (0xa05, &of_chain, Action::Delete, Object::Chain(chain())),
        (0xa06, &handled, Action::New, Object::Rule { chain: chain(), handle: 258 }),
        (0xa08, &handled, Action::Delete, Object::Rule { chain: chain(), handle: 258 }),
        (0xa09, &named, Action::New, Object::Set(chain())),
        (0xa0b, &named, Action::Delete, Object::Set(chain())),
        (0xa0c, &named, Action::New, Object::Elements(chain())),
        (0xa0e, &named, Action::Delete, Object::Elements(chain())),
    ] {
        let (family, table) = (Family::Ipv4, "t".to_owned());
        assert_eq!(notify(kind, payload), Notification::Change { action, family, table, object });
    }
    assert_eq!(notify(0xa12, &named), Notification::Other(0xa12), "an object");
    assert_eq!(notify(0x100, &[]), Notification::Other(0x100), "another subsystem");
}

#[test]
fn keys_of_several_fields_are_padded() {
    let v6 = [KeyField::Ipv6Addr, KeyField::InetProto, KeyField::InetService];
    assert_eq!((KeyField::len_of(&v6), KeyField::type_of(&v6)), (24, 8 << 12 | 12 << 6 | 13));
    assert_eq!(
        (KeyField::len_of(&[KeyField::InetService]), KeyField::type_of(&[KeyField::InetService])),
        (2, 13)
    );
    let addr: std::net::IpAddr = "fd00::1".parse().unwrap();
    let key = Key::new().addr(addr).proto(6).port(443).into_bytes();
    assert_eq!(key, bytes("fd000000000000000000000000000001 06000000 01bb0000"));
}

#[test]
fn the_bounds_of_an_interval() {
    let end = Element { key: vec![11], key_end: None, is_interval_end: true };
    assert!(Element::interval([10], Some(vec![11])).eq([Element::new([10]), end]));
    assert!(Element::interval([10], None).eq([Element::new([10])]));
}

fn any_userdata() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..20)
}

fn any_family() -> impl Strategy<Value = Family> {
    any::<u8>().prop_map(Family::from)
}

fn any_chain() -> impl Strategy<Value = Chain> {
    let base = ("[a-z]{1,6}", any::<u32>(), any::<i32>(), any::<u32>()).prop_map(
        |(kind, hook, priority, policy)| BaseChain {
            kind,
            hook: hook.into(),
            priority,
            policy: policy.into(),
        },
    );
    (any_family(), "[a-z]{1,9}", "[a-z]{1,9}", prop::option::of(base), any_userdata()).prop_map(
        |(family, table, name, base, userdata)| {
            let mut chain = Chain::new(family, table, name);
            (chain.base, chain.userdata) = (base, userdata);
            chain
        },
    )
}

fn any_set() -> impl Strategy<Value = Set> {
    let numbers = (any::<[u32; 3]>(), any::<Option<u32>>(), prop::collection::vec(any::<u32>(), 0..5));
    (any_family(), "[a-z]{1,9}", numbers, any_userdata()).prop_map(
        |(family, name, ([flags, key_type, key_len], size, fields), userdata)| {
            let mut set = Set::new(family, "t", name, &[]);
            set.flags = SetFlags::from_bits(flags);
            (set.key_type, set.key_len, set.size, set.fields) = (key_type, key_len, size, fields);
            set.userdata = userdata;
            set
        },
    )
}

fn any_elements() -> impl Strategy<Value = Vec<Element>> {
    let key = || prop::collection::vec(any::<u8>(), 0..41);
    let one = (key(), prop::option::of(key()), any::<bool>())
        .prop_map(|(key, key_end, is_interval_end)| Element { key, key_end, is_interval_end });
    prop::collection::vec(one, 1..50)
}

proptest! {
    #[test]
    fn tables_survive_the_wire(family in any_family(), name in "[a-z]{1,9}", flags: u32, data in any_userdata()) {
        let mut table = Table::new(family, name);
        (table.flags, table.userdata) = (TableFlags::from_bits(flags), data);
        prop_assert_eq!(Table::parse(&encoded(Command::AddTable(table.clone())).2).unwrap(), table);
    }

    #[test]
    fn chains_survive_the_wire(chain in any_chain()) {
        prop_assert_eq!(Chain::parse(&encoded(Command::AddChain(chain.clone())).2).unwrap(), chain);
    }

    #[test]
    fn sets_survive_the_wire(set in any_set()) {
        prop_assert_eq!(Set::parse(&encoded(Command::AddSet(set.clone())).2).unwrap(), set);
    }

    #[test]
    fn elements_survive_the_wire(elements in any_elements()) {
        let (family, table, set) = (Family::Ipv4, "t".to_owned(), "s".to_owned());
        let command = Command::AddElements { family, table, set, elements: elements.clone() };
        let expected = ("t".to_owned(), "s".to_owned(), elements);
        prop_assert_eq!(parse_elements(&encoded(command).2).unwrap(), expected);
    }

    #[test]
    fn no_input_panics(kind in 0xa00u16..0xa20, payload in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = (Table::parse(&payload), Chain::parse(&payload), Set::parse(&payload), Rule::parse(&payload));
        let _ = (parse_elements(&payload), Generation::parse(&payload));
        let _ = Notification::parse(&Received { kind, flags: 0, seq: 0, port: 0, payload: &payload });
        let _ = userdata::comment_of(&payload);
    }
}
