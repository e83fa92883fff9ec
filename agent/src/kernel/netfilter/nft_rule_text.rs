// SPDX-License-Identifier: Apache-2.0
//! What single rules of nf_tables do, in a line: enough to recognise a rule in a trace, not to write it again.

use std::net::{Ipv4Addr, Ipv6Addr};

use netlink_batch::{AttributeIter, text};
use nftables_netlink::{
    CmpOp, CtKey, CtState, Expression, FibResult, MetaKey, PayloadBase, Rule, Verdict, userdata,
};

use crate::core::model::Protocol;

/// `NFTA_MATCH_NAME`, `NFTA_TARGET_NAME`
const EXTENSION_NAME: u16 = 1;
/// `RTN_LOCAL` of `<linux/rtnetlink.h>`
const LOCAL: u32 = 2;

/// The comment of a rule: newer versions of iptables keep it as data for user space, older ones as a match.
pub(in crate::kernel) fn comment(rule: &Rule) -> String {
    let in_match = || rule.expressions.iter().find_map(match_comment);
    userdata::comment_of(&rule.userdata).or_else(in_match).unwrap_or_default()
}

/// The text of the match `comment` (`enum nft_match_attributes`, `struct xt_comment_info`).
fn match_comment(expression: &Expression) -> Option<String> {
    const INFO: u16 = 3;
    let Expression::Other { name, data } = expression else { return None };
    let (mut is_comment, mut info) = (false, None);
    for attribute in AttributeIter::new(data).filter(|_| name == "match") {
        match attribute.ok()? {
            (EXTENSION_NAME, value) => is_comment = text(value) == "comment",
            (INFO, value) => info = Some(text(value)),
            _ => {}
        }
    }
    info.filter(|_| is_comment)
}

/// What a rule looks at and does beside its verdict, and its comment. The second value: it answers with an error message
/// or a reset.
pub(super) fn rule_summary(rule: &Rule) -> (String, bool) {
    let mut summary = Summary { loaded: None, mask: None, parts: Vec::new(), rejects: false };
    rule.expressions.iter().for_each(|expression| summary.add(expression));
    let comment = comment(rule);
    if !comment.is_empty() {
        summary.parts.push(format!("\"{comment}\""));
    }
    if summary.parts.is_empty() {
        let is_plain = |expression| matches!(expression, &Expression::Counter(_) | &Expression::Verdict(_));
        let all = if rule.expressions.iter().all(is_plain) { "every packet" } else { "" };
        return (all.to_owned(), summary.rejects);
    }
    (summary.parts.join(", "), summary.rejects)
}

/// What is known while the expressions are read in order.
struct Summary {
    /// What a register was loaded with last.
    loaded: Option<&'static str>,
    mask: Option<Vec<u8>>,
    parts: Vec<String>,
    rejects: bool,
}

impl Summary {
    fn add(&mut self, expression: &Expression) {
        if let Some(loaded) = loaded(expression) {
            (self.loaded, self.mask) = (Some(loaded), None);
            return;
        }
        let part = match expression {
            Expression::Bitwise { mask, .. } => {
                self.mask = Some(mask.clone());
                return;
            }
            Expression::Cmp { op, data, .. } => self.comparison(*op, data),
            Expression::Lookup { set, invert: false, .. } => Some(format!("in set {set}")),
            Expression::Lookup { set, invert: true, .. } => Some(format!("not in set {set}")),
            Expression::SetMeta { key: MetaKey::Mark, .. } => Some("sets the mark".to_owned()),
            Expression::Masquerade(_) => Some("masquerade".to_owned()),
            Expression::Nat { .. } => Some("changes an address".to_owned()),
            Expression::Reject(_) => Some("reject".to_owned()),
            Expression::Verdict(Verdict::Drop) => Some("drop".to_owned()),
            Expression::Other { name, data } => extension(name, data),
            _ => None,
        };
        let Some(part) = part else { return };
        self.rejects |= part == "reject" || part == "-j REJECT";
        if !self.parts.contains(&part) {
            self.parts.push(part);
        }
    }

