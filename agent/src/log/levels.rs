// SPDX-License-Identifier: Apache-2.0
//! Levels of `-v`, and targets of lines that the log treats specially.

/// The target of lines about syncs that change something: `-v 2` shows them.
pub const CHANGES: &str = "kube_ipvs::changes";
/// The target of the lines that end the start and the process: the limit keeps a place for them.
pub const READY: &str = "kube_ipvs::ready";

/// The level that logs every sync that changes something.
pub(super) const SYNCS: u32 = 2;
/// The level that logs every sync.
pub(super) const PASSES: u32 = 4;
/// The level that logs every operation.
pub(super) const OPERATIONS: u32 = 6;
