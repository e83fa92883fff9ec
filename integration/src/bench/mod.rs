// SPDX-License-Identifier: Apache-2.0
//! What `make bench` measures.

pub mod process;
pub mod table;