    fn comparison(&self, op: CmpOp, data: &[u8]) -> Option<String> {
        let loaded = self.loaded?;
        let not = match op {
            CmpOp::Eq => "",
            CmpOp::Neq => "not ",
            _ => return Some(format!("compares the {loaded}")),
        };
        let is_zero = data.iter().all(|byte| *byte == 0);
        Some(match (&self.mask, loaded) {
            // A flag of a mask: "differs from 0".
            (Some(mask), "connection state") if is_zero && op == CmpOp::Neq => {
                format!("connection state {}", value(loaded, mask))
            }
            (Some(mask), _) => format!("{loaded} {not}{}/{}", value(loaded, data), value(loaded, mask)),
            (None, _) => format!("{loaded} {not}{}", value(loaded, data)),
        })
    }
}

/// What an expression loads, if that has a name here.
fn loaded(expression: &Expression) -> Option<&'static str> {
    Some(match expression {
        Expression::Payload { base: PayloadBase::Network, offset, len, .. } => match (offset, len) {
            (12, 1..=4) | (8, 5..=16) => "source",
            (16, 1..=4) | (24, 5..=16) => "destination",
            _ => "network header",
        },
        Expression::Payload { base: PayloadBase::Transport, offset, .. } => match offset {
            0 => "source port",
            2 => "destination port",
            _ => "transport header",
        },
        Expression::Payload { .. } => "link header",
        Expression::Meta { key, .. } => match key {
            MetaKey::Mark => "mark",
            MetaKey::IifName => "input interface",
            MetaKey::OifName => "output interface",
            MetaKey::L4Proto => "protocol",
            _ => "packet's property",
        },
        Expression::Ct { key: CtKey::State, .. } => "connection state",
        Expression::Ct { .. } => "connection's property",
        Expression::Fib { result: FibResult::AddrType, .. } => "address type",
        Expression::Fib { .. } => "route",
        _ => return None,
    })
}

fn value(loaded: &str, data: &[u8]) -> String {
    let word = || data.try_into().map(u32::from_ne_bytes).ok();
    let known = match loaded {
        "source" | "destination" => address(data),
        "source port" | "destination port" => {
            data.try_into().map(u16::from_be_bytes).ok().map(|port| port.to_string())
        }
        "input interface" | "output interface" => Some(text(data)),
        "mark" => word().map(|mark| format!("{mark:#x}")),
        "connection state" => word().map(|states| self::states(CtState::from_bits(states))),
        "address type" => word().filter(|number| *number == LOCAL).map(|_| "local".to_owned()),
        "protocol" => match data {
            [number] => Protocol::from_number(*number).map(|protocol| protocol.lower().to_owned()),
            _ => None,
        },
        _ => None,
    };
    known.unwrap_or_else(|| {
        let digits: String = data.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("0x{digits}")
    })
}

/// An address, or the first bytes of one.
fn address(data: &[u8]) -> Option<String> {
    match data.len() {
        4 => <[u8; 4]>::try_from(data).ok().map(|octets| Ipv4Addr::from(octets).to_string()),
        16 => <[u8; 16]>::try_from(data).ok().map(|octets| Ipv6Addr::from(octets).to_string()),
        1..=3 => {
            let octets: Vec<String> = data.iter().map(ToString::to_string).collect();
            Some(format!("{}.*", octets.join(".")))
        }
        _ => None,
    }
}

fn states(states: CtState) -> String {
    let named = [
        (CtState::INVALID, "invalid"),
        (CtState::ESTABLISHED, "established"),
        (CtState::RELATED, "related"),
        (CtState::NEW, "new"),
        (CtState::UNTRACKED, "untracked"),
    ];
    let names: Vec<&str> =
        named.iter().filter(|(state, _)| states.contains(*state)).map(|(_, name)| *name).collect();
    names.join("|")
}

