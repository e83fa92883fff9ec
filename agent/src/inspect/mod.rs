// SPDX-License-Identifier: Apache-2.0
//! What the agent shows to a person: `kube-ipvs list`.

pub mod ipvs_table;
pub mod owners;
pub mod sort;
