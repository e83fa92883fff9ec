// SPDX-License-Identifier: Apache-2.0
//! Reading IPVS beside its netlink family: the table of `/proc`, and counters.

pub mod proc_ip_vs;
pub mod traffic;
