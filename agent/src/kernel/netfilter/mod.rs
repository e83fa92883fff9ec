// SPDX-License-Identifier: Apache-2.0
//! Ipsets, connection tracking and nf_tables, over nfnetlink.

pub mod conntrack;
pub mod conntrack_watch;
pub mod ipset;
pub(in crate::kernel) mod ipset_codec;
pub mod nfnetlink;
pub(in crate::kernel) mod nft_rule_text;
pub mod nft_tables;
pub mod nft_trace;
pub mod nft_watch;
