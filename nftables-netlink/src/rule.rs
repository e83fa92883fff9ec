// SPDX-License-Identifier: Apache-2.0
//! Rules (`enum nft_rule_attributes`).

use netlink_batch::{AttributeIter, Attributes, Error, text};

use crate::expression::Expression;
use crate::wire::{Family, LIST_ELEM, put_bytes, put_u64, split_header, to_u64};

const TABLE: u16 = 1;
const CHAIN: u16 = 2;
const HANDLE: u16 = 3;
const EXPRESSIONS: u16 = 4;
const USERDATA: u16 = 7;

/// A rule: expressions that run one after the other, until one does not match or gives a verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rule {
    /// The family of its table.
    pub family: Family,
    /// Its table.
    pub table: String,
    /// Its chain.
    pub chain: String,
    /// What it does.
    pub expressions: Vec<Expression>,
    /// Data for user space, such as a comment, see [`userdata`](crate::userdata); at most 256 bytes.
    pub userdata: Vec<u8>,
    /// The kernel's number of it; only ever reported.
    pub handle: Option<u64>,
}

impl Rule {
    /// A rule without a comment.
    pub fn new(
        family: Family,
        table: impl Into<String>,
        chain: impl Into<String>,
        expressions: impl Into<Vec<Expression>>,
    ) -> Self {
        let (table, chain, expressions) = (table.into(), chain.into(), expressions.into());
        Self { family, table, chain, expressions, userdata: Vec::new(), handle: None }
    }

    pub(crate) fn write(&self, out: &mut Attributes) {
        Self::write_chain(&self.table, &self.chain, None, out);
        out.nest_with(EXPRESSIONS, |list| {
            for expression in &self.expressions {
                list.nest_with(LIST_ELEM, |element| expression.write(element));
            }
        });
        put_bytes(out, USERDATA, &self.userdata);
    }

    /// Writes what identifies a rule, or without its handle all rules of a chain.
    pub(crate) fn write_chain(table: &str, chain: &str, handle: Option<u64>, out: &mut Attributes) {
        out.put_str(TABLE, table).put_str(CHAIN, chain);
        if let Some(handle) = handle {
            put_u64(out, HANDLE, handle);
        }
    }

    pub(crate) fn write_table(table: &str, out: &mut Attributes) {
        out.put_str(TABLE, table);
    }

    /// Reads a message (`NFT_MSG_NEWRULE`) without its netlink header.
    ///
    /// # Errors
    /// [`Error::Malformed`]
    pub fn parse(payload: &[u8]) -> Result<Self, Error> {
        let (header, attributes) = split_header(payload)?;
        let mut rule = Self::new(header.family.into(), "", "", []);
        for attribute in AttributeIter::new(attributes) {
            match attribute? {
                (TABLE, value) => rule.table = text(value),
                (CHAIN, value) => rule.chain = text(value),
                (HANDLE, value) => rule.handle = Some(to_u64(value)?),
                (USERDATA, value) => rule.userdata = value.to_vec(),
                (EXPRESSIONS, value) => {
                    for element in AttributeIter::new(value) {
                        rule.expressions.push(Expression::parse(element?.1)?);
                    }
                }
                _ => {}
            }
        }
        Ok(rule)
    }
}
