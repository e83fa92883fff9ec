// SPDX-License-Identifier: Apache-2.0
//! Chains (`enum nft_chain_attributes`).

use netlink_batch::{AttributeIter, Attributes, Error, text};

use crate::wire::{Family, put_bytes, put_u32, split_header, to_u32, to_u64};

const TABLE: u16 = 1;
const HANDLE: u16 = 2;
const NAME: u16 = 3;
const HOOK: u16 = 4;
const POLICY: u16 = 5;
const TYPE: u16 = 7;
const USERDATA: u16 = 12;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;

numbers! {
    /// Where a base chain sees packets (`enum nf_inet_hooks`), in the families of [`Family`] with a name.
    Hook: u32 {
        /// `NF_INET_PRE_ROUTING`
        Prerouting = 0,
        /// `NF_INET_LOCAL_IN`
        Input = 1,
        /// `NF_INET_FORWARD`
        Forward = 2,
        /// `NF_INET_LOCAL_OUT`
        Output = 3,
        /// `NF_INET_POST_ROUTING`
        Postrouting = 4,
    }
}

numbers! {
    /// What becomes of packets at the end of a base chain (`<linux/netfilter.h>`).
    Policy: u32 {
        /// `NF_DROP`
        Drop = 0,
        /// `NF_ACCEPT`
        Accept = 1,
    }
}

/// Priorities with a name (`enum nf_ip_hook_priorities` of `<linux/netfilter_ipv4.h>`; IPv6 has the same numbers).
/// Lower ones run first.
pub mod priority {
    /// `raw`
    pub const RAW: i32 = -300;
    /// `mangle`
    pub const MANGLE: i32 = -150;
    /// `dstnat`
    pub const DSTNAT: i32 = -100;
    /// `filter`
    pub const FILTER: i32 = 0;
    /// `security`
    pub const SECURITY: i32 = 50;
    /// `srcnat`
    pub const SRCNAT: i32 = 100;
}

/// What makes a chain a base chain: it sees packets by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseChain {
    /// `filter`, `nat` or `route`.
    pub kind: String,
    /// Where it sees packets.
    pub hook: Hook,
    /// Its place among the base chains of a hook, lower ones first; see [`priority`].
    pub priority: i32,
    /// What becomes of a packet at its end.
    pub policy: Policy,
}

impl BaseChain {
    /// A chain of the type `filter`, which accepts packets at its end.
    pub fn filter(hook: Hook, priority: i32) -> Self {
        Self { kind: "filter".to_owned(), hook, priority, policy: Policy::Accept }
    }

    /// A chain of the type `nat`, which accepts packets at its end.
    pub fn nat(hook: Hook, priority: i32) -> Self {
        Self { kind: "nat".to_owned(), hook, priority, policy: Policy::Accept }
    }

    fn parse_hook(&mut self, value: &[u8]) -> Result<(), Error> {
        for attribute in AttributeIter::new(value) {
            match attribute? {
                (HOOK_NUMBER, value) => self.hook = to_u32(value)?.into(),
                (HOOK_PRIORITY, value) => self.priority = to_u32(value)? as i32,
                _ => {}
            }
        }
        Ok(())
    }
}

/// A chain of rules.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Chain {
    /// The family of its table.
    pub family: Family,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Set for a base chain. Other chains see packets only by a jump.
    pub base: Option<BaseChain>,
    /// Data for user space, see [`userdata`](crate::userdata); at most 256 bytes.
    pub userdata: Vec<u8>,
    /// The kernel's number of it; only ever reported.
    pub handle: Option<u64>,
}

impl Chain {
    /// A chain that sees packets by jumps only.
    pub fn new(family: Family, table: impl Into<String>, name: impl Into<String>) -> Self {
        let (table, name) = (table.into(), name.into());
        Self { family, table, name, base: None, userdata: Vec::new(), handle: None }
    }

    /// A base chain.
    pub fn base(family: Family, table: impl Into<String>, name: impl Into<String>, base: BaseChain) -> Self {
        Self { base: Some(base), ..Self::new(family, table, name) }
    }

    pub(crate) fn write(&self, out: &mut Attributes) {
        Self::write_name(&self.table, &self.name, out);
        if let Some(base) = &self.base {
            out.nest_with(HOOK, |hook| {
                put_u32(hook, HOOK_NUMBER, base.hook.into());
                put_u32(hook, HOOK_PRIORITY, base.priority as u32);
            });
            put_u32(out, POLICY, base.policy.into());
            out.put_str(TYPE, &base.kind);
        }
        put_bytes(out, USERDATA, &self.userdata);
    }

    pub(crate) fn write_name(table: &str, name: &str, out: &mut Attributes) {
        out.put_str(TABLE, table).put_str(NAME, name);
    }

    /// Reads a message (`NFT_MSG_NEWCHAIN`) without its netlink header.
    ///
    /// # Errors
    /// [`Error::Malformed`]
    pub fn parse(payload: &[u8]) -> Result<Self, Error> {
        let (header, attributes) = split_header(payload)?;
        let mut chain = Self::new(header.family.into(), "", "");
        let mut base = BaseChain::filter(Hook::Prerouting, 0);
        let mut is_base = false;
        for attribute in AttributeIter::new(attributes) {
            match attribute? {
                (TABLE, value) => chain.table = text(value),
                (NAME, value) => chain.name = text(value),
                (HANDLE, value) => chain.handle = Some(to_u64(value)?),
                (USERDATA, value) => chain.userdata = value.to_vec(),
                (HOOK, value) => {
                    is_base = true;
                    base.parse_hook(value)?;
                }
                (POLICY, value) => base.policy = to_u32(value)?.into(),
                (TYPE, value) => base.kind = text(value),
                _ => {}
            }
        }
        chain.base = is_base.then_some(base);
        Ok(chain)
    }
}
