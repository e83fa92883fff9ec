// SPDX-License-Identifier: Apache-2.0
//! The output of `kube-ipvs list`, and the socket for the Services in it.

pub mod filter;
pub mod ipvs_conn;
pub mod ipvs_table;
pub mod ipvsadm;
pub mod owners;
pub mod sort;
