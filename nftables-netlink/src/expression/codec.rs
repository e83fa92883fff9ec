// SPDX-License-Identifier: Apache-2.0
//! Expressions as attributes, both ways.

use netlink_batch::{AttributeIter, Attributes, Error, text};

use super::{Counter, Expression, FibFlags, MasqueradeFlags, Reject, Verdict};
use crate::register::Register;
use crate::wire::{put_data, put_u32, put_u64, to_data, to_u32, to_u64};

const NAME: u16 = 1;
const DATA: u16 = 2;

// enum nft_payload_attributes
const PAYLOAD_REGISTER: u16 = 1;
const PAYLOAD_BASE: u16 = 2;
const PAYLOAD_OFFSET: u16 = 3;
const PAYLOAD_LEN: u16 = 4;
// enum nft_meta_attributes, enum nft_ct_attributes
const META_REGISTER: u16 = 1;
const META_KEY: u16 = 2;
const META_SOURCE: u16 = 3;
// enum nft_cmp_attributes, enum nft_range_attributes
const CMP_REGISTER: u16 = 1;
const CMP_OP: u16 = 2;
const CMP_DATA: u16 = 3;
const RANGE_TO: u16 = 4;
// enum nft_bitwise_attributes
const BITWISE_SOURCE: u16 = 1;
const BITWISE_DESTINATION: u16 = 2;
const BITWISE_LEN: u16 = 3;
const BITWISE_MASK: u16 = 4;
const BITWISE_XOR: u16 = 5;
const BITWISE_OP: u16 = 6;
/// `NFT_BITWISE_BOOL`
const BITWISE_BOOL: u32 = 0;
// enum nft_lookup_attributes
const LOOKUP_SET: u16 = 1;
const LOOKUP_REGISTER: u16 = 2;
const LOOKUP_FLAGS: u16 = 5;
/// `NFT_LOOKUP_F_INV`
const LOOKUP_INVERT: u32 = 1;
// enum nft_fib_attributes
const FIB_REGISTER: u16 = 1;
const FIB_RESULT: u16 = 2;
const FIB_FLAGS: u16 = 3;
// enum nft_immediate_attributes, enum nft_data_attributes, enum nft_verdict_attributes
const IMMEDIATE_REGISTER: u16 = 1;
const IMMEDIATE_DATA: u16 = 2;
/// `NFT_REG_VERDICT`
const VERDICT_REGISTER: u32 = 0;
const DATA_VERDICT: u16 = 2;
pub(crate) const VERDICT_CODE: u16 = 1;
pub(crate) const VERDICT_CHAIN: u16 = 2;
// enum nft_verdicts, with the verdicts of netfilter
const DROP: u32 = 0;
const ACCEPT: u32 = 1;
const JUMP: u32 = -3i32 as u32;
const GOTO: u32 = -4i32 as u32;
const RETURN: u32 = -5i32 as u32;
// enum nft_masq_attributes, enum nft_reject_attributes, enum nft_reject_types
const MASQUERADE_FLAGS: u16 = 1;
const REJECT_TYPE: u16 = 1;
const REJECT_CODE: u16 = 2;
const ICMP_UNREACHABLE: u32 = 0;
const TCP_RESET: u32 = 1;
const ICMPX_UNREACHABLE: u32 = 2;
// enum nft_nat_attributes
const NAT_KIND: u16 = 1;
const NAT_FAMILY: u16 = 2;
const NAT_ADDRESS: u16 = 3;
/// `NF_NAT_RANGE_MAP_IPS`: implied by an address.
const NAT_MAP_ADDRESS: u32 = 1;
// enum nft_counter_attributes
const COUNTER_BYTES: u16 = 1;
const COUNTER_PACKETS: u16 = 2;

