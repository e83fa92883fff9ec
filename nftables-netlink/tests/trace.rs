// SPDX-License-Identifier: Apache-2.0
//! Notifications of traces as bytes, written by hand from `<linux/netfilter/nf_tables.h>`.
#![cfg(target_endian = "little")]
#![allow(clippy::unwrap_used, reason = "the helpers of tests, too")]

use nftables_netlink::netlink_batch::{Error, Received};
use nftables_netlink::*;
use proptest::prelude::*;

/// `NFT_MSG_TRACE` of the subsystem 10.
const TRACE: u16 = 0xa11;
const NAMES: &str = "02000000 06000100 7400 0000  06000200 6300 0000  08000600 01020304";

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(pair).collect()
}

fn parse(kind: u16, payload: &[u8]) -> Result<Option<TraceEvent>, Error> {
    TraceEvent::parse(&Received { kind, flags: 0, seq: 0, port: 0, payload })
}

fn parsed(hex: &str) -> TraceEvent {
    parse(TRACE, &bytes(&format!("{NAMES} {hex}"))).unwrap().unwrap()
}

fn event(kind: TraceKind) -> TraceEvent {
    let mut event = TraceEvent::new(Family::Ipv4);
    (event.id, event.table, event.chain, event.kind) = (0x0102_0304, "t".to_owned(), "c".to_owned(), kind);
    event
}

#[test]
fn a_rule_that_matched_has_its_verdict_and_the_headers() {
    let mut expected = event(TraceKind::Rule);
    expected.rule = Some(258);
    expected.verdict = Some(TraceVerdict::Rule(Verdict::Jump("j".to_owned())));
    expected.mark = Some(0x4000);
    (expected.iif, expected.oif) = (Some(2), Some(3));
    expected.network_header = vec![0x45, 0, 0, 60];
    expected.transport_header = vec![0xa0, 0x28, 0, 80, 1];
    let read = parsed(
        "0c000300 0000000000000102  08000400 00000003  08000e00 00004000  08000a00 00000002  06000b00 01000000
         08000c00 00000003  08000800 4500003c  09000900 a028005001 000000
         14000580  08000100 fffffffd  06000200 6a00 0000  08000f00 00000002",
    );
    assert_eq!(read, expected);
}

#[test]
fn policies_returns_and_every_verdict_are_read() {
    let mut policy = event(TraceKind::Policy);
    policy.policy = Some(Policy::Drop);
    assert_eq!(parsed("08000400 00000001  08001000 00000000"), policy);
    for (code, verdict) in [
        ("ffffffff", TraceVerdict::Continue),
        ("00000000", TraceVerdict::Rule(Verdict::Drop)),
        ("00000001", TraceVerdict::Rule(Verdict::Accept)),
        ("fffffffb", TraceVerdict::Rule(Verdict::Return)),
        ("00000002", TraceVerdict::Other(2)),
        // A jump has a chain.
        ("fffffffd", TraceVerdict::Other(u32::MAX - 2)),
    ] {
        let mut expected = event(TraceKind::Return);
        expected.verdict = Some(verdict);
        assert_eq!(parsed(&format!("08000400 00000002 0c000580 08000100 {code}")), expected);
    }
}

#[test]
fn other_notifications_are_no_traces_and_broken_ones_are_errors() {
    assert_eq!(parse(0xa06, &bytes(NAMES)).unwrap(), None);
    assert_eq!(parse(0x111, &[]).unwrap(), None);
    for bad in ["", "0200", "02000000 06000600 0102 0000", "02000000 04000580", "02000000 0800"] {
        assert!(matches!(parse(TRACE, &bytes(bad)), Err(Error::Malformed(_))), "{bad}");
    }
}

proptest! {
    #[test]
    fn no_input_panics(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(TRACE, &payload);
    }

    #[test]
    fn no_damaged_event_panics(at in 0..200usize, with: u8, end in 0..200usize) {
        let mut whole = bytes(&format!("{NAMES} 0c000300 0000000000000102 14000580 08000100 fffffffd 06000200 6a000000"));
        let (at, end) = (at % whole.len(), end % (whole.len() + 1));
        whole[at] = with;
        let _ = parse(TRACE, &whole[..end]);
    }
}
