// SPDX-License-Identifier: Apache-2.0
//! Expressions as bytes, written by hand from `<linux/netfilter/nf_tables.h>`.

use netlink_batch::Attributes;
use proptest::prelude::*;

use super::*;

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(pair).collect()
}

fn written(expression: &Expression) -> Vec<u8> {
    let mut out = Attributes::default();
    expression.write(&mut out);
    out.as_bytes().to_vec()
}

const R0: Register = Register::R0;

/// An expression and its bytes.
type Golden = (Expression, &'static str);

fn loads_and_matches() -> Vec<Golden> {
    let r9 = Register::new(9);
    vec![
        (
            Expression::Payload { register: r9, base: PayloadBase::Network, offset: 16, len: 4 },
            "0c000100 7061796c6f616400  24000280  08000100 00000011  08000200 00000001
             08000300 00000010  08000400 00000004",
        ),
        (
            Expression::Meta { register: R0, key: MetaKey::L4Proto },
            "09000100 6d65746100 000000  14000280  08000100 00000008  08000200 00000010",
        ),
        (
            Expression::SetMeta { register: R0, key: MetaKey::Mark },
            "09000100 6d65746100 000000  14000280  08000200 00000003  08000300 00000008",
        ),
        (
            Expression::Ct { register: R0, key: CtKey::State },
            "07000100 637400 00  14000280  08000100 00000008  08000200 00000000",
        ),
        (
            Expression::Cmp { register: R0, op: CmpOp::Neq, data: vec![0x01, 0xbb] },
            "08000100 636d7000  20000280  08000100 00000008  08000200 00000001
             0c000380  06000100 01bb 0000",
        ),
        (
            Expression::Range { register: R0, op: RangeOp::Outside, from: vec![1], to: vec![9] },
            "0a000100 72616e676500 0000  2c000280  08000100 00000008  08000200 00000001
             0c000380  05000100 01 000000  0c000480  05000100 09 000000",
        ),
        (
            Expression::Bitwise { source: R0, destination: r9, mask: vec![6, 0, 0, 0], xor: vec![0; 4] },
            "0c000100 6269747769736500  3c000280  08000100 00000008  08000200 00000011
             08000300 00000004  08000600 00000000
             0c000480  08000100 06000000  0c000580  08000100 00000000",
        ),
        (
            Expression::Lookup { set: "vips".to_owned(), register: R0, invert: true },
            "0b000100 6c6f6f6b757000 00  20000280  09000100 7669707300 000000  08000200 00000008
             08000500 00000001",
        ),
        (
            Expression::Fib { register: R0, result: FibResult::AddrType, flags: FibFlags::DADDR },
            "08000100 66696200  1c000280  08000100 00000008  08000200 00000003  08000300 00000002",
        ),
        (
            Expression::Immediate { register: R0, data: vec![0, 0x40, 0, 0] },
            "0e000100 696d6d65646961746500 0000  18000280  08000100 00000008
             0c000280  08000100 00400000",
        ),
    ]
}

fn ends() -> Vec<Golden> {
    let verdict = |verdict| Expression::Verdict(verdict);
    vec![
        (
            verdict(Verdict::Accept),
            "0e000100 696d6d65646961746500 0000  1c000280  08000100 00000000
             10000280  0c000280  08000100 00000001",
        ),
        (
            verdict(Verdict::Drop),
            "0e000100 696d6d65646961746500 0000  1c000280  08000100 00000000
             10000280  0c000280  08000100 00000000",
        ),
        (
            verdict(Verdict::Return),
            "0e000100 696d6d65646961746500 0000  1c000280  08000100 00000000
             10000280  0c000280  08000100 fffffffb",
        ),
        (
            verdict(Verdict::Jump("c1".to_owned())),
            "0e000100 696d6d65646961746500 0000  24000280  08000100 00000000
             18000280  14000280  08000100 fffffffd  07000200 633100 00",
        ),
        (
            verdict(Verdict::Goto("c1".to_owned())),
            "0e000100 696d6d65646961746500 0000  24000280  08000100 00000000
             18000280  14000280  08000100 fffffffc  07000200 633100 00",
        ),
        (
            Expression::Masquerade(MasqueradeFlags::RANDOM_FULLY),
            "09000100 6d61737100 000000  0c000280  08000100 00000010",
        ),
        (Expression::Masquerade(MasqueradeFlags::default()), "09000100 6d61737100 000000  04000280"),
        (
            Expression::Nat { kind: NatKind::Destination, family: Family::Ipv4, address: R0 },
            "08000100 6e617400  1c000280  08000100 00000001  08000200 00000002  08000300 00000008",
        ),
        (
            Expression::Reject(Reject::IcmpUnreachable(3)),
            "0b000100 72656a65637400 00  14000280  08000100 00000000  05000200 03 000000",
        ),
        (Expression::Reject(Reject::TcpReset), "0b000100 72656a65637400 00  0c000280  08000100 00000001"),
        (
            Expression::Reject(Reject::IcmpxUnreachable(1)),
            "0b000100 72656a65637400 00  14000280  08000100 00000002  05000200 01 000000",
        ),
        (
            Expression::Counter(Counter { packets: 2, bytes: 258 }),
            "0c000100 636f756e74657200  1c000280  0c000100 0000000000000102  0c000200 0000000000000002",
        ),
        (
            Expression::Other { name: "notrack".to_owned(), data: vec![] },
            "0c000100 6e6f747261636b00  04000280",
        ),
    ]
}

#[test]
#[cfg(target_endian = "little")]
fn every_expression_both_ways() {
    for (expression, hex) in loads_and_matches().into_iter().chain(ends()) {
        assert_eq!(written(&expression), bytes(hex), "{expression:?}");
        assert_eq!(Expression::parse(&bytes(hex)).unwrap(), expression);
    }
}

/// Registers of 16 bytes, missing flags and padding: as a kernel reports them.
#[test]
#[cfg(target_endian = "little")]
fn what_the_kernel_reports_is_normalised() {
    let table = [
        (
            Expression::Payload {
                register: Register::new(4),
                base: PayloadBase::Transport,
                offset: 2,
                len: 2,
            },
            "0c000100 7061796c6f616400  24000200  08000100 00000002  08000200 00000002
             08000300 00000002  08000400 00000002",
        ),
        (
            Expression::Lookup { set: "vips".to_owned(), register: R0, invert: false },
            "0b000100 6c6f6f6b757000 00  18000200  09000100 7669707300 000000  08000200 00000001",
        ),
        (Expression::Masquerade(MasqueradeFlags::default()), "09000100 6d61737100 000000"),
        (
            Expression::Nat { kind: NatKind::Source, family: Family::Ipv6, address: R0 },
            "08000100 6e617400  2c000200  08000100 00000000  08000200 0000000a  08000300 00000001
             08000400 00000001  08000700 00000001",
        ),
        (
            Expression::Counter(Counter::default()),
            "0c000100 636f756e74657200  20000200  0c000100 0000000000000102  04000300
             0c000200 0000000000000002",
        ),
    ];
    for (expression, hex) in table {
        assert_eq!(Expression::parse(&bytes(hex)).unwrap(), expression);
    }
}

/// A lookup in a map, a direction of a connection, a shift, a port of masquerading, a payload that is written, and a range
/// of addresses.
#[test]
#[cfg(target_endian = "little")]
fn an_expression_with_another_property_is_kept_as_bytes() {
    let table = [
        "0b000100 6c6f6f6b757000 00  20000280  09000100 7669707300 000000  08000200 00000008  08000300 00000000",
        "07000100 637400 00  1c000280  08000100 00000008  08000200 0000000b  05000300 00 000000",
        "0c000100 6269747769736500  24000280  08000100 00000008  08000200 00000008  08000300 00000004
         08000600 00000001",
        "09000100 6d61737100 000000  0c000280  08000200 00000008",
        "0c000100 7061796c6f616400  24000280  08000500 00000008  08000200 00000001
         08000300 00000010  08000400 00000004",
        "08000100 6e617400  24000280  08000100 00000001  08000200 00000002  08000300 00000008  08000400 00000009",
    ];
    for hex in table {
        let read = Expression::parse(&bytes(hex)).unwrap();
        assert!(matches!(&read, Expression::Other { data, .. } if !data.is_empty()), "{read:?}");
        assert_eq!(written(&read), bytes(hex));
    }
}

#[test]
fn all_counters_are_equal() {
    let counter = |packets| Expression::Counter(Counter { packets, bytes: 0 });
    assert_eq!(counter(1), counter(2));
}

#[test]
fn an_expression_without_a_name_is_malformed() {
    assert!(Expression::parse(&[]).is_err());
    assert!(Expression::parse(&[9, 0, 1]).is_err());
}

fn any_register() -> impl Strategy<Value = Register> {
    (0u8..16).prop_map(Register::new)
}

fn any_data() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..20)
}

