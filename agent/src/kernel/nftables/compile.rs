// SPDX-License-Identifier: Apache-2.0
//! Rules as expressions of nf_tables.

use std::net::IpAddr;

use nftables_netlink::{
    CmpOp, CtKey, CtState, Expression, MasqueradeFlags, MetaKey, NatKind, PayloadBase, Register, Reject,
    Verdict,
};

use crate::core::model::Family;
use crate::core::rules::nftables::{Action, Match, NftRule, PacketField};
use crate::kernel::netfilter::nft_tables::nft_family;

const R0: Register = Register::R0;
/// "Port unreachable" in ICMP and in ICMPv6.
const PORT_UNREACHABLE: [u8; 2] = [3, 4];
/// Length of an interface name (`IFNAMSIZ`).
const NAME_LEN: usize = 16;

/// The expressions of a rule.
pub fn compile(rule: &NftRule, family: Family) -> Vec<Expression> {
    let mut compiler = Compiler { family, expressions: Vec::new() };
    rule.matches.iter().for_each(|matched| compiler.add_match(matched));
    compiler.add_action(rule.action);
    compiler.expressions
}

struct Compiler {
    family: Family,
    expressions: Vec<Expression>,
}

impl Compiler {
    fn push(&mut self, expression: Expression) {
        self.expressions.push(expression);
    }

    /// Bytes of an address.
    fn addr_len(&self) -> u8 {
        match self.family {
            Family::V4 => 4,
            Family::V6 => 16,
        }
    }

    fn cmp(&mut self, op: CmpOp, data: Vec<u8>) {
        self.push(Expression::Cmp { register: R0, op, data });
    }

    /// `R0 = (R0 & mask) ^ xor`
    fn bitwise(&mut self, mask: Vec<u8>, xor: Vec<u8>) {
        self.push(Expression::Bitwise { source: R0, destination: R0, mask, xor });
    }

    /// Loads a field into the registers from `at`, and returns the next register.
    fn load(&mut self, field: PacketField, at: u8) -> u8 {
        let (register, len) = (Register::new(at), self.addr_len());
        let offsets = match self.family {
            Family::V4 => [12, 16],
            Family::V6 => [8, 24],
        };
        let address = |offset| {
            let len = u32::from(len);
            Expression::Payload { register, base: PayloadBase::Network, offset, len }
        };
        let (expression, registers) = match field {
            PacketField::Source => (address(offsets[0]), len / 4),
            PacketField::Destination => (address(offsets[1]), len / 4),
            PacketField::Protocol => (Expression::Meta { register, key: MetaKey::L4Proto }, 1),
            PacketField::DestinationPort => {
                let base = PayloadBase::Transport;
                (Expression::Payload { register, base, offset: 2, len: 2 }, 1)
            }
        };
        self.push(expression);
        at + registers
    }

    fn load_all(&mut self, fields: &[PacketField]) -> u8 {
        fields.iter().fold(0, |at, field| self.load(*field, at))
    }

    fn lookup(&mut self, set: &str) {
        self.push(Expression::Lookup { set: set.to_owned(), register: R0, invert: false });
    }

    fn state(&mut self, states: CtState) {
        self.push(Expression::Ct { register: R0, key: CtKey::State });
        self.bitwise(states.bits().to_ne_bytes().to_vec(), vec![0; 4]);
        self.cmp(CmpOp::Neq, vec![0; 4]);
    }

