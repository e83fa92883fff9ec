// SPDX-License-Identifier: Apache-2.0
//! Lists the tables of this network namespace.

fn main() {}
