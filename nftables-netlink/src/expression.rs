// SPDX-License-Identifier: Apache-2.0
//! Expressions: what a rule is made of (`enum nft_expr_attributes`).

use crate::register::Register;
use crate::wire::Family;

pub(crate) mod codec;
#[cfg(test)]
mod tests;

numbers! {
    /// Where a part of a packet is counted from (`enum nft_payload_bases`).
    PayloadBase: u32 {
        /// The link-layer header.
        Link = 0,
        /// The header of IPv4 or IPv6.
        Network = 1,
        /// The header of TCP, UDP or another transport.
        Transport = 2,
    }
}

numbers! {
    /// A property of a packet (`enum nft_meta_keys`). Numbers are in host order in a register.
    MetaKey: u32 {
        /// `skb->mark`, 4 bytes.
        Mark = 3,
        /// Name of the input interface, 16 bytes padded with zeros.
        IifName = 6,
        /// Name of the output interface, 16 bytes padded with zeros.
        OifName = 7,
        /// Whether rules report what they do with the packet, 1 byte; see [`TraceEvent`](crate::TraceEvent).
        NfTrace = 12,
        /// The family of the packet (`NFPROTO_*`), 1 byte.
        NfProto = 15,
        /// The number of the transport, 1 byte.
        L4Proto = 16,
    }
}

numbers! {
    /// A property of a connection (`enum nft_ct_keys`).
    CtKey: u32 {
        /// Its state as a bit ([`CtState`]), 4 bytes in host order.
        State = 0,
        /// Its status (`IPS_*`), 4 bytes in host order.
        Status = 2,
        /// Its mark, 4 bytes in host order.
        Mark = 3,
    }
}

flags! {
    /// States of connections (`NF_CT_STATE_*` of `<linux/netfilter/nf_conntrack_common.h>`).
    CtState {
        /// No connection, and none can begin.
        INVALID = 1,
        /// Packets went in both directions.
        ESTABLISHED = 2,
        /// Begins beside another connection, such as the data of FTP.
        RELATED = 4,
        /// The first packet.
        NEW = 8,
        /// Not tracked.
        UNTRACKED = 64,
    }
}

numbers! {
    /// A comparison (`enum nft_cmp_ops`).
    CmpOp: u32 {
        /// `==`
        Eq = 0,
        /// `!=`
        Neq = 1,
        /// `<`
        Lt = 2,
        /// `<=`
        Lte = 3,
        /// `>`
        Gt = 4,
        /// `>=`
        Gte = 5,
    }
}

numbers! {
    /// Inside or outside of a range (`enum nft_range_ops`).
    RangeOp: u32 {
        /// Inside; both bounds belong to it.
        Inside = 0,
        /// Outside.
        Outside = 1,
    }
}

numbers! {
    /// What a lookup of a route reports (`enum nft_fib_result`).
    FibResult: u32 {
        /// Index of the interface, 4 bytes in host order.
        Oif = 1,
        /// Name of the interface, 16 bytes.
        OifName = 2,
        /// Type of the address (`RTN_*` of `<linux/rtnetlink.h>`, such as 2 for local), 4 bytes in host order.
        AddrType = 3,
    }
}

flags! {
    /// What a lookup of a route takes from the packet (`enum nft_fib_flags`).
    FibFlags {
        /// Look up the source.
        SADDR = 1,
        /// Look up the destination.
        DADDR = 2,
        /// Use the mark.
        MARK = 4,
        /// Only routes over the input interface.
        IIF = 8,
        /// Only routes over the output interface.
        OIF = 16,
        /// Report only whether there is a route.
        PRESENT = 32,
    }
}

flags! {
    /// How masquerading chooses ports (`NF_NAT_RANGE_*` of `<linux/netfilter/nf_nat.h>`).
    MasqueradeFlags {
        /// By a hash of the endpoints, with an offset.
        RANDOM = 4,
        /// Random ports.
        RANDOM_FULLY = 16,
    }
}

numbers! {
    /// Which address of a connection is changed (`enum nft_nat_types`).
    NatKind: u32 {
        /// That of the sender.
        Source = 0,
        /// That of the receiver.
        Destination = 1,
    }
}