fn any_verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        Just(Verdict::Drop),
        Just(Verdict::Accept),
        Just(Verdict::Return),
        "[a-z]{1,9}".prop_map(Verdict::Jump),
        "[a-z]{1,9}".prop_map(Verdict::Goto),
    ]
}

pub(crate) fn any_expression() -> impl Strategy<Value = Expression> {
    let loads = prop_oneof![
        (any_register(), any::<(u32, u32, u32)>()).prop_map(|(register, (base, offset, len))| {
            Expression::Payload { register, base: base.into(), offset, len }
        }),
        (any_register(), any::<u32>())
            .prop_map(|(register, key)| Expression::Meta { register, key: key.into() }),
        (any_register(), any::<u32>())
            .prop_map(|(register, key)| Expression::SetMeta { register, key: key.into() }),
        (any_register(), any::<u32>())
            .prop_map(|(register, key)| Expression::Ct { register, key: key.into() }),
        (any_register(), any_data()).prop_map(|(register, data)| Expression::Immediate { register, data }),
        (any_register(), any::<(u32, u32)>()).prop_map(|(register, (result, flags))| Expression::Fib {
            register,
            result: result.into(),
            flags: FibFlags::from_bits(flags)
        }),
        (any_register(), any_register(), any_data(), any_data()).prop_map(
            |(source, destination, mask, xor)| Expression::Bitwise { source, destination, mask, xor }
        ),
    ];
    let matches = prop_oneof![
        (any_register(), any::<u32>(), any_data()).prop_map(|(register, op, data)| Expression::Cmp {
            register,
            op: op.into(),
            data
        }),
        (any_register(), any::<u32>(), any_data(), any_data())
            .prop_map(|(register, op, from, to)| Expression::Range { register, op: op.into(), from, to }),
        ("[a-z]{1,9}", any_register(), any::<bool>())
            .prop_map(|(set, register, invert)| Expression::Lookup { set, register, invert }),
    ];
    let ends = prop_oneof![
        any_verdict().prop_map(Expression::Verdict),
        any::<u32>().prop_map(|flags| Expression::Masquerade(MasqueradeFlags::from_bits(flags))),
        (any::<u32>(), any::<u8>(), any_register()).prop_map(|(kind, family, address)| Expression::Nat {
            kind: kind.into(),
            family: family.into(),
            address
        }),
        any::<u8>().prop_map(|code| Expression::Reject(Reject::IcmpUnreachable(code))),
        any::<u8>().prop_map(|code| Expression::Reject(Reject::IcmpxUnreachable(code))),
        Just(Expression::Reject(Reject::TcpReset)),
        any::<(u64, u64)>().prop_map(|(packets, bytes)| Expression::Counter(Counter { packets, bytes })),
        ("x[a-z]{1,9}", any_data()).prop_map(|(name, data)| Expression::Other { name, data }),
    ];
    prop_oneof![loads, matches, ends]
}

proptest! {
    #[test]
    fn expressions_survive_the_wire(expression in any_expression()) {
        let bytes = written(&expression);
        prop_assert_eq!(bytes.len() % 4, 0);
        let read = Expression::parse(&bytes).unwrap();
        prop_assert_eq!(&read, &expression);
        prop_assert_eq!(written(&read), bytes);
    }

    #[test]
    fn no_input_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Expression::parse(&bytes);
    }

    /// Bytes that are almost right get further into the parsers than random ones.
    #[test]
    fn no_damaged_expression_panics(expression in any_expression(), at: usize, to: u8, cut: usize) {
        let mut bytes = written(&expression);
        let len = bytes.len();
        bytes[at % len] = to;
        bytes.truncate(len - cut % len);
        if let Ok(read) = Expression::parse(&bytes) {
            prop_assert_eq!(Expression::parse(&written(&read)).unwrap(), read);
        }
    }
}