    fn add_match(&mut self, matched: &Match) {
        match matched {
            Match::Source(net, inside) => {
                self.load(PacketField::Source, 0);
                if net.prefix_len() < net.max_prefix_len() {
                    self.bitwise(octets(net.netmask()), vec![0; self.addr_len().into()]);
                }
                self.cmp(if *inside { CmpOp::Eq } else { CmpOp::Neq }, octets(net.network()));
            }
            Match::NotFrom(name) => {
                self.push(Expression::Meta { register: R0, key: MetaKey::IifName });
                self.cmp(CmpOp::Neq, interface(name));
            }
            Match::Protocol(protocol) => {
                self.load(PacketField::Protocol, 0);
                self.cmp(CmpOp::Eq, vec![protocol.number()]);
            }
            Match::Unmarked(mark) => {
                let mark = mark.to_ne_bytes().to_vec();
                self.push(Expression::Meta { register: R0, key: MetaKey::Mark });
                self.bitwise(mark.clone(), vec![0; 4]);
                self.cmp(CmpOp::Neq, mark);
            }
            Match::New => self.state(CtState::NEW),
            Match::Established => self.state(CtState::ESTABLISHED | CtState::RELATED),
            Match::In(fields, set) => {
                self.load_all(fields);
                self.lookup(set);
            }
            Match::FromNetwork(prefix, set) => self.add_network(*prefix, set),
        }
    }

    /// nf_tables has no hash of networks: the network and its length are fields of the key.
    fn add_network(&mut self, prefix: u8, set: &str) {
        let source =
            self.load_all(&[PacketField::Destination, PacketField::Protocol, PacketField::DestinationPort]);
        let after = self.load(PacketField::Source, source);
        let register = Register::new(source);
        let (mask, xor) = (mask(prefix, self.addr_len()), vec![0; self.addr_len().into()]);
        self.push(Expression::Bitwise { source: register, destination: register, mask, xor });
        let data = u16::from(prefix).to_be_bytes().to_vec();
        self.push(Expression::Immediate { register: Register::new(after), data });
        self.lookup(set);
    }

    fn set_mark(&mut self, mask: u32, xor: u32) {
        self.push(Expression::Meta { register: R0, key: MetaKey::Mark });
        self.bitwise(mask.to_ne_bytes().to_vec(), xor.to_ne_bytes().to_vec());
        self.push(Expression::SetMeta { register: R0, key: MetaKey::Mark });
    }

    fn add_action(&mut self, action: Action) {
        match action {
            Action::Jump(chain) => self.push(Expression::Verdict(Verdict::Jump(chain.to_owned()))),
            Action::Return => self.push(Expression::Verdict(Verdict::Return)),
            Action::Drop => self.push(Expression::Verdict(Verdict::Drop)),
            Action::Reject => {
                let code = PORT_UNREACHABLE[self.family as usize];
                self.push(Expression::Reject(Reject::IcmpUnreachable(code)));
            }
            Action::Mark(mark) => self.set_mark(!mark, mark),
            Action::Unmark(mark) => self.set_mark(!0, mark),
            Action::Masquerade(random) => {
                let flags = if random { MasqueradeFlags::RANDOM_FULLY } else { MasqueradeFlags::default() };
                self.push(Expression::Masquerade(flags));
            }
            Action::KeepDestination => {
                self.load(PacketField::Destination, 0);
                let (kind, family) = (NatKind::Destination, nft_family(self.family));
                self.push(Expression::Nat { kind, family, address: R0 });
            }
        }
    }
}

pub fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

/// The mask of a prefix length.
fn mask(prefix: u8, len: u8) -> Vec<u8> {
    let byte = |n: u8| {
        let ones = u32::from(prefix).saturating_sub(u32::from(n) * 8).min(8);
        !(0xffu32 >> ones) as u8
    };
    (0..len).map(byte).collect()
}

/// The name of an interface as a register has it: in full, or its beginning if it ends with `+`.
fn interface(name: &str) -> Vec<u8> {
    let Some(prefix) = name.strip_suffix('+') else {
        let mut bytes = name.as_bytes().to_vec();
        bytes.resize(NAME_LEN, 0);
        return bytes;
    };
    prefix.as_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_of_prefixes() {
        let v4 = |prefix| mask(prefix, 4);
        assert_eq!([v4(0), v4(12), v4(24), v4(32)], [[0; 4], [255, 240, 0, 0], [255, 255, 255, 0], [255; 4]]);
        assert_eq!(mask(65, 16)[7..10], [255, 128, 0]);
    }

    #[test]
    fn interfaces_in_full_or_by_their_beginning() {
        assert_eq!(interface("cni0"), *b"cni0\0\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(interface("veth+"), *b"veth");
    }
}