/// What a rule decides (`enum nft_verdicts`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Verdict {
    /// The packet is dropped (`NF_DROP`).
    Drop,
    /// The packet goes on; further rules of this base chain do not see it (`NF_ACCEPT`).
    Accept,
    /// The rules of another chain, then the next rule.
    Jump(String),
    /// The rules of another chain instead of the next rule.
    Goto(String),
    /// Back to the rule after the jump.
    Return,
}

/// How a packet is refused (`enum nft_reject_types`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reject {
    /// With the message "destination unreachable" of ICMP or ICMPv6 and this code, which means something else in each
    /// family: "port unreachable" is 3 in ICMP, and 4 in ICMPv6.
    IcmpUnreachable(u8),
    /// With a reset of TCP.
    TcpReset,
    /// As [`Reject::IcmpUnreachable`], with a code for both families (`enum nft_reject_inet_code`); only in the family
    /// `inet`.
    IcmpxUnreachable(u8),
}

/// A counter. All counters are equal: their values are no property of a rule.
#[derive(Clone, Copy, Debug, Default, Eq)]
pub struct Counter {
    /// Packets so far.
    pub packets: u64,
    /// Bytes in them.
    pub bytes: u64,
}

impl PartialEq for Counter {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// One step of a rule. A comparison or a lookup that does not match ends the rule.
///
/// Values are normalised: what is written is equal to what the kernel reports. An expression that has no name here, or
/// has a property that this version does not know, is read as [`Expression::Other`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Expression {
    /// `payload`: loads a part of the packet.
    Payload {
        /// Where to.
        register: Register,
        /// The header that it is in.
        base: PayloadBase,
        /// From the beginning of the header, in bytes.
        offset: u32,
        /// In bytes.
        len: u32,
    },
    /// `meta`: loads a property of the packet.
    Meta {
        /// Where to.
        register: Register,
        /// Which.
        key: MetaKey,
    },
    /// `meta` with a source: sets a property of the packet, such as its mark.
    SetMeta {
        /// Where from.
        register: Register,
        /// Which.
        key: MetaKey,
    },
    /// `ct`: loads a property of the packet's connection.
    Ct {
        /// Where to.
        register: Register,
        /// Which.
        key: CtKey,
    },
    /// `cmp`: compares a register with a value.
    Cmp {
        /// The register.
        register: Register,
        /// How.
        op: CmpOp,
        /// The value.
        data: Vec<u8>,
    },
    /// `range`: compares a register with two bounds.
    Range {
        /// The register.
        register: Register,
        /// How.
        op: RangeOp,
        /// The lower bound.
        from: Vec<u8>,
        /// The upper bound.
        to: Vec<u8>,
    },
    /// `bitwise`: destination = (source & mask) ^ xor (`NFT_BITWISE_BOOL`).
    Bitwise {
        /// Where from.
        source: Register,
        /// Where to.
        destination: Register,
        /// The mask; its length is that of the value.
        mask: Vec<u8>,
        /// The bits to turn, of the same length.
        xor: Vec<u8>,
    },
    /// `lookup`: whether a set contains a key.
    Lookup {
        /// The set, in the table of the rule.
        set: String,
        /// The first register of the key.
        register: Register,
        /// Matches keys that the set does not contain.
        invert: bool,
    },
    /// `fib`: looks up a route.
    Fib {
        /// Where to.
        register: Register,
        /// What to report.
        result: FibResult,
        /// What the lookup takes from the packet.
        flags: FibFlags,
    },
    /// `immediate` with a value: loads it.
    Immediate {
        /// Where to.
        register: Register,
        /// The value.
        data: Vec<u8>,
    },
    /// `immediate` with a verdict: the end of the rule.
    Verdict(Verdict),
    /// `nat`: gives the connection another address, without a change of its port.
    Nat {
        /// Which address.
        kind: NatKind,
        /// The family of the address.
        family: Family,
        /// The register with the new address.
        address: Register,
    },
    /// `masq`: gives the packet the address of the interface that it leaves by.
    Masquerade(MasqueradeFlags),
    /// `reject`: refuses the packet with an answer.
    Reject(Reject),
    /// `counter`: counts packets.
    Counter(Counter),
    /// Everything else, as the kernel sent it.
    Other {
        /// Its name.
        name: String,
        /// Its attributes.
        data: Vec<u8>,
    },
}