impl Expression {
    /// Its name in the kernel.
    pub fn name(&self) -> &str {
        match self {
            Expression::Payload { .. } => "payload",
            Expression::Meta { .. } | Expression::SetMeta { .. } => "meta",
            Expression::Ct { .. } => "ct",
            Expression::Cmp { .. } => "cmp",
            Expression::Range { .. } => "range",
            Expression::Bitwise { .. } => "bitwise",
            Expression::Lookup { .. } => "lookup",
            Expression::Fib { .. } => "fib",
            Expression::Immediate { .. } | Expression::Verdict(_) => "immediate",
            Expression::Nat { .. } => "nat",
            Expression::Masquerade(_) => "masq",
            Expression::Reject(_) => "reject",
            Expression::Counter(_) => "counter",
            Expression::Other { name, .. } => name,
        }
    }

    /// Writes its name and its attributes.
    pub(crate) fn write(&self, out: &mut Attributes) {
        out.put_str(NAME, self.name());
        match self {
            Expression::Other { data, .. } => _ = out.nest_bytes(DATA, data),
            known => _ = out.nest_with(DATA, |out| known.write_data(out)),
        }
    }

    fn write_data(&self, out: &mut Attributes) {
        let put_register = |out: &mut Attributes, kind, register: &Register| {
            put_u32(out, kind, register.number());
        };
        match self {
            Expression::Payload { register, base, offset, len } => {
                put_register(out, PAYLOAD_REGISTER, register);
                put_u32(out, PAYLOAD_BASE, (*base).into());
                put_u32(out, PAYLOAD_OFFSET, *offset);
                put_u32(out, PAYLOAD_LEN, *len);
            }
            Expression::Meta { register, key } => {
                put_register(out, META_REGISTER, register);
                put_u32(out, META_KEY, (*key).into());
            }
            Expression::SetMeta { register, key } => {
                put_u32(out, META_KEY, (*key).into());
                put_register(out, META_SOURCE, register);
            }
            Expression::Ct { register, key } => {
                put_register(out, META_REGISTER, register);
                put_u32(out, META_KEY, (*key).into());
            }
            Expression::Cmp { register, op, data } => {
                put_register(out, CMP_REGISTER, register);
                put_u32(out, CMP_OP, (*op).into());
                put_data(out, CMP_DATA, data);
            }
            Expression::Range { register, op, from, to } => {
                put_register(out, CMP_REGISTER, register);
                put_u32(out, CMP_OP, (*op).into());
                put_data(out, CMP_DATA, from);
                put_data(out, RANGE_TO, to);
            }
            Expression::Bitwise { source, destination, mask, xor } => {
                put_register(out, BITWISE_SOURCE, source);
                put_register(out, BITWISE_DESTINATION, destination);
                put_u32(out, BITWISE_LEN, u32::try_from(mask.len()).unwrap_or(u32::MAX));
                put_u32(out, BITWISE_OP, BITWISE_BOOL);
                put_data(out, BITWISE_MASK, mask);
                put_data(out, BITWISE_XOR, xor);
            }
            Expression::Lookup { set, register, invert } => {
                out.put_str(LOOKUP_SET, set);
                put_register(out, LOOKUP_REGISTER, register);
                put_u32(out, LOOKUP_FLAGS, if *invert { LOOKUP_INVERT } else { 0 });
            }
            Expression::Fib { register, result, flags } => {
                put_register(out, FIB_REGISTER, register);
                put_u32(out, FIB_RESULT, (*result).into());
                put_u32(out, FIB_FLAGS, flags.bits());
            }
            Expression::Immediate { register, data } => {
                put_register(out, IMMEDIATE_REGISTER, register);
                put_data(out, IMMEDIATE_DATA, data);
            }
            other => other.write_end(out),
        }
    }

