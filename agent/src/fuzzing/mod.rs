// SPDX-License-Identifier: Apache-2.0
//! Every decoder of what comes from outside, as a function of bytes that panics when what it reads breaks a
//! rule. The program in `fuzz/` looks for such bytes; a test replays those that are in `fuzz/corpus`, in a
//! folder for each target. Built for these two only.
//!
//! The decoders of a room that shows nobody its own are in the `fuzzing` of that room.

#![allow(clippy::unwrap_used, reason = "a panic is what tells")]

#[cfg(test)]
mod corpus;
mod http_inputs;
mod text;

/// A decoder: its name, and what reads an input.
pub type Target = (&'static str, fn(&[u8]));

/// The longest input that is worth trying.
pub const LONGEST: usize = 4096;

/// All targets, by name.
pub fn targets() -> Vec<Target> {
    let rooms = [
        text::TARGETS,
        http_inputs::TARGETS,
        crate::source::source_inputs::TARGETS,
        crate::kernel::kernel_inputs::TARGETS,
        ipvs_netlink::fuzzing::TARGETS,
        dummy_iface::fuzzing::TARGETS,
    ];
    let mut all = rooms.concat();
    all.sort_unstable_by_key(|(name, _)| *name);
    all
}

/// The input as a text, as the files of others are read.
pub(crate) fn text_of(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}