/// A match or target of iptables (`enum nft_match_attributes`, `enum nft_target_attributes`): its flag and name.
fn extension(name: &str, data: &[u8]) -> Option<String> {
    let flag = match name {
        "match" => "-m",
        "target" => "-j",
        _ => return Some(name.to_owned()),
    };
    let mut attributes = AttributeIter::new(data).flatten();
    let extension = attributes.find(|(kind, _)| *kind == EXTENSION_NAME).map(|(_, value)| text(value))?;
    (extension != "comment").then(|| format!("{flag} {extension}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_batch::Attributes;
    use nftables_netlink::{Counter, Family, MasqueradeFlags, Register, Reject};

    const R0: Register = Register::R0;

    fn summary(expressions: Vec<Expression>) -> (String, bool) {
        rule_summary(&Rule::new(Family::Ipv4, "t", "c", expressions))
    }

    fn compare(load: Expression, op: CmpOp, data: &[u8]) -> [Expression; 2] {
        [load, Expression::Cmp { register: R0, op, data: data.to_vec() }]
    }

    fn payload(base: PayloadBase, offset: u32, len: u32) -> Expression {
        Expression::Payload { register: R0, base, offset, len }
    }

    fn meta(key: MetaKey) -> Expression {
        Expression::Meta { register: R0, key }
    }

    #[test]
    fn matches_are_told_in_order() {
        let name = [&b"eth0"[..], &[0; 12]].concat();
        let rule = [
            compare(payload(PayloadBase::Network, 16, 4), CmpOp::Eq, &[10, 96, 0, 10]),
            compare(payload(PayloadBase::Network, 12, 2), CmpOp::Neq, &[10, 244]),
            compare(meta(MetaKey::L4Proto), CmpOp::Eq, &[6]),
            compare(payload(PayloadBase::Transport, 2, 2), CmpOp::Eq, &[0, 80]),
            compare(meta(MetaKey::IifName), CmpOp::Eq, &name),
            compare(meta(MetaKey::Mark), CmpOp::Gt, &[0; 4]),
        ];
        let expected = "destination 10.96.0.10, source not 10.244.*, protocol tcp, destination port 80, \
                        input interface eth0, compares the mark";
        assert_eq!(summary(rule.concat()), (expected.to_owned(), false));
        assert_eq!(summary(vec![Expression::Counter(Counter::default())]).0, "every packet");
        assert_eq!(summary(vec![meta(MetaKey::Mark)]).0, "");
    }

    #[test]
    fn masks_and_states() {
        let mask = |mask: u32| Expression::Bitwise {
            source: R0,
            destination: R0,
            mask: mask.to_ne_bytes().to_vec(),
            xor: vec![0; 4],
        };
        let cmp = |op, number: u32| Expression::Cmp { register: R0, op, data: number.to_ne_bytes().to_vec() };
        let state = Expression::Ct { register: R0, key: CtKey::State };
        let rule = vec![
            meta(MetaKey::Mark),
            mask(0x4000),
            cmp(CmpOp::Eq, 0x4000),
            state,
            mask(2 | 4),
            cmp(CmpOp::Neq, 0),
            Expression::Masquerade(MasqueradeFlags::RANDOM_FULLY),
        ];
        let expected = "mark 0x4000/0x4000, connection state established|related, masquerade";
        assert_eq!(summary(rule).0, expected);
    }

    #[test]
    fn what_refuses_and_extensions_of_iptables() {
        assert_eq!(summary(vec![Expression::Reject(Reject::TcpReset)]), ("reject".to_owned(), true));
        let extension = |name: &str, of: &str| {
            let mut data = Attributes::default();
            data.put_str(1, of).put_str(3, "why");
            Expression::Other { name: name.to_owned(), data: data.as_bytes().to_vec() }
        };
        let rule =
            vec![extension("match", "comment"), extension("match", "set"), extension("target", "REJECT")];
        assert_eq!(summary(rule), ("-m set, -j REJECT, \"why\"".to_owned(), true));
        let broken = Expression::Other { name: "match".to_owned(), data: vec![1] };
        assert_eq!(summary(vec![broken]).0, "");
    }
}