    /// The attributes of expressions that decide, and of counters.
    fn write_end(&self, out: &mut Attributes) {
        match self {
            Expression::Verdict(verdict) => {
                put_u32(out, IMMEDIATE_REGISTER, VERDICT_REGISTER);
                out.nest_with(IMMEDIATE_DATA, |data| {
                    data.nest_with(DATA_VERDICT, |out| verdict.write(out));
                });
            }
            Expression::Nat { kind, family, address } => {
                put_u32(out, NAT_KIND, (*kind).into());
                put_u32(out, NAT_FAMILY, u8::from(*family).into());
                put_u32(out, NAT_ADDRESS, address.number());
            }
            Expression::Masquerade(flags) if flags.bits() != 0 => {
                put_u32(out, MASQUERADE_FLAGS, flags.bits());
            }
            Expression::Reject(reject) => {
                let (kind, code) = match reject {
                    Reject::IcmpUnreachable(code) => (ICMP_UNREACHABLE, Some(code)),
                    Reject::TcpReset => (TCP_RESET, None),
                    Reject::IcmpxUnreachable(code) => (ICMPX_UNREACHABLE, Some(code)),
                };
                put_u32(out, REJECT_TYPE, kind);
                if let Some(code) = code {
                    out.put(REJECT_CODE, &[*code]);
                }
            }
            Expression::Counter(counter) => {
                put_u64(out, COUNTER_BYTES, counter.bytes);
                put_u64(out, COUNTER_PACKETS, counter.packets);
            }
            _ => {}
        }
    }

    /// Reads what is in an element of a list of expressions.
    ///
    /// # Errors
    /// [`Error::Malformed`] when its attributes cannot be split, or it has no name.
    pub(crate) fn parse(value: &[u8]) -> Result<Self, Error> {
        let (mut name, mut data) = (None, &[][..]);
        for attribute in AttributeIter::new(value) {
            match attribute? {
                (NAME, value) => name = Some(text(value)),
                (DATA, value) => data = value,
                _ => {}
            }
        }
        let name = name.ok_or(Error::Malformed("an expression without a name"))?;
        Ok(parse_known(&name, data).unwrap_or_else(|| Expression::Other { name, data: data.to_vec() }))
    }
}

impl Verdict {
    fn write(&self, out: &mut Attributes) {
        let (code, chain) = match self {
            Verdict::Drop => (DROP, None),
            Verdict::Accept => (ACCEPT, None),
            Verdict::Jump(chain) => (JUMP, Some(chain)),
            Verdict::Goto(chain) => (GOTO, Some(chain)),
            Verdict::Return => (RETURN, None),
        };
        put_u32(out, VERDICT_CODE, code);
        if let Some(chain) = chain {
            out.put_str(VERDICT_CHAIN, chain);
        }
    }

    fn parse(data: &[u8]) -> Option<Self> {
        let [_, None, Some(verdict)] = values(data)? else { return None };
        let [_, code, chain] = values(verdict)?;
        let verdict = Self::of_code(u32_of(code)?, chain.map(text))?;
        (matches!(verdict, Verdict::Jump(_) | Verdict::Goto(_)) == chain.is_some()).then_some(verdict)
    }

    /// The verdict with this number; only jumps need a chain. `None`: another number, or a jump without a chain.
    pub(crate) fn of_code(code: u32, chain: Option<String>) -> Option<Self> {
        match (code, chain) {
            (DROP, _) => Some(Verdict::Drop),
            (ACCEPT, _) => Some(Verdict::Accept),
            (JUMP, Some(chain)) => Some(Verdict::Jump(chain)),
            (GOTO, Some(chain)) => Some(Verdict::Goto(chain)),
            (RETURN, _) => Some(Verdict::Return),
            _ => None,
        }
    }
}

/// The values of attributes by kind; kind 0 is in use nowhere. `None` when there is another kind, or one that cannot
/// be read.
fn values<const N: usize>(data: &[u8]) -> Option<[Option<&[u8]>; N]> {
    let mut values = [None; N];
    for attribute in AttributeIter::new(data) {
        let (kind, value) = attribute.ok()?;
        *values.get_mut(usize::from(kind)).filter(|_| kind != 0)? = Some(value);
    }
    Some(values)
}

fn u32_of(value: Option<&[u8]>) -> Option<u32> {
    to_u32(value?).ok()
}

fn register_of(value: Option<&[u8]>) -> Option<Register> {
    Register::from_number(u32_of(value)?)
}

fn data_of(value: Option<&[u8]>) -> Option<Vec<u8>> {
    to_data(value?).ok()
}

