// SPDX-License-Identifier: Apache-2.0
//! Every decoder of external input, as a function of bytes that panics when the decoder breaks a rule. The program in
//! `fuzz/` searches for such bytes; a test replays the inputs in `fuzz/corpus`, which has a folder per target. Built
//! for these two only.
//!
//! Targets for private decoders are in the folder of the decoder.

#![allow(clippy::unwrap_used, reason = "a panic reports the failure")]

#[cfg(test)]
mod corpus;
mod http_inputs;
mod text;

/// A target: its name, and the function that reads an input.
pub type Target = (&'static str, fn(&[u8]));

/// The maximum length of an input.
pub const LONGEST: usize = 4096;

/// All targets, by name.
pub fn targets() -> Vec<Target> {
    let rooms = [
        text::TARGETS,
        http_inputs::TARGETS,
        crate::source::source_inputs::TARGETS,
        crate::kernel::kernel_inputs::TARGETS,
        ipvs_netlink::fuzzing::TARGETS,
        nftables_netlink::fuzzing::TARGETS,
        dummy_iface::fuzzing::TARGETS,
    ];
    let mut all = rooms.concat();
    all.sort_unstable_by_key(|(name, _)| *name);
    all
}

/// The input as text, invalid UTF-8 replaced.
pub(crate) fn text_of(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}