/// An expression with a name of [`Expression`]; `None` when it has a property that is not among its fields.
fn parse_known(name: &str, data: &[u8]) -> Option<Expression> {
    Some(match name {
        "payload" => {
            let [_, register, base, offset, len] = values(data)?;
            let (base, offset, len) = (u32_of(base)?.into(), u32_of(offset)?, u32_of(len)?);
            Expression::Payload { register: register_of(register)?, base, offset, len }
        }
        "meta" => {
            let [_, destination, key, source] = values(data)?;
            let key = u32_of(key)?.into();
            match (destination, source) {
                (register, None) => Expression::Meta { register: register_of(register)?, key },
                (None, register) => Expression::SetMeta { register: register_of(register)?, key },
                _ => return None,
            }
        }
        "ct" => {
            let [_, register, key] = values(data)?;
            Expression::Ct { register: register_of(register)?, key: u32_of(key)?.into() }
        }
        "cmp" => {
            let [_, register, op, value] = values(data)?;
            let (register, op) = (register_of(register)?, u32_of(op)?.into());
            Expression::Cmp { register, op, data: data_of(value)? }
        }
        "range" => {
            let [_, register, op, from, to] = values(data)?;
            let (register, op) = (register_of(register)?, u32_of(op)?.into());
            Expression::Range { register, op, from: data_of(from)?, to: data_of(to)? }
        }
        "bitwise" => {
            let [_, source, destination, len, mask, xor, op] = values(data)?;
            let (source, destination) = (register_of(source)?, register_of(destination)?);
            let (mask, xor) = (data_of(mask)?, data_of(xor)?);
            let is_bool = op.is_none() || u32_of(op)? == BITWISE_BOOL;
            if !is_bool || u32_of(len)? as usize != mask.len() {
                return None;
            }
            Expression::Bitwise { source, destination, mask, xor }
        }
        "lookup" => {
            let [_, set, register, None, None, flags] = values(data)? else { return None };
            let flags = if flags.is_some() { u32_of(flags)? } else { 0 };
            if flags > LOOKUP_INVERT {
                return None;
            }
            Expression::Lookup { set: text(set?), register: register_of(register)?, invert: flags != 0 }
        }
        "fib" => {
            let [_, register, result, flags] = values(data)?;
            let (result, flags) = (u32_of(result)?.into(), FibFlags::from_bits(u32_of(flags)?));
            Expression::Fib { register: register_of(register)?, result, flags }
        }
        _ => return parse_end(name, data),
    })
}

/// As [`parse_known`], for expressions that decide, and for counters.
fn parse_end(name: &str, data: &[u8]) -> Option<Expression> {
    Some(match name {
        "immediate" => {
            let [_, register, value] = values(data)?;
            if u32_of(register)? == VERDICT_REGISTER {
                return Verdict::parse(value?).map(Expression::Verdict);
            }
            Expression::Immediate { register: register_of(register)?, data: data_of(value)? }
        }
        "nat" => {
            // The kernel reports a single address as both ends of a range.
            let [_, kind, family, address, last, None, None, flags] = values(data)? else { return None };
            let is_single = last.is_none() || last == address;
            if !is_single || flags.is_some_and(|flags| to_u32(flags).ok() != Some(NAT_MAP_ADDRESS)) {
                return None;
            }
            let family = u8::try_from(u32_of(family)?).ok()?.into();
            Expression::Nat { kind: u32_of(kind)?.into(), family, address: register_of(address)? }
        }
        "masq" => {
            let [_, flags] = values(data)?;
            let flags = if flags.is_some() { u32_of(flags)? } else { 0 };
            Expression::Masquerade(MasqueradeFlags::from_bits(flags))
        }
        "reject" => {
            let [_, kind, code] = values(data)?;
            let code = || code?.first().copied();
            Expression::Reject(match u32_of(kind)? {
                ICMP_UNREACHABLE => Reject::IcmpUnreachable(code()?),
                TCP_RESET => Reject::TcpReset,
                ICMPX_UNREACHABLE => Reject::IcmpxUnreachable(code()?),
                _ => return None,
            })
        }
        "counter" => {
            let [_, bytes, packets, _padding] = values(data)?;
            Expression::Counter(Counter { packets: to_u64(packets?).ok()?, bytes: to_u64(bytes?).ok()? })
        }
        _ => return None,
    })
}
